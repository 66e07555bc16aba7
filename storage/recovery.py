"""The index made to say what blobs and records say: when a store is opened, after a crash, after damage."""

import contextlib
import itertools
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from storage import rows
from storage.blobs import Blob
from storage.digest import Digest
from storage.errors import (
    IndexDamaged,
    IndexReadOnly,
    IndexSuspect,
    InvalidArgument,
    StoreError,
    from_os_error,
)
from storage.index import Identity, Index
from storage.modes import close_up
from storage.parts import Kind, Parts
from storage.records import Record

Progress = Callable[[int, int], None]
"""Called with how many of how many are done."""
FOLLOWED_UMASK = 2
"""Up to this version of the index, what a store made was as open as the umask said."""
_RECORDS_FAULT = (
    ValueError,
    TypeError,
    OverflowError,
    RecursionError,
    InvalidArgument,
    sqlite3.InterfaceError,
)
"""What the index raises for a record that it cannot hold. `parse_record` refuses all of those we know of."""
_log = logging.getLogger(__name__)


def ticking(progress: Progress | None, total: int) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """What reports each item, after it was used, as one of `total` done; several loops may share it."""
    done = itertools.count(1)

    def each(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            yield item
            if progress:
                progress(next(done), total)

    return each


def ready_index(parts: Parts) -> None:
    """Make the index usable: build it if it is new, old, broken or not ours, complete it after a crash."""
    if parts.read_only:
        _copy_index(parts)
    elif parts.index.state() != "ready":
        with parts.locks.alone():
            if (state := parts.index.state()) == "ready":  # another process was faster
                return
            if state == "broken":
                _set_index_aside(parts, None)
            elif parts.root and 0 < parts.index.version() <= FOLLOWED_UMASK:
                close_up(parts.root)
            rebuild(parts)
    elif parts.locks.deserted():
        with parts.locks.alone():
            if parts.locks.deserted():  # and not just signing in
                _complete(parts)


def _copy_index(parts: Parts) -> None:
    """Have in memory what the index of a store that may only be read says, as far as it is true."""
    assert parts.root is not None
    parts.index.copy(parts.root / "index.sqlite")
    if parts.index.state() == "ready":
        _complete(parts)
        forget_missing(parts)
    else:
        parts.index = Index(None)
        rebuild(parts)


def _complete(parts: Parts) -> None:
    try:
        reconcile(parts)
    except IndexDamaged as error:
        _set_index_aside(parts, error)
        rebuild(parts)


def heal(parts: Parts, before: Identity, error: IndexDamaged | IndexReadOnly) -> None:
    """Build the index again, unless another process has, or it is not the index that is wrong.

    `before` tells which file was used when `error` was met. Not to be called with a lock.
    """
    with parts.locks.alone():
        state = parts.index.state()
        certain = not isinstance(error, IndexSuspect | IndexReadOnly) and parts.index.identity() == before
        if state == "ready" and not certain:
            return
        if state != "old":
            _set_index_aside(parts, error)
        rebuild(parts)


def _set_index_aside(parts: Parts, error: StoreError | None) -> None:
    reason = error.message if error else "It is damaged, or not an index of this program."
    if parts.root is None or parts.read_only:
        parts.index = Index(None)
        place = None
    else:
        try:
            place = parts.index.set_aside(parts.root / "quarantine")
        except OSError as failure:
            raise from_os_error(failure, parts.root) from failure
    where = f"; what was there is in quarantine/{place.name}" if place else ""
    _log.warning("The index of the image store is built again: %s%s", reason, where)


def reconcile(parts: Parts) -> int:
    """Index what was stored and not indexed, and sweep up what killed writers left half written.

    How many were indexed. Call it with every writer kept out.
    """
    _sweep(parts)
    with parts.index.reading() as db:
        images, records = rows.known_images(db), rows.known_records(db)
    blobs = [blob for blob in parts.blobs.list() if blob.digest not in images]
    bodies = [blob for blob in parts.records.list() if blob.digest not in records]
    with parts.index.writing() as db:
        wrong = _fill(parts, db, blobs, bodies)
    parts.locks.bury()
    return len(blobs) + len(bodies) - len(wrong)


def rebuild(parts: Parts, progress: Progress | None = None) -> list[tuple[Blob, Kind]]:
    """Build the index again from blobs and records; those that cannot be read, and are left out.

    Call it with every writer kept out.
    """
    blobs = sorted(parts.blobs.list(), key=lambda blob: (blob.created, blob.digest))
    bodies = list(parts.records.list())
    wrong: list[tuple[Blob, Kind]] = []

    def fill(db: sqlite3.Connection) -> None:
        wrong[:] = _fill(parts, db, blobs, bodies, progress)
        # What was never asked for in this index counts as asked for now: a rebuild must not make a
        # collection forget.
        rows.touch_untouched(db, time.time_ns())

    try:
        parts.index.rebuild(fill)
    except IndexDamaged as error:  # beyond emptying its tables
        _set_index_aside(parts, error)
        parts.index.rebuild(fill)
    parts.locks.bury()
    return wrong


def forget_missing(parts: Parts) -> set[Digest]:
    """Forget images and records that the index names and that are not there. Call it alone."""
    with parts.index.reading() as db:
        images, records = rows.known_images(db), rows.known_records(db)
    lost_images = images - {blob.digest for blob in parts.blobs.list()}
    lost_records = records - {blob.digest for blob in parts.records.list()}
    if lost_images or lost_records:
        with parts.index.writing() as db:
            rows.remove_records(db, lost_records)
            rows.remove_images(db, lost_images)
    return lost_images | lost_records


def _fill(
    parts: Parts,
    db: sqlite3.Connection,
    blobs: Sequence[Blob],
    records: Sequence[Blob],
    progress: Progress | None = None,
) -> list[tuple[Blob, Kind]]:
    """Index these; those that cannot be."""
    wrong: list[tuple[Blob, Kind]] = []
    tick = ticking(progress, len(blobs) + len(records))
    for blob in tick(blobs):
        if size := parts.size_of(blob):
            rows.add_image(db, blob, size)
        else:
            wrong.append((blob, "image"))
    read = [(blob, parts.read_record(blob)) for blob in tick(records)]
    wrong.extend((blob, "record") for blob, found in read if found is None)
    right = [(blob, *found) for blob, found in read if found is not None]
    for blob, record, body in sorted(right, key=lambda item: (item[1].time, item[0].digest)):
        if not _add_record(db, blob.digest, record, body):
            wrong.append((blob, "record"))
    return wrong


def _add_record(db: sqlite3.Connection, digest: Digest, record: Record, body: bytes) -> bool:
    """Index a record; False, and as if nothing had been, if the index cannot hold it."""
    db.execute("SAVEPOINT record")
    try:
        rows.add_record(db, digest, record, body)
    except (InvalidArgument, *_RECORDS_FAULT):
        db.execute("ROLLBACK TO record")
        return False
    db.execute("RELEASE record")
    return True


def _sweep(parts: Parts) -> None:
    if parts.root is None or parts.read_only:
        return
    for path in (parts.root / "tmp").glob("*"):
        with contextlib.suppress(OSError):  # it is not ours to remove, and in nobody's way
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
