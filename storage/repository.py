"""Blobs, records and index of one store, kept consistent. The only place that defines the write order.

Invariants: a blob is durable before anything refers to it, a record refers only to stored blobs, and the
index refers only to durable files. So the write order is blob, record, index; deletion uses the reverse
order. Callers use `storage/store.py`.
"""

import contextlib
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

from storage import codec, recovery
from storage.blobs import Blob, BlobStore
from storage.components import Components
from storage.digest import Digest
from storage.errors import (
    ImageNotFound,
    IndexDamaged,
    IndexReadOnly,
    OverQuota,
    StoreError,
    image_not_found,
)
from storage.index import owners, search, tables
from storage.index.tables import ImageRow
from storage.index.texts import EVERYONE, indexed_record
from storage.lease import Lease
from storage.records import Record

T = TypeVar("T")
ACCESS_RESOLUTION = timedelta(hours=1)
"""Minimum time between two recorded accesses of one image, so that most reads do not write."""
VERIFIED_S = 600.0
"""Seconds for which an image counts as readable for an equal request if its file has not changed since."""
MAX_VERIFIED = 10_000


@dataclass(frozen=True, slots=True)
class Allowance:
    """Whose a write is, and the most bytes that images and records of this principal may take."""

    principal: str
    bytes: int


@dataclass
class _Pending:
    """Images and records that are durable but not yet in the index."""

    images: dict[Digest, tuple[Blob, tuple[int, int]]] = field(default_factory=dict[Digest, Any])
    """The blob of each image, and its width and height in pixels."""
    records: dict[Digest, Record] = field(default_factory=dict[Digest, Record])


class Repository(Components):
    """The components of one store and the operations that change them together."""

    def __init__(
        self,
        root: Path | None,
        quota: int | None,
        blobs: BlobStore | None,
        records: BlobStore | None,
        lease: Lease | None = None,
    ) -> None:
        super().__init__(root, quota, blobs, records, lease)
        self._registering = threading.Lock()
        self._verified: dict[Digest, tuple[Blob | None, float]] = {}
        self._deregister: weakref.finalize[[], Self] | None = None
        recovery.prepare_index(self)
        if lease is not None:
            lease.hold(lambda: recovery.follow(self))

    def query(self, statement: Callable[[sqlite3.Connection], T]) -> T:
        """The result of `statement` in a read transaction. The caller must not hold a lock."""

        def read() -> T:
            with self.index.reading() as db:
                return statement(db)

        return self.with_index_repair(read)

    def with_index_repair(self, work: Callable[[], T]) -> T:
        """The result of `work`, retried once after an index repair. The caller must not hold a lock."""
        before = self.index.identity()
        try:
            return work()
        except (IndexDamaged, IndexReadOnly) as error:
            recovery.repair_index(self, before, error)
            return work()

    def put_image(self, png: bytes) -> Digest:
        """Store the bytes of a PNG durably and index them; its id. Without a record it is nobody's."""

        def put() -> Digest:
            with self._writing() as pending:
                return self._put_image(png, pending)

        return self.with_index_repair(put)

    def put_record(self, record: Record, allowance: Allowance | None = None) -> Digest:
        """Store a record durably and index it, as an access to its images; returns its id.

        Raises:
            ImageNotFound: the record refers to an image that is not stored.
            OverQuota: the record does not fit into the allowance.
        """

        def put() -> Digest:
            with self._writing(allowance) as pending:
                self.refuse_if_over(allowance, len(record.canonical))
                return self._put_record(record, pending)

        return self.with_index_repair(put)

    def put_made(
        self,
        pngs: Iterable[bytes],
        describe: Callable[[list[Digest]], Record],
        allowance: Allowance | None = None,
    ) -> Record:
        """Store PNGs and the record that `describe` returns for their ids, indexed in one transaction.

        If storing the record fails, the images may remain stored. Raises as `put_record`.
        """
        given = list(pngs)

        def put() -> Record:
            with self._writing(allowance) as pending:
                self.refuse_if_over(allowance, sum(map(len, given)))
                record = describe([self._put_image(png, pending) for png in given])
                self.refuse_if_over(allowance, sum(map(len, given)) + len(record.canonical))
                self._put_record(record, pending)
            return record

        return self.with_index_repair(put)

    def refuse_if_over(self, allowance: Allowance | None, more: int) -> None:
        """Raise OverQuota if `more` bytes do not fit into what a principal may store."""
        if allowance is None:
            return
        with self.index.reading() as db:
            used = owners.totals(db, allowance.principal)[1]
        if used + more > allowance.bytes:
            raise OverQuota(
                f"Your images and records take {used:,} of the {allowance.bytes:,} bytes that each user may "
                f"store; this needs {more:,} more. Nothing was stored.",
                "Ask the host to run `omnigen2-mcp store gc`, or to allow more with --max-stored-bytes.",
            )

    def find(self, digits: str, viewer: str = EVERYONE) -> list[ImageRow]:
        """Up to two images whose ids begin with these hex digits; two mean that the prefix is ambiguous.

        For a complete id, a stored image that is missing in the index is indexed first; but not for a
        principal, who could tell from the time it takes that somebody else has the image.
        """
        found = self.query(lambda db: search.images_with_prefix(db, digits, viewer))
        if viewer != EVERYONE:
            return found
        if not found and len(digits) == 64 and self._index_existing(Digest(bytes.fromhex(digits))):
            found = self.query(lambda db: search.images_with_prefix(db, digits))
        return found

    def lease(self, digests: Sequence[Digest], stack: contextlib.ExitStack) -> list[ImageRow]:
        """The rows of images, protected from collection until `stack` is closed.

        Raises:
            ImageNotFound: one of them is not stored.
        """
        with self.locks.shared():
            with self.index.reading() as db:
                found = [search.images_with_prefix(db, digest.hex) for digest in digests]
            if not all(found):
                raise image_not_found(digests[found.index([])])
            stack.enter_context(self.locks.lease(digests))
        return [row for (row,) in found]

    def _index_existing(self, digest: Digest) -> bool:
        """Index a stored blob missing in the index, as after a power cut. False if it is not stored."""

        def index() -> bool:
            with self.locks.shared():
                blob = self.blobs.has(digest)
                size = self.size_of(blob) if blob else None
                if blob and size:
                    with self.index.writing() as db:
                        tables.add_image(db, blob, size)
                        tables.touch(db, [digest], time.time_ns())
                return size is not None

        return self.with_index_repair(index)

    def touch(self, digests: Iterable[Digest]) -> None:
        """Record an access to these images; no error if the store cannot be written."""
        with contextlib.suppress(StoreError), self.locks.shared(), self.index.writing() as db:
            tables.touch(db, digests, time.time_ns())

    def note_access(self, digest: Digest) -> None:
        """Record an access to an image, unless one within `ACCESS_RESOLUTION` is recorded."""
        stale = time.time_ns() - round(ACCESS_RESOLUTION.total_seconds() * 1e9)
        if self.query(lambda db: tables.last_touched(db, digest)) < stale:
            self.touch([digest])

    def register_writer(self) -> None:
        """Register this process as a writer, once, until `close` or the end of this object.

        If the process dies before, the next process to open the store scans it for unindexed files. Requires
        the write lock.
        """
        with self._registering:
            if self._deregister is None or not self._deregister.alive:
                self._deregister = weakref.finalize(self, self.locks.register_writer())

    def close(self) -> None:
        """Deregister as a writer, give back the lease, close the index; the next use opens them again."""
        with self._registering:
            if self._deregister:
                self._deregister()
        if self.bucket_lease is not None:
            self.bucket_lease.release()
        self.index.close()

    def is_readable(self, body: bytes) -> bool:
        """Whether an indexed record, given as its bytes, and all its output images can be read."""
        outputs = indexed_record(body).outputs
        if not self.query(lambda db: all(tables.has_image(db, image) for image in outputs)):
            return False
        try:
            self.records.get(Digest.of(body))
            for image in outputs:
                self._verify(image)
        except (KeyError, StoreError):
            return False
        return True

    def _verify(self, image: Digest) -> None:
        """Read an image and discard it, unless that was done within `VERIFIED_S` and its file is the same.

        Raises:
            KeyError, StoreError: it cannot be read.
        """
        now, blob = time.monotonic(), self.blobs.has(image)
        before, since = self._verified.get(image, (None, 0.0))
        if before != blob or now > since + VERIFIED_S:
            self.blobs.get(image)
            if len(self._verified) >= MAX_VERIFIED:
                self._verified.clear()
            self._verified[image] = blob, now

    @contextlib.contextmanager
    def _writing(self, allowance: Allowance | None = None) -> Generator["_Pending"]:
        """Hold the shared write lock as a registered writer; with a quota, also the exclusive quota lock.

        On exit, even after an exception, everything stored in the block is indexed in one transaction.
        """
        with (
            self.locks.shared(),
            self.locks.quota() if self.quota is not None or allowance else contextlib.nullcontext(),
        ):
            self.register_writer()
            pending = _Pending()
            try:
                yield pending
            finally:
                self._index(pending)

    def _put_image(self, png: bytes, pending: "_Pending") -> Digest:
        size = codec.size_of(png)
        blob = self.blobs.put(png)
        pending.images[blob.digest] = (blob, size)
        if self.quota is not None:
            self._index(pending)  # the quota check of the next put reads the index
        return blob.digest

    def _put_record(self, record: Record, pending: "_Pending") -> Digest:
        if named := [digest for digest in (*record.inputs, *record.outputs) if digest not in pending.images]:
            with self.index.reading() as db:
                missing = [digest for digest in named if not tables.has_image(db, digest)]
            if missing:
                raise ImageNotFound(
                    f"The record refers to {missing[0]}, which is not stored.", "Store it first."
                )
        blob = self.records.put(record.canonical)
        pending.records[blob.digest] = record
        return blob.digest

    def _index(self, pending: "_Pending") -> None:
        """Index pending images and records, as an access to all images involved."""
        if not (pending.images or pending.records):
            return
        accessed = set(pending.images)
        with self.index.writing() as db:
            for digest, record in pending.records.items():  # first, so that each image's text is indexed once
                tables.add_record(db, digest, record, record.canonical)
                accessed.update(record.inputs, record.outputs)
            for blob, size in pending.images.values():
                tables.add_image(db, blob, size)
            tables.touch(db, accessed, time.time_ns())
        pending.images.clear()
        pending.records.clear()
