"""What every blob store must do. A plugin proves itself by giving a factory:

    class TestBucket(BlobStoreSuite):
        @pytest.fixture
        def factory(self, tmp_path):
            return lambda: BucketBlobs(f"bucket://tests/{tmp_path.name}")

Every call of the factory opens the same, at first empty, place: what one handle puts, another one sees.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from storage.blobs import Blob, BlobStore
from storage.digest import Digest

Factory = Callable[[], BlobStore]
ABSENT = Digest.of(b"nobody ever put this")


class BlobStoreSuite:
    """Conformance tests of the five methods."""

    @pytest.fixture
    def factory(self) -> Factory:
        raise NotImplementedError("give a fixture `factory`")

    @pytest.fixture
    def blobs(self, factory: Factory) -> BlobStore:
        return factory()

    @pytest.mark.parametrize("size", [0, 1, 4096, 200_000, 3_000_001])
    def test_bytes_come_back_as_they_went_in(self, blobs: BlobStore, size: int):
        data = bytes(range(251)) * (size // 251 + 1)
        blob = blobs.put(data[:size])
        assert blob.size == size
        assert blob.digest == Digest.of(data[:size])
        assert blobs.get(blob.digest) == data[:size]

    def test_another_handle_sees_what_was_put(self, factory: Factory):
        blob = factory().put(b"shared")
        assert factory().get(blob.digest) == b"shared"
        assert factory().has(blob.digest) == blob
        assert list(factory().list()) == [blob]

    def test_what_is_not_there_is_a_key_error_or_none(self, blobs: BlobStore):
        with pytest.raises(KeyError):
            blobs.get(ABSENT)
        assert blobs.has(ABSENT) is None
        assert list(blobs.list()) == []

    def test_put_has_and_list_know_the_same(self, blobs: BlobStore):
        put = [blobs.put(text) for text in (b"one", b"two", b"three")]
        assert [blobs.has(blob.digest) for blob in put] == put
        assert sorted(blobs.list(), key=_digest) == sorted(put, key=_digest)

    def test_creation_is_dated_now(self, blobs: BlobStore):
        before = time.time_ns()
        blob = blobs.put(b"now")
        assert abs(blob.created - before) < 5 * 10**9

    def test_putting_again_changes_nothing(self, blobs: BlobStore):
        first = blobs.put(b"same")
        time.sleep(0.01)
        assert blobs.put(b"same") == first
        assert list(blobs.list()) == [first]

    def test_delete_takes_one_and_may_be_repeated(self, blobs: BlobStore):
        gone, kept = blobs.put(b"gone"), blobs.put(b"kept")
        blobs.delete(gone.digest)
        blobs.delete(gone.digest)
        assert blobs.has(gone.digest) is None
        assert list(blobs.list()) == [kept]
        with pytest.raises(KeyError):
            blobs.get(gone.digest)
        assert blobs.put(b"gone").digest == gone.digest

    def test_threads_put_the_same_and_different_bytes(self, factory: Factory):
        together = threading.Barrier(8)

        def work(number: int) -> list[Blob]:
            blobs = factory()
            together.wait()
            return [blobs.put(text) for text in (b"same", b"own %d" % number, b"same too")]

        with ThreadPoolExecutor(8) as pool:
            put = [blob for found in pool.map(work, range(8)) for blob in found]
        blobs = factory()
        assert {blob.digest for blob in put} == {blob.digest for blob in blobs.list()}
        assert len(list(blobs.list())) == 10
        assert all(Digest.of(blobs.get(blob.digest)) == blob.digest for blob in put)

    def test_a_reader_never_sees_half_a_blob(self, factory: Factory):
        texts = [bytes([number]) * 300_000 for number in range(30)]
        digests = [Digest.of(text) for text in texts]
        done = threading.Event()

        def write() -> None:
            blobs = factory()
            for text in texts:
                blobs.put(text)
            done.set()

        writer = threading.Thread(target=write)
        writer.start()
        blobs = factory()
        while not done.is_set():
            for digest in digests:
                if blobs.has(digest):
                    assert Digest.of(blobs.get(digest)) == digest
        writer.join()


def _digest(blob: Blob) -> Digest:
    return blob.digest
