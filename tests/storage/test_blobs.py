"""Every blob store and every wrapper passes the suite; then what each one adds."""

import errno
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from storage.blobs import LocalBlobs
from storage.digest import Digest
from storage.errors import Corrupt, InvalidArgument, StoreFull, StoreReadOnly
from storage.objects import ObjectBlobs, open_store
from storage.policies import QuotaBlobs, ReadOnlyBlobs, VerifiedBlobs
from tests.suites.blobs import BlobStoreSuite, Factory


@pytest.fixture
def memory() -> Iterator[str]:
    """The URL of an empty place in memory."""
    url = f"memory://{uuid.uuid4().hex}"
    yield url
    for place in (url, f"{url}/blobs", f"{url}/records"):
        blobs = ObjectBlobs(place)
        for blob in list(blobs.list()):
            blobs.delete(blob.digest)


class Bucket(MemoryFileSystem):
    """An object store under a scheme of its own."""

    protocol = "bucket"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return MemoryFileSystem._strip_protocol(path.replace("bucket://", "memory://bucket/"))


class TestLocalBlobs(BlobStoreSuite):
    @pytest.fixture
    def factory(self, tmp_path: Path) -> Factory:
        return lambda: LocalBlobs(tmp_path / "blobs")


class TestObjectBlobs(BlobStoreSuite):
    @pytest.fixture
    def factory(self, memory: str) -> Factory:
        return lambda: ObjectBlobs(memory)


class TestVerifiedBlobs(BlobStoreSuite):
    @pytest.fixture
    def factory(self, tmp_path: Path) -> Factory:
        return lambda: VerifiedBlobs(LocalBlobs(tmp_path / "blobs"))


class TestQuotaBlobs(BlobStoreSuite):
    @pytest.fixture
    def factory(self, memory: str) -> Factory:
        return lambda: QuotaBlobs(ObjectBlobs(memory), 10**9, lambda: 0)


def test_damaged_bytes_of_the_same_length_are_put_right(tmp_path: Path, memory: str):
    objects, files = ObjectBlobs(memory), LocalBlobs(tmp_path / "blobs")
    digest = objects.put(b"right").digest
    objects._files.pipe_file(objects._path(digest), b"wrong")
    path = files.path(files.put(b"right").digest)
    path.unlink()
    path.write_bytes(b"wrong")
    for blobs in (objects, files):
        assert blobs.get(digest) == b"wrong"
        assert blobs.put(b"right").digest == digest and blobs.get(digest) == b"right"


def test_only_a_store_in_memory_needs_no_bucket():
    with pytest.raises(InvalidArgument, match=r"s3:// names no bucket.*s3://BUCKET"):
        open_store("s3://")


def test_a_url_opens_the_store_in_a_folder(tmp_path: Path):
    for url in ((tmp_path / "with space").as_uri(), str(tmp_path / "with space")):
        with open_store(url) as store:
            assert store.path == tmp_path / "with space"
    with pytest.raises(InvalidArgument, match="nonsense://x/ names no object store"):
        open_store("nonsense://x")


def test_a_whole_store_lives_in_an_object_store(memory: str):
    with open_store(memory, quota_bytes=100_000) as store:
        first = store.put(Image.new("RGB", (4, 4)), label="first")
        second = store.put(Image.new("RGB", (5, 5)))
        record = store.record(tool="edit_image", parameters={}, inputs=[first.id], outputs=[second.id])
        assert store.open(second.id).size == (5, 5) and store.verify().clean
        before = store.list(), store.lineage(second.id)
        store.rebuild_index()
        assert (store.list(), store.lineage(second.id)) == before
        assert store.path is None
        with pytest.raises(StoreFull):
            store.put(Image.effect_noise((400, 400), 50))
    with open_store(memory) as other:  # another machine has another index
        assert other.get_record(record).outputs == (second.id,)
        assert other.list() == before[0]
        assert other.collect(grace=timedelta(0), keep_accessed=timedelta(0)).images == (second.id,)
    assert len(list(ObjectBlobs(f"{memory}/blobs").list())) == 1


def test_a_bucket_keeps_its_index_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("storage.objects.default_store_path", lambda: tmp_path / "data" / "store")
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    url = f"bucket://{tmp_path.name}"
    with open_store(url) as store:
        image = store.put(Image.new("RGB", (4, 4)))
        assert store.path.parent == tmp_path / "data" / "indexes"
    with open_store(url) as again:
        assert again.path == store.path and again.get(image.id) == image


def test_read_on_verification_refuses_other_bytes(tmp_path: Path):
    inner = LocalBlobs(tmp_path / "blobs")
    digest = inner.put(b"right").digest
    os.chmod(inner.path(digest), 0o644)
    inner.path(digest).write_bytes(b"wrong")
    assert inner.get(digest) == b"wrong"
    with pytest.raises(Corrupt, match="damaged"):
        VerifiedBlobs(inner).get(digest)


def test_read_only_refuses_to_change(tmp_path: Path):
    inner = LocalBlobs(tmp_path / "blobs")
    blob = inner.put(b"kept")
    blobs = ReadOnlyBlobs(inner)
    for change in (lambda: blobs.put(b"new"), lambda: blobs.delete(blob.digest)):
        with pytest.raises(StoreReadOnly):
            change()
    assert list(blobs.list()) == [blob] and blobs.get(blob.digest) == b"kept"


def test_a_quota_refuses_what_is_new_and_takes_what_is_there(tmp_path: Path):
    used = [0]
    blobs = QuotaBlobs(LocalBlobs(tmp_path / "blobs"), 10, lambda: used[0])
    blob = blobs.put(b"ten bytes.")
    used[0] = 20
    assert blobs.put(b"ten bytes.") == blob
    with pytest.raises(StoreFull, match="quota of 10 bytes"):
        blobs.put(b"something else")
    assert list(blobs.list()) == [blob]


def test_damaged_bytes_are_put_right_by_the_next_put(tmp_path: Path):
    blobs = LocalBlobs(tmp_path / "blobs")
    blob = blobs.put(b"right")
    os.chmod(blobs.path(blob.digest), 0o644)
    blobs.path(blob.digest).write_bytes(b"wro")
    blobs.put(b"right")
    assert blobs.get(blob.digest) == b"right"


@pytest.mark.parametrize("step", ["open", "write", "fchmod", "utime", "fsync", "link"])
@pytest.mark.parametrize(
    ("number", "expected"),
    [(errno.ENOSPC, StoreFull), (errno.EDQUOT, StoreFull), (errno.EROFS, StoreReadOnly)],
)
def test_a_failing_step_stores_nothing_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, expected: type[Exception]
):
    blobs = LocalBlobs(tmp_path / "blobs")
    blobs.put(b"before")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(f"storage.blobs.os.{step}", fail)
        with pytest.raises(expected):
            blobs.put(b"while it fails")
    assert [Digest.of(blobs.get(blob.digest)) for blob in blobs.list()] == [Digest.of(b"before")]
    assert not list(blobs.staging.iterdir())
    assert blobs.put(b"while it fails").size == 14


def test_a_file_system_without_links_still_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("storage.blobs.os.link", no_links)
    blobs = LocalBlobs(tmp_path / "blobs")
    blob = blobs.put(b"moved")
    assert blobs.put(b"moved") == blob
    assert blobs.get(blob.digest) == b"moved"
    assert not list(blobs.staging.iterdir())


def test_names_are_durable_before_put_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The order that the promises rest on: bytes synced, then named, then the folder synced."""
    calls: list[str] = []

    def spied(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def call(*given: object, **named: object) -> object:
            calls.append(name)
            return real(*given, **named)

        return call

    blobs = LocalBlobs(tmp_path / "blobs")
    digest = Digest.of(b"in order")
    blobs.path(digest).parent.mkdir(parents=True)
    for name in ("write", "fsync", "link"):
        monkeypatch.setattr(f"storage.blobs.os.{name}", spied(name))
    blobs.put(b"in order")
    assert calls == ["write", "fsync", "link", "fsync"]


def test_a_folder_that_is_gone_is_made_again(tmp_path: Path):
    blobs = LocalBlobs(tmp_path / "blobs")
    digest = blobs.put(b"some bytes").digest
    blobs.delete(digest)
    blobs.path(digest).parent.rmdir()
    assert blobs.put(b"some bytes").digest == digest and blobs.get(digest) == b"some bytes"


def test_the_first_blob_of_a_store_comes_with_every_folder_there_will_be(tmp_path: Path):
    blobs = LocalBlobs(tmp_path / "blobs")
    blobs.put(b"some bytes")
    folders = {folder.name for folder in (tmp_path / "blobs" / "sha256").iterdir()}
    assert folders == {f"{number:02x}" for number in range(256)}
    assert not list(blobs.staging.iterdir())


def test_of_two_first_writers_both_store_their_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blobs, other = LocalBlobs(tmp_path / "blobs"), LocalBlobs(tmp_path / "blobs")
    rename, beaten = Path.rename, list[Digest]()

    def slow(self: Path, target: Path) -> Path:
        monkeypatch.undo()
        beaten.append(other.put(b"quicker").digest)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", slow)
    slower = blobs.put(b"slower").digest
    assert {blob.digest for blob in blobs.list()} == {slower, *beaten} and len(beaten) == 1
    assert not list(blobs.staging.iterdir())


def test_folders_that_do_not_fit_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    blobs, mkdir = LocalBlobs(tmp_path / "blobs"), Path.mkdir

    def full(self: Path, *given: Any, **named: Any) -> None:
        if self.name == "80":
            raise OSError(errno.ENOSPC, "No space left on device")
        mkdir(self, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", full)
        with pytest.raises(StoreFull):
            blobs.put(b"some bytes")
    assert not list(blobs.staging.iterdir()) and not list(blobs.list())
    blobs.put(b"some bytes")
    assert len(list(blobs.list())) == 1
