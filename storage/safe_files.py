"""Files by name, where somebody else may change the folders meanwhile: a path is walked handle by handle.

No link is followed on the way, and nothing but a regular file is opened, without ever waiting for it. Paths
here hold no `..`, so the walk stays below where it began, whatever is moved: as with `RESOLVE_BENEATH` and
`RESOLVE_NO_SYMLINKS` of `openat2`, but on every system. A hard link cannot be told from any other file.
"""

import errno
import os
import secrets
import stat
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import BinaryIO

# A handle to walk on needs no right to list the folder, where the system has such handles.
_WALK = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class IsLink(OSError):
    """A link where none is followed."""


class NotRegular(OSError):
    """A folder, pipe, socket or device where a regular file is needed."""


@cache
def real_folder(folder: Path) -> Path:
    """Where a folder that the host allows is, links resolved as they were when it was first asked for."""
    return folder.resolve()


@contextmanager
def open_folder(path: Path) -> Generator[int]:
    """A handle of a folder, to open files by; it cannot be listed.

    Args:
        path: absolute, without links and `..`, as `Path.resolve` gives it.

    Raises:
        IsLink: a part of `path` is a link.
        OSError: there is no such folder.
    """
    handle = os.open(path.anchor, _WALK)
    try:
        for name in path.parts[1:]:
            inner = _enter(name, handle)
            os.close(handle)
            handle = inner
        yield handle
    finally:
        os.close(handle)


def open_file(path: Path) -> BinaryIO:
    """A regular file, open for reading. `path` as for `open_folder`, whose errors it raises.

    Raises:
        NotRegular: it is something else.
    """
    with open_folder(path.parent) as folder:
        return open_in(folder, path.name)


def open_in(folder: int, name: str) -> BinaryIO:
    """A regular file in the folder of a handle, open for reading. Raises what `open_file` does."""
    _check(os.stat(name or ".", dir_fd=folder, follow_symlinks=False))  # opening a device may do something
    # Without waiting, should a pipe have taken its place.
    handle = os.open(name, _READ, dir_fd=folder)
    try:
        _check(os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def names_in(path: Path) -> list[str] | None:
    """What is in a folder, sorted; None if `path` is not a folder. Raises what `open_folder` does."""
    with open_folder(path.parent) as outer:
        if not stat.S_ISDIR(os.stat(path.name or ".", dir_fd=outer, follow_symlinks=False).st_mode):
            return None
        folder = os.open(path.name or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=outer)
    try:
        return sorted(os.listdir(folder))
    finally:
        os.close(folder)


def write_file(path: Path, data: bytes) -> None:
    """Put a file in its place, whole or not at all; a link that was there is replaced, not followed.

    Folders that are missing are made. Links among them are followed, once: this is for paths that the host's
    own user typed.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_folder(path.parent.resolve()) as folder:
        partial = f".{secrets.token_hex(8)}.partial"
        handle = os.open(partial, _CREATE, 0o666, dir_fd=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(partial, path.name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            os.unlink(partial, dir_fd=folder)
            raise


def _enter(name: str, folder: int) -> int:
    """A handle of a folder in a folder."""
    try:
        return os.open(name, _WALK, dir_fd=folder)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            _refuse_link(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        raise


def _check(state: os.stat_result) -> None:
    _refuse_link(state.st_mode)
    if not stat.S_ISREG(state.st_mode):
        raise NotRegular(errno.EINVAL, "Not a regular file")


def _refuse_link(mode: int) -> None:
    if stat.S_ISLNK(mode):
        raise IsLink(errno.ELOOP, "Links are not followed")
