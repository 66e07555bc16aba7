"""One machine at a time writes to a bucket; another one takes over when the first is lost or has left."""

import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from storage import ImageStore, lease
from storage.digest import Digest
from storage.errors import StoreBusy, StoreError
from storage.lease import Lease
from storage.objects import ObjectBlobs

Machine = Callable[[str], ImageStore]


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def machine(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """Opens the store of one bucket on a machine of some name; each name has an index of its own."""
    monkeypatch.setattr(lease, "LEASE_S", 1.5)
    monkeypatch.setattr(lease, "SLACK_S", 0.5)
    monkeypatch.setattr(lease, "RENEW_S", 0.3)
    opened: list[ImageStore] = []

    def on(name: str) -> ImageStore:
        held = lease_of(url, tmp_path / name)
        blobs, records = (ObjectBlobs(f"{url}/{kind}", held) for kind in ("blobs", "records"))
        opened.append(ImageStore(tmp_path / name, blobs=blobs, records=records, lease=held))
        return opened[-1]

    yield on
    for store in opened:
        store.close()


def lease_of(url: str, folder: Path) -> Lease:
    files, root = fsspec.url_to_fs(url)
    return Lease(files, root, folder)


def lost(store: ImageStore) -> Lease:
    """End the renewing of a store's lease, as when its machine is gone."""
    held = store._repository.bucket_lease
    assert held is not None
    held._ended.set()
    return held


def picture(grey: int) -> Image.Image:
    return Image.new("RGB", (8, 8), (grey, grey, grey))


def ids(store: ImageStore) -> list[Digest]:
    return [image.id for image in store.list().images]


def test_a_second_machine_reads_and_takes_over_when_the_first_is_lost(machine: Machine) -> None:
    first = machine("one")
    one = first.put(picture(1)).id
    again = machine("one")  # another process of the same machine
    again.label(one, "one")
    second = machine("two")
    assert ids(second) == [one] and second.get(one).label == "one"
    with pytest.raises(StoreBusy, match=r"Another server, on .*, writes.*takes over in \d s"):
        second.put(picture(2))
    with pytest.raises(StoreBusy):
        second.refuse_if_read_only()
    two = first.put(picture(3)).id
    time.sleep(2)  # a lease that is renewed stays
    with pytest.raises(StoreBusy):
        second.put(picture(2))
    lost(first)
    lost(again)
    time.sleep(2.2)
    assert set(ids(second)) == {one, two}
    three = second.put(picture(2)).id
    for late in (lambda: first.put(picture(4)), lambda: first.label(one, "late"), lambda: first.collect()):
        with pytest.raises(StoreBusy, match="Another server"):
            late()
    assert first.open(three).size and set(ids(second)) == {one, two, three}


def test_whoever_writes_again_sees_what_others_did_meanwhile(machine: Machine) -> None:
    with machine("one") as first:
        kept, deleted = first.put(picture(1), label="kept").id, first.put(picture(2)).id
    with machine("two") as second:  # at once: the first one has left
        new = second.put(picture(3), label="new").id
        assert second.collect(grace=timedelta(0), keep_accessed=timedelta(0)).images == (deleted,)
    with machine("one") as first:
        assert set(ids(first)) == {kept, new}
        assert first.put(picture(2)).id == deleted and len(ids(first)) == 3
        # What the second accessed, this one does not know.
        assert first.collect(grace=timedelta(0)).images == ()


def test_of_two_that_see_an_expired_lease_one_gets_it(url: str, tmp_path: Path) -> None:
    first, second = (lease_of(url, tmp_path / name) for name in ("one", "two"))
    create = first._files.pipe_file

    class Late:
        """A file system on which the second machine is quicker."""

        def __getattr__(self, name: str) -> Any:
            return getattr(second._files, name)

        def pipe_file(self, *given: Any, **how: Any) -> None:
            second.hold(lambda: None)
            create(*given, **how)

    first._files = Late()
    first.hold(lambda: None)
    second.check()
    with pytest.raises(StoreBusy, match="Another server"):
        first.check()
    for one in (first, second):
        one.release()


def test_a_writer_that_was_stopped_while_it_wrote_acknowledges_nothing(machine: Machine, url: str) -> None:
    first, second = machine("one"), machine("two")
    held = lost(first)
    files, put = fsspec.url_to_fs(url)[0], fsspec.url_to_fs(url)[0].pipe_file

    def stopped(path: str, data: bytes, **how: Any) -> None:
        if "blobs" in path and first._repository.bucket_lease is held and held._valid_until:
            time.sleep(2.2)
        put(path, data, **how)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "pipe_file", stopped)
        with pytest.raises(StoreBusy, match="Another server"):
            first.put(picture(5), label="late")
    assert ids(first) == [] == ids(second)
    assert second.put(picture(5)).label is None and second.verify().clean


def test_a_folder_that_was_copied_is_another_machine(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lease_of(url, tmp_path)
    first.hold(lambda: None)
    monkeypatch.setattr(lease, "_machine", lambda: "another")
    copied = lease_of(url, tmp_path)
    with pytest.raises(StoreBusy, match="Another server"):
        copied.check()
    first.release()


def test_the_name_of_a_folder_is_whole_and_its_faults_are_the_stores(url: str, tmp_path: Path) -> None:
    (tmp_path / "holder").touch()  # as a crash may have left it
    assert lease_of(url, tmp_path)._holder == lease_of(url, tmp_path)._holder != ""
    assert len((tmp_path / "holder").read_text()) == 32
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Not a directory"):
        lease_of(url, tmp_path / "file" / "below")


def test_a_bucket_that_is_not_answering_is_named(url: str, tmp_path: Path) -> None:
    class Silent:
        def __getattr__(self, name: str) -> Any:
            raise OSError("no route to host")

    silent = Lease(Silent(), "bucket", tmp_path)
    silent.hold(lambda: None)
    with pytest.raises(StoreError, match="failed"):
        silent.check()
    silent.release()
