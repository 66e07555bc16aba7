"""Wrappers that add one policy each to any `BlobStore`, including those of plugins."""

from collections.abc import Callable, Iterator

from storage.blobs import Blob, BlobStore
from storage.digest import Digest
from storage.errors import Corrupt, StoreFull, read_only


class _Wrapper:
    """Delegates all five methods."""

    def __init__(self, inner: BlobStore) -> None:
        self.inner = inner

    def put(self, data: bytes) -> Blob:
        return self.inner.put(data)

    def get(self, digest: Digest) -> bytes:
        return self.inner.get(digest)

    def has(self, digest: Digest) -> Blob | None:
        return self.inner.has(digest)

    def list(self) -> Iterator[Blob]:
        return self.inner.list()

    def delete(self, digest: Digest) -> None:
        self.inner.delete(digest)


class VerifiedBlobs(_Wrapper):
    """Verifies the hash of all bytes read."""

    def get(self, digest: Digest) -> bytes:
        """The verified bytes.

        Raises:
            KeyError: there is no such blob.
            Corrupt: the bytes do not match `digest`.
        """
        data = self.inner.get(digest)
        found = Digest.of(data)
        if found != digest:
            raise Corrupt(
                f"The stored bytes of {digest} are damaged: their hash is {found}.",
                "Ask the host to run `omnigen2-mcp store verify`, which quarantines them.",
            )
        return data


class ReadOnlyBlobs(_Wrapper):
    """Rejects put and delete. `place` is the location of the store, for error messages to the host."""

    def __init__(self, inner: BlobStore, place: str = "") -> None:
        super().__init__(inner)
        self.place = place

    def put(self, data: bytes) -> Blob:
        raise read_only(self.place)

    def delete(self, digest: Digest) -> None:
        raise read_only(self.place)


class QuotaBlobs(_Wrapper):
    """Rejects a put that would exceed `limit` bytes in total.

    `used` returns the bytes stored. The caller must hold an exclusive lock from `put` until `used` includes
    the new blob, so that two writers cannot exceed the limit together.
    """

    def __init__(self, inner: BlobStore, limit: int, used: Callable[[], int]) -> None:
        super().__init__(inner)
        self.limit = limit
        self.used = used

    def put(self, data: bytes) -> Blob:
        """Store `data` if it fits into the quota or is already stored.

        Raises:
            StoreFull: it does not fit; nothing was stored.
        """
        used = self.used() + len(data)
        if used > self.limit and self.inner.has(Digest.of(data)) is None:
            raise StoreFull(
                f"The image store's quota of {self.limit:,} bytes is used up: with these "
                f"{len(data):,} bytes it would hold {used:,}. Nothing was stored.",
                "Ask the host to run `omnigen2-mcp store gc` or to raise the quota.",
            )
        return self.inner.put(data)
