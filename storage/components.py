"""The components of one store: locks, index, blobs and records, and checks that a stored file is readable.

The order in which they change is defined in `repository.py`.
"""

import os
from pathlib import Path
from typing import Literal

from storage import codec
from storage.blobs import Blob, BlobStore, LocalBlobs
from storage.errors import Corrupt, ImageRejected, InvalidArgument, Unreadable, from_os_error, read_only
from storage.index.database import Index
from storage.lease import Lease
from storage.locks import Locks, MemoryLocks
from storage.policies import QuotaBlobs, ReadOnlyBlobs, VerifiedBlobs
from storage.records import MAX_BYTES, Record, parse_record

Kind = Literal["image", "record"]


class Components:
    """The components of one store. The index must be prepared before use, see `recovery.prepare_index`."""

    def __init__(
        self,
        root: Path | None,
        quota: int | None,
        blobs: BlobStore | None,
        records: BlobStore | None,
        lease: Lease | None = None,
    ) -> None:
        self.root = root
        self.quota = quota
        self.bucket_lease = lease
        self.read_only = root is not None and blobs is None and _is_read_only(root)
        """If true, locks and index are in memory; the index is copied or built when the store is opened."""
        self.locks = Locks(root) if root and not self.read_only else MemoryLocks()
        self.index = Index(root / "index.sqlite" if root and not self.read_only else None)
        self.raw_blobs = blobs or self._local("blobs")
        self.raw_records = records or self._local("records")
        self.blobs = self._guarded(self.raw_blobs)
        self.records = self._guarded(self.raw_records)
        try:
            self.locks.prepare()
        except OSError as error:
            raise from_os_error(error, root or "memory://") from error

    def readable(self, blob: Blob, kind: Kind) -> bool:
        """Whether an image or record is stored and valid."""
        return (self.size_of(blob) if kind == "image" else self.read_record(blob)) is not None

    def read_record(self, blob: Blob) -> tuple[Record, bytes] | None:
        """A record and its bytes, or None if it is missing or unreadable."""
        if blob.size > MAX_BYTES:
            return None
        try:
            body = self.records.get(blob.digest)
            record = parse_record(body)
            return (record, body) if record.canonical == body else None
        except (KeyError, Corrupt, Unreadable, InvalidArgument):
            return None

    def size_of(self, blob: Blob) -> tuple[int, int] | None:
        """Width and height of a stored image in pixels, or None if it is missing or unreadable."""
        try:
            return codec.size_of(self.blobs.get(blob.digest))
        except (KeyError, Corrupt, Unreadable, ImageRejected):
            return None

    def refuse_if_read_only(self) -> None:
        """Raise StoreReadOnly if this store is read-only, StoreBusy if another machine writes to it."""
        if self.read_only:
            raise read_only(self.root or "")
        if self.bucket_lease is not None:
            self.bucket_lease.check()

    def _local(self, kind: str) -> LocalBlobs:
        if self.root is None:
            raise ValueError(f"A store without a folder needs a blob store for {kind}.")
        return LocalBlobs(self.root / kind)

    def _guarded(self, blobs: BlobStore) -> BlobStore:
        verified = VerifiedBlobs(blobs)
        if self.read_only:
            return ReadOnlyBlobs(verified, str(self.root))
        return verified if self.quota is None else QuotaBlobs(verified, self.quota, self.index.used)


def _is_read_only(root: Path) -> bool:
    """Whether `root` contains a store without write permission."""
    folders = (root, root / "locks", root / "locks" / "leases", root / "locks" / "writers")
    try:
        if not any((root / name).is_dir() for name in ("blobs", "records")):
            return False
        return not all(_writable(folder) for folder in folders if folder.is_dir())
    except OSError:
        return False


def _writable(folder: Path) -> bool:
    effective = os.access in os.supports_effective_ids
    return os.access(folder, os.R_OK | os.W_OK | os.X_OK, effective_ids=effective)
