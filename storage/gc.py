"""Collection: delete images that nothing keeps, in an order in which a crash loses nothing that is kept.

Marks from labels, pins, running jobs, recent accesses and recent puts, and follows the records: a kept image
keeps the records that made it, a kept record keeps every image it names. So a lineage is kept whole, and a
record never names an image that is gone.
"""

import contextlib
import sqlite3
import time
from collections import defaultdict
from dataclasses import dataclass
from datetime import timedelta

from storage.digest import Digest
from storage.errors import StoreFull
from storage.index import tables
from storage.recovery import reconcile
from storage.repository import ACCESS_RESOLUTION, Repository


@dataclass(frozen=True, slots=True)
class Collected:
    """What was deleted, or would be."""

    images: tuple[Digest, ...]
    records: tuple[Digest, ...]
    bytes: int
    """Room won, of images and records."""
    kept: int
    """Images that stay."""
    dry_run: bool


def collect(
    repository: Repository, *, dry_run: bool, grace: timedelta, keep_accessed: timedelta
) -> Collected:
    """Delete what nothing keeps; see `ImageStore.collect`. Writers wait meanwhile."""
    if not dry_run:
        repository.refuse_if_read_only()
    now = time.time_ns()
    with repository.locks.maintenance("collect"), repository.locks.exclusive():
        with contextlib.suppress(StoreFull):  # what cannot be indexed is not deleted either
            reconcile(repository)
        leased = repository.locks.leased_images()
        # Accesses are noted this seldom: what looks unused for so long may have been used just now.
        unnoticed = ACCESS_RESOLUTION if keep_accessed else timedelta(0)
        with repository.index.reading() as db:
            images = tables.known_images(db)
            accessed_since = now - _nanoseconds(keep_accessed + unnoticed)
            roots = _roots(db, now - _nanoseconds(grace), accessed_since) | leased
            dead = images - _reached(db, roots)
            records = _speaking_of(db, dead)
            size = tables.size_of(db, dead, records)
        if not dry_run:
            _delete(repository, dead, records)
    return Collected(tuple(sorted(dead)), tuple(sorted(records)), size, len(images) - len(dead), dry_run)


def _roots(db: sqlite3.Connection, stored_since: int, accessed_since: int) -> set[Digest]:
    statement = """SELECT image FROM notes WHERE value IS NOT NULL
        UNION SELECT digest FROM images WHERE created >= ? UNION SELECT image FROM accesses WHERE time >= ?"""
    return {Digest(raw) for (raw,) in db.execute(statement, (stored_since, accessed_since))}


def _reached(db: sqlite3.Connection, roots: set[Digest]) -> set[Digest]:
    makers: defaultdict[bytes, list[int]] = defaultdict(list)
    named: defaultdict[int, list[bytes]] = defaultdict(list)
    for record, output, image in db.execute("SELECT record, output, image FROM edges"):
        named[record].append(image)
        if output:
            makers[image].append(record)
    reached = {digest.raw for digest in roots}
    open_ends = list(reached)
    followed: set[int] = set()
    while open_ends:
        for record in makers[open_ends.pop()]:
            if record not in followed:
                followed.add(record)
                fresh = set(named[record]) - reached
                reached |= fresh
                open_ends += fresh
    return {Digest(raw) for raw in reached}


def _speaking_of(db: sqlite3.Connection, images: set[Digest]) -> set[Digest]:
    statement = "SELECT DISTINCT digest FROM edges JOIN records ON key = record WHERE image = ?"
    return {Digest(raw) for image in images for (raw,) in db.execute(statement, (image.raw,))}


def _delete(repository: Repository, images: set[Digest], records: set[Digest]) -> None:
    try:
        _forget(repository, images, records)
    except StoreFull:
        # Not even room to say so: make some first. If we die here, `verify` reports what is gone.
        _remove(repository, images, records)
        _forget(repository, images, records)
    _remove(repository, images, records)


def _forget(repository: Repository, images: set[Digest], records: set[Digest]) -> None:
    # Should we die before they are deleted, the next start finds them: they are then simply back.
    repository.register_writer()
    with repository.index.writing() as db:
        tables.remove_records(db, records)
        tables.remove_images(db, images)


def _remove(repository: Repository, images: set[Digest], records: set[Digest]) -> None:
    for digest in records:  # before the images that they name
        repository.records.delete(digest)
    for digest in images:
        repository.blobs.delete(digest)


def _nanoseconds(span: timedelta) -> int:
    return round(span.total_seconds() * 1_000_000_000)
