"""Blobs, records and index of one store, kept in step. The write order lives here and nowhere else.

A blob is durable before anything names it, a record names only blobs that are there, the index names only
what is durable: so blob, then record, then index, and the other way round when something goes. Knows nothing
of pictures; `storage/store.py` is what callers use.
"""

import contextlib
import itertools
import shutil
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from storage import codec, rows
from storage.blobs import Blob, BlobStore, LocalBlobs
from storage.digest import Digest
from storage.errors import (
    Corrupt,
    ImageNotFound,
    ImageRejected,
    IndexDamaged,
    InvalidArgument,
    StoreError,
    from_os_error,
)
from storage.index import Index
from storage.locks import Locks, MemoryLocks
from storage.modes import close_up
from storage.policies import QuotaBlobs, VerifiedBlobs
from storage.records import Record, parse_record

FOLLOWED_UMASK = 2
"""Up to this version of the index, what a store made was as open as the umask said."""
Progress = Callable[[int, int], None]
"""Called with how many of how many are done."""
NOTED_EVERY = timedelta(hours=1)
"""An access younger than this is not noted again: most reads then write nothing."""


def ticking(progress: Progress | None, total: int) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """What reports each item, after it was used, as one of `total` done; several loops may share it."""
    done = itertools.count(1)

    def each(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            yield item
            if progress:
                progress(next(done), total)

    return each


@dataclass
class _News:
    """What is durable and not indexed yet."""

    images: dict[Digest, tuple[Blob, tuple[int, int]]] = field(default_factory=dict[Digest, Any])
    """With width and height in pixels."""
    records: dict[Digest, Record] = field(default_factory=dict[Digest, Record])


class Shelf:
    """One store's parts, and the few ways to change them together."""

    def __init__(
        self, root: Path | None, quota: int | None, blobs: BlobStore | None, records: BlobStore | None
    ) -> None:
        self.root = root
        self.quota = quota
        self.locks = Locks(root) if root else MemoryLocks()
        self._signing = threading.Lock()
        self._sign_out: weakref.finalize[[], Self] | None = None
        self.index = Index(root / "index.sqlite" if root else None)
        self.raw_blobs = blobs or self._local("blobs")
        self.raw_records = records or self._local("records")
        self.blobs = self._guarded(self.raw_blobs)
        self.records = self._guarded(self.raw_records)
        try:
            self.locks.prepare()
        except OSError as error:
            raise from_os_error(error, root or "memory://") from error
        self._ready_index()

    def put_image(self, png: bytes) -> Digest:
        """Store the bytes of a PNG durably and index them; its id."""
        with self._putting() as news:
            return self._put_image(png, news)

    def put_record(self, record: Record) -> Digest:
        """Store a record durably and index it; the images it names are then known to be in use.

        Raises:
            ImageNotFound: it names an image that is not here.
        """
        with self._putting() as news:
            return self._put_record(record, news)

    def put_made(self, pngs: Iterable[bytes], describe: Callable[[list[Digest]], Record]) -> Record:
        """Store PNGs and the record that `describe` makes of their ids, and index them together.

        If the record cannot be stored, the images are there all the same. Raises what `put_record` does.
        """
        with self._putting() as news:
            record = describe([self._put_image(png, news) for png in pngs])
            self._put_record(record, news)
        return record

    def adopt(self, digest: Digest) -> bool:
        """Index a blob that is there and not indexed, as after a power cut. False if it is not there."""
        with self.locks.writing():
            blob = self.blobs.has(digest)
            if blob is None:
                return False
            size = self.size_of(blob)
            if size:
                with self.index.writing() as db:
                    rows.add_image(db, blob, size)
                    rows.touch(db, [digest], time.time_ns())
            return size is not None

    def touch(self, digests: Iterable[Digest]) -> None:
        """Keep these from being collected for a while. A store that cannot be written still answers."""
        with contextlib.suppress(StoreError), self.locks.writing(), self.index.writing() as db:
            rows.touch(db, digests, time.time_ns())

    def reconcile(self) -> int:
        """Index what was stored and not indexed, and sweep up what killed writers left half written.

        How many were indexed. Call it with every writer kept out.
        """
        self._sweep()
        with self.index.reading() as db:
            images, records = rows.known_images(db), rows.known_records(db)
        blobs = [blob for blob in self.blobs.list() if blob.digest not in images]
        bodies = [blob.digest for blob in self.records.list() if blob.digest not in records]
        with self.index.writing() as db:
            added = self._fill(db, blobs, bodies)
        self.locks.bury()
        return added

    def rebuild(self, progress: Progress | None = None) -> None:
        """Build the index again from blobs and records. Call it with every writer kept out."""
        blobs = sorted(self.blobs.list(), key=lambda blob: (blob.created, blob.digest))
        bodies = [blob.digest for blob in self.records.list()]

        def fill(db: sqlite3.Connection) -> None:
            self._fill(db, blobs, bodies, progress)
            # What was never asked for in this index counts as asked for now: a rebuild must not make a
            # collection forget.
            rows.touch_untouched(db, time.time_ns())

        try:
            self.index.rebuild(fill)
        except IndexDamaged:  # beyond emptying its tables
            self.index.forget()
            self.index.rebuild(fill)
        self.locks.bury()

    def sign_in(self) -> None:
        """Have the next start look for what was stored and not indexed, if this process dies before it signs
        out. Call it with the write lock."""
        with self._signing:
            if self._sign_out is None or not self._sign_out.alive:
                self._sign_out = weakref.finalize(self, self.locks.enlist())

    def close(self) -> None:
        """Sign out, and give the index's connections back. Both come again with the next use."""
        with self._signing:
            if self._sign_out:
                self._sign_out()
        self.index.close()

    def read_record(self, digest: Digest) -> tuple[Record, bytes] | None:
        """A record and its bytes, or None if it is not there or not readable."""
        try:
            body = self.records.get(digest)
            record = parse_record(body)
            return (record, body) if record.canonical == body else None
        except (KeyError, Corrupt, InvalidArgument):
            return None

    def whole(self, body: bytes) -> bool:
        """Whether an indexed record, given as its bytes, and every image it made can be read."""
        outputs = parse_record(body).outputs
        with self.index.reading() as db:
            if not all(rows.has_image(db, image) for image in outputs):
                return False
        try:
            self.records.get(Digest.of(body))
            for image in outputs:
                self.blobs.get(image)
        except (KeyError, StoreError):
            return False
        return True

    def size_of(self, blob: Blob) -> tuple[int, int] | None:
        """Width and height of a stored image, or None if it is not there or not readable."""
        try:
            return codec.size_of(self.blobs.get(blob.digest))
        except (KeyError, Corrupt, ImageRejected):
            return None

    def _fill(
        self,
        db: sqlite3.Connection,
        blobs: Sequence[Blob],
        records: Sequence[Digest],
        progress: Progress | None = None,
    ) -> int:
        added = 0
        tick = ticking(progress, len(blobs) + len(records))
        for blob in tick(blobs):
            if size := self.size_of(blob):
                rows.add_image(db, blob, size)
                added += 1
        read = [(digest, found) for digest in tick(records) if (found := self.read_record(digest))]
        for digest, (record, body) in sorted(read, key=lambda item: (item[1][0].time, item[0])):
            rows.add_record(db, digest, record, body)
            added += 1
        return added

    @contextlib.contextmanager
    def _putting(self) -> Generator["_News"]:
        """Share the write lock, as a writer who is missed if it dies; under a quota, one at a time.

        What became durable in the block is indexed after it, in one transaction, also if the block failed.
        """
        with (
            self.locks.writing(),
            self.locks.filling() if self.quota is not None else contextlib.nullcontext(),
        ):
            self.sign_in()
            news = _News()
            try:
                yield news
            finally:
                self._index(news)

    def _put_image(self, png: bytes, news: "_News") -> Digest:
        size = codec.size_of(png)
        blob = self.blobs.put(png)
        news.images[blob.digest] = (blob, size)
        if self.quota is not None:
            self._index(news)  # the next put asks the index how much is used
        return blob.digest

    def _put_record(self, record: Record, news: "_News") -> Digest:
        if named := [digest for digest in (*record.inputs, *record.outputs) if digest not in news.images]:
            with self.index.reading() as db:
                missing = [digest for digest in named if not rows.has_image(db, digest)]
            if missing:
                raise ImageNotFound(f"The record names {missing[0]}, which is not stored.", "Store it first.")
        blob = self.records.put(record.canonical)
        news.records[blob.digest] = record
        return blob.digest

    def _index(self, news: "_News") -> None:
        """Index what is new; the images of a record count as asked for now."""
        if not (news.images or news.records):
            return
        asked_for = set(news.images)
        with self.index.writing() as db:
            for digest, record in news.records.items():  # first: then an image's words are indexed once
                rows.add_record(db, digest, record, record.canonical)
                asked_for.update(record.inputs, record.outputs)
            for blob, size in news.images.values():
                rows.add_image(db, blob, size)
            rows.touch(db, asked_for, time.time_ns())
        news.images.clear()
        news.records.clear()

    def _local(self, kind: str) -> LocalBlobs:
        if self.root is None:
            raise ValueError(f"{kind}: a store without a folder must be told where they lie")
        return LocalBlobs(self.root / kind)

    def _sweep(self) -> None:
        if self.root is None:
            return
        try:
            for path in self.root.glob("tmp/*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError as error:
            raise from_os_error(error, self.root) from error

    def _guarded(self, blobs: BlobStore) -> BlobStore:
        verified = VerifiedBlobs(blobs)
        return verified if self.quota is None else QuotaBlobs(verified, self.quota, self.index.used)

    def _ready_index(self) -> None:
        """Make the index usable: build it if it is new, old or broken, complete it after a crash."""
        state = self.index.state()
        if state != "ready":
            with self.locks.alone():
                if self.index.state() == "broken":
                    self.index.forget()
                if self.index.state() == "old":  # unless another process was faster
                    if self.root and 0 < self.index.version() <= FOLLOWED_UMASK:
                        close_up(self.root)
                    self.rebuild()
        elif self.locks.deserted():
            with self.locks.alone():
                if self.locks.deserted():  # and not just signing in
                    self.reconcile()
