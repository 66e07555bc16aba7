"""Opens and writes files without following links, safe against concurrent changes of the folders.

A path is resolved one component at a time with directory descriptors. No link is followed, only regular files
are opened, and opening never blocks. Paths contain no `..`, so resolution stays below its start even if
folders are moved: like `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS` of `openat2`, but portable. Hard links are
not detected.
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

# With O_PATH, resolving a path needs no permission to list its folders.
_WALK = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW


class IsLink(OSError):
    """A path component is a symbolic link."""


class NotRegular(OSError):
    """A folder, pipe, socket or device instead of a regular file."""


@cache
def real_folder(folder: Path) -> Path:
    """The path of a folder with links resolved, as they were at the first call (cached)."""
    return folder.resolve()


@contextmanager
def open_folder(path: Path) -> Generator[int]:
    """A descriptor of a folder, for use as `dir_fd`; it may not be listable.

    Args:
        path: absolute, without links and `..`, as returned by `Path.resolve`.

    Raises:
        IsLink: a component of `path` is a link.
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
    """Open a regular file for reading, with a `path` as for `open_folder`.

    Raises as `open_folder`, and:
        NotRegular: it is not a regular file.
    """
    with open_folder(path.parent) as folder:
        return open_in(folder, path.name)


def open_in(folder: int, name: str) -> BinaryIO:
    """Open a regular file in a folder, given its descriptor, for reading. Raises as `open_file`."""
    _check(
        os.stat(name or ".", dir_fd=folder, follow_symlinks=False)
    )  # before opening, which has side effects on devices
    # Non-blocking, in case a pipe has replaced it.
    handle = os.open(name, _READ, dir_fd=folder)
    try:
        _check(os.fstat(handle))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def names_in(path: Path) -> list[str] | None:
    """The sorted names in a folder; None if `path` is not a folder. Raises as `open_folder`."""
    with open_folder(path.parent) as outer:
        if not stat.S_ISDIR(os.stat(path.name or ".", dir_fd=outer, follow_symlinks=False).st_mode):
            return None
        folder = os.open(path.name or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=outer)
    try:
        return sorted(os.listdir(folder))
    finally:
        os.close(folder)


def write_file(path: Path, data: bytes) -> None:
    """Write a file atomically; a link at `path` is replaced, not followed. Not synced to disk.

    Missing folders are created. Links among the folders are followed, so use this only for paths typed by the
    local user.

    Raises:
        OSError: it cannot be written; no partial file remains.
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
    """A descriptor of a subfolder."""
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
