"""Brings the index in line with blobs and records: on opening a store, after a crash, after damage."""

import contextlib
import itertools
import logging
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from storage.blobs import Blob
from storage.components import Components, Kind
from storage.digest import Digest
from storage.errors import (
    IndexDamaged,
    IndexReadOnly,
    IndexSuspect,
    InvalidArgument,
    StoreError,
    from_os_error,
)
from storage.index import tables
from storage.index.database import Identity, Index
from storage.permissions import restrict_to_owner
from storage.records import Record

Progress = Callable[[int, int], None]
"""Called with the number of items done and the total number."""
FOLLOWED_UMASK = 2
"""Last index version whose stores had file modes from the umask."""
_RECORDS_FAULT = (
    ValueError,
    TypeError,
    OverflowError,
    RecursionError,
    InvalidArgument,
    sqlite3.InterfaceError,
)
"""Errors of the index for a record that it cannot represent. `parse_record` rejects all known cases."""
_log = logging.getLogger(__name__)


def reporting(progress: Progress | None, total: int) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """Wrap iterables to report each item after use, as one of `total`; several loops may share it."""
    done = itertools.count(1)

    def each(items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            yield item
            if progress:
                progress(next(done), total)

    return each


def prepare_index(components: Components) -> None:
    """Build the index if it is new, outdated, damaged or foreign; complete it after a crash."""
    if components.read_only:
        _copy_index(components)
    elif components.index.state() != "ready":
        with components.locks.exclusive():
            if (state := components.index.state()) == "ready":  # another process was faster
                return
            if state == "broken":
                _set_index_aside(components, None)
            elif components.root and 0 < components.index.version() <= FOLLOWED_UMASK:
                restrict_to_owner(components.root)
            rebuild(components)
    elif components.locks.has_dead_writer():
        with components.locks.exclusive():
            if components.locks.has_dead_writer():  # not merely registering when first seen
                _complete(components)


def _copy_index(components: Components) -> None:
    """Copy the index of a read-only store into memory and bring it in line with the files."""
    assert components.root is not None
    components.index.copy(components.root / "index.sqlite")
    if components.index.state() == "ready":
        _complete(components)
        forget_missing(components)
    else:
        components.index = Index(None)
        rebuild(components)


def _complete(components: Components) -> None:
    try:
        reconcile(components)
    except IndexDamaged as error:
        _set_index_aside(components, error)
        rebuild(components)


def repair_index(components: Components, before: Identity, error: IndexDamaged | IndexReadOnly) -> None:
    """Rebuild the index, unless another process already has, or the index is not the cause of `error`.

    `before` identifies the index file in use when `error` occurred. The caller must not hold a lock.
    """
    with components.locks.exclusive():
        state = components.index.state()
        certain = (
            not isinstance(error, IndexSuspect | IndexReadOnly) and components.index.identity() == before
        )
        if state == "ready" and not certain:
            return
        if state != "old":
            _set_index_aside(components, error)
        rebuild(components)


def _set_index_aside(components: Components, error: StoreError | None) -> None:
    reason = error.message if error else "It is damaged or was not created by this program."
    if components.root is None or components.read_only:
        components.index = Index(None)
        place = None
    else:
        try:
            place = components.index.set_aside(components.root / "quarantine")
        except OSError as failure:
            raise from_os_error(failure, components.root) from failure
    where = f"; the previous file is in quarantine/{place.name}" if place else ""
    _log.warning("Rebuilding the index of the image store: %s%s", reason, where)


def reconcile(components: Components) -> int:
    """Index files that are missing in the index and remove partial files of dead writers.

    Returns the number of files indexed. Requires the exclusive lock.
    """
    _clear_staging(components)
    with components.index.reading() as db:
        images, records = tables.known_images(db), tables.known_records(db)
    # Records first: of a record that another machine has just stored, the images are found then, too.
    bodies = [blob for blob in components.records.list() if blob.digest not in records]
    blobs = [blob for blob in components.blobs.list() if blob.digest not in images]
    with components.index.writing() as db:
        wrong = _fill(components, db, blobs, bodies)
    components.locks.forget_dead_writers()
    return len(blobs) + len(bodies) - len(wrong)


def rebuild(components: Components, progress: Progress | None = None) -> list[tuple[Blob, Kind]]:
    """Rebuild the index from blobs and records; returns the unreadable ones, which are left out.

    Requires the exclusive lock.
    """
    blobs = sorted(components.blobs.list(), key=lambda blob: (blob.created, blob.digest))
    bodies = list(components.records.list())
    wrong: list[tuple[Blob, Kind]] = []

    def fill(db: sqlite3.Connection) -> None:
        wrong[:] = _fill(components, db, blobs, bodies, progress)
        # Images without a recorded access count as accessed now: otherwise a collection after a rebuild
        # would delete images that are in use.
        tables.touch_untouched(db, time.time_ns())

    try:
        components.index.rebuild(fill)
    except IndexDamaged as error:  # too damaged to empty its tables
        _set_index_aside(components, error)
        components.index.rebuild(fill)
    components.locks.forget_dead_writers()
    return wrong


def forget_missing(components: Components) -> set[Digest]:
    """Remove index rows whose file is missing; returns their ids. Requires the exclusive lock."""
    with components.index.reading() as db:
        images, records = tables.known_images(db), tables.known_records(db)
    lost_images = images - {blob.digest for blob in components.blobs.list()}
    lost_records = records - {blob.digest for blob in components.records.list()}
    if lost_images or lost_records:
        with components.index.writing() as db:
            tables.remove_records(db, lost_records)
            tables.remove_images(db, lost_images)
    return lost_images | lost_records


def follow(components: Components) -> None:
    """Bring the index in line with what another machine stored and deleted. Takes the exclusive lock.

    All images count as accessed now: when that machine accessed which, this one does not know.
    """
    with components.locks.exclusive():
        _complete(components)
        forget_missing(components)
        with components.index.writing() as db:
            tables.touch(db, tables.known_images(db), time.time_ns())


def _fill(
    components: Components,
    db: sqlite3.Connection,
    blobs: Sequence[Blob],
    records: Sequence[Blob],
    progress: Progress | None = None,
) -> list[tuple[Blob, Kind]]:
    """Index these blobs and records; returns those that are invalid."""
    wrong: list[tuple[Blob, Kind]] = []
    tick = reporting(progress, len(blobs) + len(records))
    for blob in tick(blobs):
        if size := components.size_of(blob):
            tables.add_image(db, blob, size)
        else:
            wrong.append((blob, "image"))
    read = [(blob, components.read_record(blob)) for blob in tick(records)]
    wrong.extend((blob, "record") for blob, found in read if found is None)
    right = [(blob, *found) for blob, found in read if found is not None]
    for blob, record, body in sorted(right, key=lambda item: (item[1].time, item[0].digest)):
        if not _add_record(db, blob.digest, record, body):
            wrong.append((blob, "record"))
    return wrong


def _add_record(db: sqlite3.Connection, digest: Digest, record: Record, body: bytes) -> bool:
    """Index a record; False, without any change, if the index cannot represent it."""
    db.execute("SAVEPOINT record")
    try:
        tables.add_record(db, digest, record, body)
    except (InvalidArgument, *_RECORDS_FAULT):
        db.execute("ROLLBACK TO record")
        return False
    db.execute("RELEASE record")
    return True


def _clear_staging(components: Components) -> None:
    if components.root is None or components.read_only:
        return
    for path in (components.root / "tmp").glob("*"):
        with contextlib.suppress(OSError):  # owned by another user; harmless
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
