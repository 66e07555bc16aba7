"""Policies as wrappers of a `BlobStore`: each adds one rule and passes everything else on.

They know nothing of where the bytes lie, so they fit every blob store, a plugin's included.
"""

from collections.abc import Callable, Iterator

from storage.blobs import Blob, BlobStore
from storage.digest import Digest
from storage.errors import Corrupt, StoreFull, read_only


class _Wrapper:
    """Passes all five methods on."""

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
    """Hashes what it reads: bytes that do not fit their name are an error, never an answer."""

    def get(self, digest: Digest) -> bytes:
        """The bytes, hashed again.

        Raises:
            KeyError: there is no such blob.
            Corrupt: the bytes are not the ones that were stored.
        """
        data = self.inner.get(digest)
        found = Digest.of(data)
        if found != digest:
            raise Corrupt(
                f"The stored bytes of {digest} are damaged: they hash to {found}.",
                "Ask the host to run `omnigen2-mcp store verify`, which sets them aside.",
            )
        return data


class ReadOnlyBlobs(_Wrapper):
    """Refuses to put and to delete. `place` is where the store is, for the host."""

    def __init__(self, inner: BlobStore, place: str = "") -> None:
        super().__init__(inner)
        self.place = place

    def put(self, data: bytes) -> Blob:
        raise read_only(self.place)

    def delete(self, digest: Digest) -> None:
        raise read_only(self.place)


class QuotaBlobs(_Wrapper):
    """Refuses to put beyond a number of bytes.

    `used` tells the bytes already stored. Whoever puts lets nobody else put until it tells of these, so two
    writers can never both squeeze into the last room.
    """

    def __init__(self, inner: BlobStore, limit: int, used: Callable[[], int]) -> None:
        super().__init__(inner)
        self.limit = limit
        self.used = used

    def put(self, data: bytes) -> Blob:
        """Store `data` if the quota has room for it, or it is here already.

        Raises:
            StoreFull: it has not; nothing was stored.
        """
        used = self.used() + len(data)
        if used > self.limit and self.inner.has(Digest.of(data)) is None:
            raise StoreFull(
                f"The image store's quota of {self.limit:,} bytes is used up: with these "
                f"{len(data):,} bytes it would hold {used:,}. Nothing was stored.",
                "Ask the host to run `omnigen2-mcp store gc` or to raise the quota.",
            )
        return self.inner.put(data)
