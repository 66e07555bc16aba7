"""Blobs, records and index of one store, kept in step. The write order lives here and nowhere else.

A blob is durable before anything names it, a record names only blobs that are there, the index names only
what is durable: so blob, then record, then index, and the other way round when something goes. Knows nothing
of pictures; `storage/store.py` is what callers use.
"""

import contextlib
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self, TypeVar

from storage import codec, recovery
from storage.blobs import Blob, BlobStore
from storage.components import Components
from storage.digest import Digest
from storage.errors import ImageNotFound, IndexDamaged, IndexReadOnly, StoreError
from storage.index import tables
from storage.records import Record

T = TypeVar("T")
ACCESS_RESOLUTION = timedelta(hours=1)
"""An access younger than this is not noted again: most reads then write nothing."""


@dataclass
class _Pending:
    """What is durable and not indexed yet."""

    images: dict[Digest, tuple[Blob, tuple[int, int]]] = field(default_factory=dict[Digest, Any])
    """With width and height in pixels."""
    records: dict[Digest, Record] = field(default_factory=dict[Digest, Record])


class Repository(Components):
    """One store's parts, and the few ways to change them together."""

    def __init__(
        self, root: Path | None, quota: int | None, blobs: BlobStore | None, records: BlobStore | None
    ) -> None:
        super().__init__(root, quota, blobs, records)
        self._registering = threading.Lock()
        self._deregister: weakref.finalize[[], Self] | None = None
        recovery.prepare_index(self)

    def query(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """What `question` finds in the index. Not to be called with a lock."""

        def asked() -> T:
            with self.index.reading() as db:
                return question(db)

        return self.with_index_repair(asked)

    def with_index_repair(self, work: Callable[[], T]) -> T:
        """`work`, once more if the index turned out to be damaged. Not to be called with a lock."""
        before = self.index.identity()
        try:
            return work()
        except (IndexDamaged, IndexReadOnly) as error:
            recovery.repair_index(self, before, error)
            return work()

    def put_image(self, png: bytes) -> Digest:
        """Store the bytes of a PNG durably and index them; its id."""

        def put() -> Digest:
            with self._writing() as pending:
                return self._put_image(png, pending)

        return self.with_index_repair(put)

    def put_record(self, record: Record) -> Digest:
        """Store a record durably and index it; the images it names are then known to be in use.

        Raises:
            ImageNotFound: it names an image that is not here.
        """

        def put() -> Digest:
            with self._writing() as pending:
                return self._put_record(record, pending)

        return self.with_index_repair(put)

    def put_made(self, pngs: Iterable[bytes], describe: Callable[[list[Digest]], Record]) -> Record:
        """Store PNGs and the record that `describe` makes of their ids, and index them together.

        If the record cannot be stored, the images are there all the same. Raises what `put_record` does.
        """
        given = list(pngs)

        def put() -> Record:
            with self._writing() as pending:
                record = describe([self._put_image(png, pending) for png in given])
                self._put_record(record, pending)
            return record

        return self.with_index_repair(put)

    def adopt(self, digest: Digest) -> bool:
        """Index a blob that is there and not indexed, as after a power cut. False if it is not there."""

        def adopt() -> bool:
            with self.locks.shared():
                blob = self.blobs.has(digest)
                size = self.size_of(blob) if blob else None
                if blob and size:
                    with self.index.writing() as db:
                        tables.add_image(db, blob, size)
                        tables.touch(db, [digest], time.time_ns())
                return size is not None

        return self.with_index_repair(adopt)

    def touch(self, digests: Iterable[Digest]) -> None:
        """Keep these from being collected for a while. A store that cannot be written still answers."""
        with contextlib.suppress(StoreError), self.locks.shared(), self.index.writing() as db:
            tables.touch(db, digests, time.time_ns())

    def register_writer(self) -> None:
        """Have the next start look for what was stored and not indexed, if this process dies before it signs
        out. Call it with the write lock."""
        with self._registering:
            if self._deregister is None or not self._deregister.alive:
                self._deregister = weakref.finalize(self, self.locks.register_writer())

    def close(self) -> None:
        """Sign out, and give the index's connections back. Both come again with the next use."""
        with self._registering:
            if self._deregister:
                self._deregister()
        self.index.close()

    def whole(self, body: bytes) -> bool:
        """Whether an indexed record, given as its bytes, and every image it made can be read."""
        outputs = tables.indexed_record(body).outputs
        if not self.query(lambda db: all(tables.has_image(db, image) for image in outputs)):
            return False
        try:
            self.records.get(Digest.of(body))
            for image in outputs:
                self.blobs.get(image)
        except (KeyError, StoreError):
            return False
        return True

    @contextlib.contextmanager
    def _writing(self) -> Generator["_Pending"]:
        """Share the write lock, as a writer who is missed if it dies; under a quota, one at a time.

        What became durable in the block is indexed after it, in one transaction, also if the block failed.
        """
        with (
            self.locks.shared(),
            self.locks.quota() if self.quota is not None else contextlib.nullcontext(),
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
            self._index(pending)  # the next put asks the index how much is used
        return blob.digest

    def _put_record(self, record: Record, pending: "_Pending") -> Digest:
        if named := [digest for digest in (*record.inputs, *record.outputs) if digest not in pending.images]:
            with self.index.reading() as db:
                missing = [digest for digest in named if not tables.has_image(db, digest)]
            if missing:
                raise ImageNotFound(f"The record names {missing[0]}, which is not stored.", "Store it first.")
        blob = self.records.put(record.canonical)
        pending.records[blob.digest] = record
        return blob.digest

    def _index(self, pending: "_Pending") -> None:
        """Index what is new; the images of a record count as asked for now."""
        if not (pending.images or pending.records):
            return
        asked_for = set(pending.images)
        with self.index.writing() as db:
            for digest, record in pending.records.items():  # first: then an image's words are indexed once
                tables.add_record(db, digest, record, record.canonical)
                asked_for.update(record.inputs, record.outputs)
            for blob, size in pending.images.values():
                tables.add_image(db, blob, size)
            tables.touch(db, asked_for, time.time_ns())
        pending.images.clear()
        pending.records.clear()
