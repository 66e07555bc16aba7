"""Garbage collection, by mark and sweep, in an order in which a crash loses no image that is kept.

Roots are labelled, pinned, leased, recently accessed and recently stored images. Marking follows the records:
a kept image keeps the records that made it, and a kept record keeps every image it refers to. So a lineage is
kept complete, and no record refers to a deleted image.
"""

import contextlib
import time
from dataclasses import dataclass
from datetime import timedelta

from storage.digest import Digest
from storage.errors import StoreFull
from storage.index import search, tables
from storage.recovery import reconcile
from storage.repository import ACCESS_RESOLUTION, Repository


@dataclass(frozen=True, slots=True)
class Collected:
    """What was deleted, or would be in a dry run."""

    images: tuple[Digest, ...]
    records: tuple[Digest, ...]
    bytes: int
    """Total size of the deleted images and records."""
    kept: int
    """Number of images kept."""
    dry_run: bool


def collect(
    repository: Repository, *, dry_run: bool, grace: timedelta, keep_accessed: timedelta
) -> Collected:
    """Delete unreachable images and their records, see `ImageStore.collect`. Blocks writers."""
    if not dry_run:
        repository.refuse_if_read_only()
    now = time.time_ns()
    with repository.locks.maintenance("collect"), repository.locks.exclusive():
        with contextlib.suppress(StoreFull):  # files that are not indexed are not deleted
            reconcile(repository)
        leased = repository.locks.leased_images()
        # Accesses are recorded at this interval only: a later one may be missing.
        unrecorded = ACCESS_RESOLUTION if keep_accessed else timedelta(0)
        with repository.index.reading() as db:
            images = tables.known_images(db)
            accessed_since = now - _nanoseconds(keep_accessed + unrecorded)
            roots = search.roots(db, now - _nanoseconds(grace), accessed_since) | leased
            dead = images - search.reachable(db, roots)
            records = search.records_referring_to(db, dead)
            size = tables.size_of(db, dead, records)
        if not dry_run:
            _delete(repository, dead, records)
    return Collected(tuple(sorted(dead)), tuple(sorted(records)), size, len(images) - len(dead), dry_run)


def _delete(repository: Repository, images: set[Digest], records: set[Digest]) -> None:
    try:
        _forget(repository, images, records)
    except StoreFull:
        # No space to update the index: free some first. After a crash here, `verify` reports missing files.
        _remove(repository, images, records)
        _forget(repository, images, records)
    _remove(repository, images, records)


def _forget(repository: Repository, images: set[Digest], records: set[Digest]) -> None:
    # After a crash before the files are deleted, the next start indexes them again.
    repository.register_writer()
    with repository.index.writing() as db:
        tables.remove_records(db, records)
        tables.remove_images(db, images)


def _remove(repository: Repository, images: set[Digest], records: set[Digest]) -> None:
    for digest in records:  # before the images that they refer to
        repository.records.delete(digest)
    for digest in images:
        repository.blobs.delete(digest)


def _nanoseconds(span: timedelta) -> int:
    return round(span.total_seconds() * 1_000_000_000)
