"""Who may use what a store makes: its owner alone, whatever the umask, unless the host opens it.

What a store makes is as open as its folder `locks/`, which begins with mode 0700: after
`chmod -R g+rX STORE`, new images can be read by the group, too.
"""

import contextlib
import os
import secrets
import stat
from pathlib import Path

FOLDER, FILE, BLOB = 0o2777, 0o666, 0o444
"""Permissions that folders, files and images can have."""
OWNER = 0o700
PARTS = ("blobs", "records", "locks", "tmp", "quarantine", "jobs", "index.sqlite")

DATABASE_SUFFIXES = ("", "-wal", "-shm")
"""What SQLite adds to the name of a database for the files beside it."""


def make_folder(folder: Path, model: Path | None = None) -> None:
    """Create a folder, and those above that are missing; nothing happens if it is there.

    It is as open as `model`, a folder that may be missing.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    mode = permissions(model, FOLDER)
    try:
        folder.mkdir(OWNER)
    except FileExistsError:
        if not folder.is_dir():
            raise
        return
    if mode != OWNER:
        folder.chmod(mode)


def create(path: Path | str, model: Path, flags: int = os.O_RDWR) -> int:
    """A descriptor of a file that is created, as open as the folder `model`, if it is not there."""
    mode = permissions(model, FILE)
    try:
        handle = os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, mode)
    if mode != 0o600:
        os.fchmod(handle, mode)
    return handle


def make_database(path: Path, model: Path) -> None:
    """Create an empty file, which SQLite takes for a new database; nothing happens if it is there.

    It is made in the folder `model`, as open as that, and never opened under its name: closing it would give
    back the locks that SQLite holds on it.
    """
    if path.exists():
        return
    aside = model / secrets.token_hex(8)
    os.close(create(aside, model))
    try:
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        aside.unlink()


def may_be_database(path: Path) -> bool:
    """Whether SQLite may open or create a database there: it would wait for a pipe without end."""
    return all(_may_be_file(path.with_name(path.name + suffix)) for suffix in DATABASE_SUFFIXES)


def _may_be_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except FileNotFoundError:
        return not path.is_symlink()
    except OSError:
        return False


def permissions(model: Path | None, mask: int) -> int:
    """What of `mask` the folder `model` allows; to the owner alone if there is none."""
    try:
        return (stat.S_IMODE(model.stat().st_mode) if model else OWNER) & mask
    except FileNotFoundError:
        return OWNER & mask


def restrict_to_owner(store: Path) -> None:
    """Take from everybody else what an earlier version left open: it made parts as the umask said."""
    for path in (store, *(store / part for part in PARTS)):
        with contextlib.suppress(OSError):  # it is not there, or another user's
            path.chmod(OWNER if path.is_dir() else 0o600)
