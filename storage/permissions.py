"""Modes of the files and folders that a store creates: owner only, whatever the umask, by default.

New files and folders inherit the permissions of the store's folder `locks/`, which is created with mode 0700.
After `chmod -R g+rX STORE`, new images are readable by the group too.
"""

import contextlib
import os
import secrets
import stat
from pathlib import Path

FOLDER, FILE, BLOB = 0o2777, 0o666, 0o444
"""Masks of the permission bits that folders, files and blobs can have."""
OWNER = 0o700
ENTRIES = ("blobs", "records", "locks", "tmp", "quarantine", "jobs", "index.sqlite")

DATABASE_SUFFIXES = ("", "-wal", "-shm")
"""Suffixes of a SQLite database and its WAL files."""


def make_folder(folder: Path, template: Path | None = None) -> None:
    """Create a folder with the permissions of `template`, and missing parents. No effect if it exists.

    If `template` is None or missing, the mode is 0700.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    mode = inherited_mode(template, FOLDER)
    try:
        folder.mkdir(OWNER)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    if mode != OWNER:
        folder.chmod(mode)


def create(path: Path | str, template: Path, flags: int = os.O_RDWR) -> int:
    """A descriptor of a file; a missing file is created with the permissions of the folder `template`."""
    mode = inherited_mode(template, FILE)
    try:
        handle = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, mode)
    if mode != 0o600:
        os.fchmod(handle, mode)
    return handle


def make_database(path: Path, template: Path) -> None:
    """Create an empty file as a new SQLite database. No effect if it exists.

    The file is created in the folder `template`, with its permissions, and then linked to `path`. It is never
    opened at `path`: closing it would release the POSIX locks that SQLite holds on it in this process.
    """
    if path.exists():
        return
    aside = template / secrets.token_hex(8)
    os.close(create(aside, template))
    try:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        aside.unlink()


def may_be_database(path: Path) -> bool:
    """Whether the database and its WAL files are regular or missing; SQLite would block forever on a pipe."""
    return all(_is_regular_or_missing(path.with_name(path.name + suffix)) for suffix in DATABASE_SUFFIXES)


def _is_regular_or_missing(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return not path.is_symlink()
    except OSError:
        return False


def inherited_mode(template: Path | None, mask: int) -> int:
    """The mode of the folder `template`, or 0700 if None or missing, restricted to `mask`."""
    try:
        return (stat.S_IMODE(template.stat().st_mode) if template else OWNER) & mask
    except FileNotFoundError:
        return OWNER & mask


def restrict_to_owner(store: Path) -> None:
    """Remove group and other permissions from a store whose modes came from the umask."""
    for path in (store, *(store / name for name in ENTRIES)):
        with contextlib.suppress(OSError):  # missing, or owned by another user
            path.chmod(OWNER if path.is_dir() else 0o600)
