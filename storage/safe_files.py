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
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
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


@contextmanager
def new_file(path: Path, *, replace: bool) -> Generator[Callable[[bytes], None]]:
    """A function that writes a file with the given bytes, completely or not at all. Not synced to disk.

    To enter the block finds out whether it can be written; without a call of the function nothing is. Folders
    are walked as by `open_folder`; the mode is as the umask has it.

    Args:
        path: as for `open_folder`.
        replace: whether a file that exists is replaced.

    Raises:
        IsLink: a folder, or what would be replaced, is a link.
        NotRegular: what would be replaced is not a regular file.
        FileExistsError: it exists, even if only since the block was entered.
        OSError: it cannot be written; no partial file remains.
    """
    with open_folder(path.parent) as folder:
        _check_free(path.name, folder, replace)
        with _partial(folder) as (partial, file):

            def write(data: bytes) -> None:
                file.write(data)
                file.close()
                _publish(partial, path.name, folder, replace)

            yield write


def write_file(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a file atomically; a link at `path` is replaced, not followed. Not synced to disk.

    Missing folders are created. Links among the folders are followed, so use this only for paths typed by the
    local user.

    Raises:
        FileExistsError: it exists, without `replace`.
        OSError: it cannot be written; no partial file remains.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_folder(path.parent.resolve()) as folder, _partial(folder) as (partial, file):
        file.write(data)
        file.close()
        _publish(partial, path.name, folder, replace)


@contextmanager
def _partial(folder: int) -> Generator[tuple[str, BinaryIO]]:
    """The name of a new file in a folder, and the file, open for writing. It is removed in the end."""
    name = f".{secrets.token_hex(8)}.partial"
    handle = os.open(name, _CREATE, 0o666, dir_fd=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            yield name, file
    finally:
        with suppress(FileNotFoundError):  # it was published
            os.unlink(name, dir_fd=folder)


def _check_free(name: str, folder: int, replace: bool) -> None:
    """Raise as `new_file` if a file of this name cannot be made."""
    try:
        state = os.stat(name or ".", dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    _check(state)
    if not replace:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def _publish(partial: str, name: str, folder: int, replace: bool) -> None:
    """Give a file of a folder its name."""
    if not replace:
        try:
            # Unlike a rename, fails if the name exists.
            os.link(partial, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            return
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
                raise
        # A file system without hard links: an empty file of our own holds the name.
        os.close(os.open(name, _CREATE, 0o666, dir_fd=folder))
    os.replace(partial, name, src_dir_fd=folder, dst_dir_fd=folder)


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
