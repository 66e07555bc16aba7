"""Looking after a store: read everything and set aside what is wrong; build the index again.

Works through the same reading code that users go through, so what it finds right can be read.
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
from storage.permissions import FOLDER, create, make_folder, permissions
from storage.recovery import Progress, forget_missing, rebuild, reconcile, reporting
from storage.repository import Repository

_LONGEST_NAME = 100
"""Bytes of a stray file's name that are kept."""
_STAYS = (errno.EXDEV, errno.EBUSY, errno.ENOTEMPTY)
"""What cannot be moved, such as the root of a mounted disk."""


@dataclass(frozen=True, slots=True)
class Verification:
    """What `verify` saw."""

    images: int
    """Images that were read and are right."""
    records: int
    """Records that were read and are right."""
    quarantined: tuple[Path, ...]
    """Where what was wrong lies now: bytes that do not fit their name, records that nobody can read, files
    that are no blob's."""
    left: tuple[str, ...]
    """What is wrong and lies where it was, as it cannot be moved: paths in the store's folder."""
    missing: tuple[Digest, ...]
    """Images and records that the index named and that are not there; it no longer names them."""
    dangling: tuple[Digest, ...]
    """Records that name an image which is not there."""
    indexed: int
    """Images and records that were there and that the index did not name; now it does."""

    @property
    def clean(self) -> bool:
        """Whether everything that was ever stored is there and right."""
        return not (self.quarantined or self.left or self.missing or self.dangling)


def verify(repository: Repository, progress: Progress | None = None) -> Verification:
    """Read and hash every image and record. What is wrong goes into `quarantine/`; nothing is deleted."""
    with repository.locks.exclusive():
        indexed = reconcile(repository)
    work: list[tuple[Blob, Kind]] = []
    work.extend((blob, "image") for blob in repository.blobs.list())
    work.extend((blob, "record") for blob in repository.records.list())
    read = [(*item, repository.readable(*item)) for item in reporting(progress, len(work))(work)]
    with repository.locks.exclusive():
        aside = _Aside(repository)
        aside.take((blob, kind) for blob, kind, right in read if not right)
        aside.take_foreign_files()
        missing = tuple(sorted(forget_missing(repository)))
        with repository.index.reading() as db:
            dangling = tuple(tables.dangling_records(db))
    right = {kind: sum(k == kind and r for _, k, r in read) for kind in ("image", "record")}
    return Verification(
        right["image"] + aside.righted["image"],
        right["record"] + aside.righted["record"],
        tuple(aside.moved),
        tuple(aside.left),
        missing,
        dangling,
        indexed,
    )


def rebuild_index(repository: Repository, progress: Progress | None) -> tuple[Path, ...]:
    """Build the index again from blobs and records, while writers wait.

    What cannot be read goes into `quarantine/`, as with `verify`; where it lies now.
    """
    repository.refuse_if_read_only()
    with repository.locks.maintenance("rebuild the index"), repository.locks.exclusive():
        aside = _Aside(repository)
        aside.take(rebuild(repository, progress))
    return tuple(aside.moved)


class _Aside:
    """Takes what is wrong out of the way. Use it with every writer kept out."""

    def __init__(self, repository: Repository) -> None:
        self.moved: list[Path] = []
        self.left: list[str] = []
        self.righted: dict[Kind, int] = {"image": 0, "record": 0}
        """What was put right since it was first read."""
        self._repository = repository

    def take(self, wrong: Iterable[tuple[Blob, Kind]]) -> None:
        """Move images and records that are still wrong."""
        for blob, kind in wrong:
            raw = self._repository.raw_blobs if kind == "image" else self._repository.raw_records
            now = raw.has(blob.digest)
            if now is None:  # collected since it was listed
                continue
            if self._repository.readable(now, kind):
                self.righted[kind] += 1
            elif isinstance(raw, LocalBlobs):
                self._move(raw.path(blob.digest), f"{kind}-{blob.digest.hex}")
            elif self._repository.root is not None:  # and nothing can damage what is in memory
                self._write(raw.get(blob.digest), f"{kind}-{blob.digest.hex}")
                raw.delete(blob.digest)

    def take_foreign_files(self) -> None:
        """Move files that are no blob's."""
        if self._repository.root is None:
            return
        for name in ("blobs", "records"):
            for stray in foreign_files(self._repository.root / name):
                self._move(stray, f"stray-{_short(stray.name)}")

    def _move(self, path: Path, name: str) -> None:
        root = self._repository.root
        assert root is not None

        def move(place: Path) -> None:
            os.rename(path, place)  # needs no room, and does not read what may not be readable
            if not place.is_symlink():
                with contextlib.suppress(OSError):  # another user's: only its owner may
                    place.chmod(place.stat().st_mode & permissions(root / "locks", FOLDER))

        self._placed(name, move, str(path.relative_to(root) if path.is_relative_to(root) else path.name))

    def _write(self, data: bytes, name: str) -> None:
        def write(place: Path) -> None:
            with open(create(place, place.parent, os.O_WRONLY), "wb") as file:
                file.write(data)

        self._placed(name, write, name)

    def _placed(self, name: str, move: Callable[[Path], None], what: str) -> None:
        """Have `move` fill a free place in the quarantine."""
        root = self._repository.root
        assert root is not None
        try:
            make_folder(root / "quarantine", root / "locks")
            place = _free_place(root / "quarantine" / name)
            move(place)
            self.moved.append(place)
        except FileNotFoundError:  # somebody else has taken it away
            pass
        except OSError as error:
            if not cannot_write(error) and error.errno not in _STAYS:
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
