"""Looking after a store: read everything and set aside what is wrong; build the index again.

Works through the same reading code that users go through, so what it finds right can be read.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from storage import rows
from storage.blobs import Blob, BlobStore, strays
from storage.digest import Digest
from storage.errors import from_os_error
from storage.modes import create, make_folder
from storage.shelf import Progress, Shelf, ticking


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` saw."""

    images: int
    """Images that were read and are right."""
    records: int
    """Records that were read and are right."""
    quarantined: tuple[Path, ...]
    """Where what was wrong lies now: bytes that do not fit their name, files that are no blob's."""
    missing: tuple[Digest, ...]
    """Images and records that the index named and that are not there; it no longer names them."""
    dangling: tuple[Digest, ...]
    """Records that name an image which is not there."""
    indexed: int
    """Images and records that were there and that the index did not name; now it does."""

    @property
    def clean(self) -> bool:
        """Whether everything that was ever stored is there and right."""
        return not (self.quarantined or self.missing or self.dangling)


def verify(shelf: Shelf, progress: Progress | None = None) -> Verification:
    """Read and hash every image and record. What is wrong goes into `quarantine/`; nothing is deleted."""
    with shelf.locks.alone():
        indexed = shelf.reconcile()
    blobs, bodies = list(shelf.blobs.list()), list(shelf.records.list())
    work = [(blob, "image") for blob in blobs] + [(body, "record") for body in bodies]
    right = {"image": 0, "record": 0}
    wrong: list[tuple[Blob, str]] = []
    for blob, kind in ticking(progress, len(work))(work):
        readable = shelf.size_of(blob) if kind == "image" else shelf.read_record(blob.digest)
        if readable:
            right[kind] += 1
        else:
            wrong.append((blob, kind))
    with shelf.locks.alone():
        quarantined = _quarantine(shelf, wrong)
        missing = _forget_missing(shelf)
        dangling = _dangling(shelf)
    return Verification(right["image"], right["record"], tuple(quarantined), missing, dangling, indexed)


def rebuild_index(shelf: Shelf, progress: Progress | None) -> None:
    """Build the index again from blobs and records, while writers wait."""
    with shelf.locks.caring("rebuild the index"), shelf.locks.alone():
        shelf.rebuild(progress)


def _quarantine(shelf: Shelf, wrong: list[tuple[Blob, str]]) -> list[Path]:
    if shelf.root is None:  # nothing can damage what is in memory
        return []
    folder = shelf.root / "quarantine"
    moved: list[Path] = []
    try:
        for blob, kind in wrong:
            raw = shelf.raw_blobs if kind == "image" else shelf.raw_records
            if (data := _bytes(raw, blob.digest)) is not None:
                make_folder(folder, shelf.root / "locks")
                place = _free_place(folder / f"{kind}-{blob.digest.hex}")
                with open(create(place, folder, os.O_WRONLY), "wb") as file:
                    file.write(data)
                raw.delete(blob.digest)
                moved.append(place)
        for name in ("blobs", "records"):
            for stray in strays(shelf.root / name):
                make_folder(folder, shelf.root / "locks")
                place = _free_place(folder / f"stray-{stray.name}")
                os.replace(stray, place)
                moved.append(place)
    except OSError as error:
        raise from_os_error(error, shelf.root) from error
    return moved


def _bytes(raw: BlobStore, digest: Digest) -> bytes | None:
    try:
        return raw.get(digest)
    except KeyError:  # collected since it was listed
        return None


def _free_place(path: Path) -> Path:
    number = 0
    place = path
    while os.path.lexists(place):
        number += 1
        place = path.with_name(f"{path.name}.{number}")
    return place


def _forget_missing(shelf: Shelf) -> tuple[Digest, ...]:
    with shelf.index.reading() as db:
        images, records = rows.known_images(db), rows.known_records(db)
    lost_images = images - {blob.digest for blob in shelf.blobs.list()}
    lost_records = records - {blob.digest for blob in shelf.records.list()}
    if lost_images or lost_records:
        with shelf.index.writing() as db:
            rows.remove_records(db, lost_records)
            rows.remove_images(db, lost_images)
    return tuple(sorted(lost_images | lost_records))


def _dangling(shelf: Shelf) -> tuple[Digest, ...]:
    with shelf.index.reading() as db:
        return tuple(rows.dangling_records(db))
