"""Verification of a store with quarantine of invalid files, and rebuild of its index.

Uses the same read path as `ImageStore`, so whatever passes verification is readable.
"""

import contextlib
import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from storage.blobs import Blob, LocalBlobs, foreign_files
from storage.components import Kind
from storage.digest import Digest
from storage.errors import cannot_write, from_os_error
from storage.index import tables
from storage.permissions import FOLDER, create, inherited_mode, make_folder
from storage.recovery import Progress, forget_missing, rebuild, reconcile, reporting
from storage.repository import Repository

_LONGEST_NAME = 100
"""Maximum bytes of a foreign file's name that are kept."""
_UNMOVABLE = (errno.EXDEV, errno.EBUSY, errno.ENOTEMPTY)
"""Errors for what cannot be moved, such as a mount point."""


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`."""

    images: int
    """Number of valid images."""
    records: int
    """Number of valid records."""
    quarantined: tuple[Path, ...]
    """New paths of invalid files: bytes that do not match their id, unreadable records, foreign files."""
    left: tuple[str, ...]
    """Invalid files that could not be moved: paths relative to the store's folder."""
    missing: tuple[Digest, ...]
    """Images and records that were in the index without a file; now removed from the index."""
    dangling: tuple[Digest, ...]
    """Records that refer to a missing image."""
    indexed: int
    """Number of images and records that were missing in the index and have been added."""

    @property
    def clean(self) -> bool:
        """Whether no invalid, foreign or missing file was found."""
        return not (self.quarantined or self.left or self.missing or self.dangling)


def verify(repository: Repository, progress: Progress | None = None) -> Verification:
    """Read and hash every image and record. Invalid files are moved to `quarantine/`; nothing is deleted.

    Writers are blocked only at the beginning and the end, not while files are read.
    """
    with repository.locks.exclusive():
        indexed = reconcile(repository)
    work: list[tuple[Blob, Kind]] = []
    work.extend((blob, "image") for blob in repository.blobs.list())
    work.extend((blob, "record") for blob in repository.records.list())
    read = [(*item, repository.readable(*item)) for item in reporting(progress, len(work))(work)]
    with repository.locks.exclusive():
        quarantine = _Quarantine(repository)
        quarantine.take((blob, kind) for blob, kind, valid in read if not valid)
        quarantine.take_foreign_files()
        missing = tuple(sorted(forget_missing(repository)))
        with repository.index.reading() as db:
            dangling = tuple(tables.dangling_records(db))
    valid = {kind: sum(k == kind and ok for _, k, ok in read) for kind in ("image", "record")}
    return Verification(
        valid["image"] + quarantine.restored["image"],
        valid["record"] + quarantine.restored["record"],
        tuple(quarantine.moved),
        tuple(quarantine.left),
        missing,
        dangling,
        indexed,
    )


def rebuild_index(repository: Repository, progress: Progress | None) -> tuple[Path, ...]:
    """Rebuild the index from blobs and records; writers are blocked meanwhile.

    Unreadable files are moved to `quarantine/`; returns their new paths.

    Raises:
        StoreBusy: another process is collecting or rebuilding.
    """
    repository.refuse_if_read_only()
    with repository.locks.maintenance("rebuild the index"), repository.locks.exclusive():
        quarantine = _Quarantine(repository)
        quarantine.take(rebuild(repository, progress))
    return tuple(quarantine.moved)


class _Quarantine:
    """Moves invalid files to `quarantine/`. Requires the exclusive lock."""

    def __init__(self, repository: Repository) -> None:
        self.moved: list[Path] = []
        self.left: list[str] = []
        self.restored: dict[Kind, int] = {"image": 0, "record": 0}
        """Number of files that became valid after they were first read."""
        self._repository = repository

    def take(self, wrong: Iterable[tuple[Blob, Kind]]) -> None:
        """Move images and records that are still invalid."""
        for blob, kind in wrong:
            raw = self._repository.raw_blobs if kind == "image" else self._repository.raw_records
            now = raw.has(blob.digest)
            if now is None:  # collected since it was listed
                continue
            if self._repository.readable(now, kind):
                self.restored[kind] += 1
            elif isinstance(raw, LocalBlobs):
                self._move(raw.path(blob.digest), f"{kind}-{blob.digest.hex}")
            elif self._repository.root is not None:  # a store in memory cannot be damaged
                self._write(raw.get(blob.digest), f"{kind}-{blob.digest.hex}")
                raw.delete(blob.digest)

    def take_foreign_files(self) -> None:
        """Move files that are not blobs."""
        if self._repository.root is None:
            return
        for name in ("blobs", "records"):
            for stray in foreign_files(self._repository.root / name):
                self._move(stray, f"stray-{_short(stray.name)}")

    def _move(self, path: Path, name: str) -> None:
        root = self._repository.root
        assert root is not None

        def move(place: Path) -> None:
            os.rename(path, place)  # works on a full disk and on unreadable files
            if not place.is_symlink():
                with contextlib.suppress(OSError):  # only the owner may change the mode
                    place.chmod(place.stat().st_mode & inherited_mode(root / "locks", FOLDER))

        self._placed(name, move, str(path.relative_to(root) if path.is_relative_to(root) else path.name))

    def _write(self, data: bytes, name: str) -> None:
        def write(place: Path) -> None:
            with open(create(place, place.parent, os.O_WRONLY), "wb") as file:
                file.write(data)

        self._placed(name, write, name)

    def _placed(self, name: str, move: Callable[[Path], None], what: str) -> None:
        """Call `move` with a free path in the quarantine."""
        root = self._repository.root
        assert root is not None
        try:
            make_folder(root / "quarantine", root / "locks")
            place = _free_place(root / "quarantine" / name)
            move(place)
            self.moved.append(place)
        except FileNotFoundError:  # removed by another process
            pass
        except OSError as error:
            if not cannot_write(error) and error.errno not in _UNMOVABLE:
                raise from_os_error(error, root) from error
            self.left.append(what)


def _short(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:_LONGEST_NAME])


def _free_place(path: Path) -> Path:
    number = 0
    place = path
    while os.path.lexists(place):
        number += 1
        place = path.with_name(f"{path.name}.{number}")
    return place
