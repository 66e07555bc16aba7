"""Content-addressed storage of immutable bytes by their SHA-256.

`BlobStore` is the extension point: five methods. `put` computes the id, so no blob can have a wrong one.
`LocalBlobs` is the default; quota, read-only and verification are wrappers with the same interface, in
`storage/policies.py`.

`LocalBlobs` writes to a staging folder on the same file system first: a killed writer must not leave a file
under `blobs/` that does not match its name, and the name is known only after hashing, which runs during the
write.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage.digest import Digest
from storage.errors import Corrupt, from_os_error
from storage.permissions import BLOB, inherited_mode, make_folder

_FOLDER = re.compile(r"[0-9a-f]{2}")
_FILE = re.compile(r"[0-9a-f]{62}")
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_PARALLEL_BYTES = 1 << 17
"""Minimum size at which hashing in a second thread is faster, despite its overhead."""
MAX_BYTES = 1 << 30
"""Upper bound on the size of a stored image or record; a larger file is not read."""
_hashing = ThreadPoolExecutor(2, thread_name_prefix="blob-hash") if _CORES > 1 else None


@dataclass(frozen=True, slots=True)
class Blob:
    """The metadata of a blob."""

    digest: Digest
    size: int
    """Bytes."""
    created: int
    """Nanoseconds since 1970, UTC."""


class BlobStore(Protocol):
    """Blobs by digest. All methods are safe to call from several threads and processes at once."""

    def put(self, data: bytes) -> Blob:
        """Store `data` durably before it becomes visible. Idempotent: equal bytes keep their creation time.

        Raises:
            StoreFull, StoreReadOnly: nothing was stored.
        """
        ...

    def get(self, digest: Digest) -> bytes:
        """The stored bytes, not verified. Raises KeyError if there is no such blob."""
        ...

    def has(self, digest: Digest) -> Blob | None:
        """The metadata of a blob, or None if there is no such blob."""
        ...

    def list(self) -> Iterator[Blob]:
        """All blobs, in no particular order. Blobs stored during the iteration may be missing."""
        ...

    def delete(self, digest: Digest) -> None:
        """Delete a blob; no error if there is no such blob."""
        ...


class LocalBlobs:
    """Blobs as immutable files `<folder>/sha256/<2 hex>/<62 hex>`, mode 0400 by default."""

    def __init__(self, folder: Path) -> None:
        """Partial files of killed writers remain in `tmp`, a sibling of `folder`."""
        self.folder = folder
        self.staging = folder.parent / "tmp"
        self._mode_template = folder.parent / "locks"

    def put(self, data: bytes) -> Blob:
        try:
            return self._put(data)
        except OSError as error:
            raise from_os_error(error, self.folder.parent) from error

    def get(self, digest: Digest) -> bytes:
        try:
            with open(self.path(digest), "rb", opener=_open) as file:
                if os.fstat(file.fileno()).st_size > MAX_BYTES:
                    raise Corrupt(f"{digest} is larger than any stored file can be.", "")
                return file.read()
        except (FileNotFoundError, NotADirectoryError):
            raise KeyError(str(digest)) from None
        except OSError as error:
            raise from_os_error(error, self.folder.parent, reading=True) from error

    def has(self, digest: Digest) -> Blob | None:
        try:
            status = self.path(digest).lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise from_os_error(error, self.folder.parent, reading=True) from error
        if not stat.S_ISREG(status.st_mode):
            return None
        return Blob(digest, status.st_size, status.st_mtime_ns)

    def list(self) -> Iterator[Blob]:
        try:
            yield from self._list()
        except OSError as error:
            raise from_os_error(error, self.folder.parent, reading=True) from error

    def _list(self) -> Iterator[Blob]:
        for folder in _entries(self.folder / "sha256"):
            if not _FOLDER.fullmatch(folder.name):
                continue
            for file in _entries(Path(folder.path)):
                if _FILE.fullmatch(file.name) and file.is_file(follow_symlinks=False):
                    # Deleted since it was listed, by a concurrent collection.
                    with contextlib.suppress(FileNotFoundError):
                        status = file.stat(follow_symlinks=False)
                        digest = Digest(bytes.fromhex(folder.name + file.name))
                        yield Blob(digest, status.st_size, status.st_mtime_ns)

    def delete(self, digest: Digest) -> None:
        try:
            self.path(digest).unlink(missing_ok=True)
        except OSError as error:
            raise from_os_error(error, self.folder.parent) from error

    def path(self, digest: Digest) -> Path:
        """The path of a blob, which need not exist."""
        return Path(f"{self.folder}/sha256/{digest.hex[:2]}/{digest.hex[2:]}")

    def _put(self, data: bytes) -> Blob:
        make_folder(self.staging, self._mode_template)
        temporary = f"{self.staging}/{secrets.token_hex(8)}"
        created = time.time_ns()
        try:
            digest = _write(temporary, data, created, inherited_mode(self._mode_template, BLOB))
            path = self.path(digest)
            folder = path.parent
            if not folder.is_dir():
                self._make_folder(folder)
            _link(temporary, path, data)
            # Also if the blob existed: the process that linked it may not have synced yet.
            _sync_folder(folder)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        status = path.stat()
        return Blob(digest, status.st_size, status.st_mtime_ns)

    def _make_folder(self, folder: Path) -> None:
        """Create a folder of blobs durably; the first call creates all 256, to save a sync in later puts."""
        if not folder.parent.is_dir():
            self._make_all_folders(folder.parent)
        _make_durable_folder(folder, self._mode_template)

    def _make_all_folders(self, base: Path) -> None:
        _make_durable_folder(base.parent, self._mode_template)
        aside = self.staging / secrets.token_hex(8)  # not visible to others before it is durable
        try:
            make_folder(aside, self._mode_template)
            for number in range(256):
                make_folder(aside / f"{number:02x}", self._mode_template)
            _sync_folder(aside)
            with contextlib.suppress(OSError):  # another process was faster
                aside.rename(base)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        _sync_folder(base.parent)


def foreign_files(folder: Path) -> Iterator[Path]:
    """Files and folders below a `LocalBlobs` folder that are not blobs."""
    for top in _entries(folder):
        if top.name != "sha256" or not top.is_dir(follow_symlinks=False):
            yield from _unless_empty(top)
            continue
        for middle in _entries(Path(top.path)):
            if not _FOLDER.fullmatch(middle.name) or not middle.is_dir(follow_symlinks=False):
                yield from _unless_empty(middle)
                continue
            for file in _entries(Path(middle.path)):
                if not _FILE.fullmatch(file.name) or not file.is_file(follow_symlinks=False):
                    yield Path(file.path)


def _unless_empty(entry: "os.DirEntry[str]") -> Iterator[Path]:
    if not entry.is_dir(follow_symlinks=False) or any(_entries(Path(entry.path))):
        yield Path(entry.path)


def _open(path: str, flags: int) -> int:
    """Open a regular file without following a link or blocking on a pipe."""
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.ENXIO, "Not a regular file", path)
    return handle


def _write(path: str, data: bytes, created: int, mode: int) -> Digest:
    """Write `data` durably with permissions `mode` and time `created` (ns since 1970); returns its digest."""
    hashing = _hashing.submit(Digest.of, data) if _hashing and len(data) >= _PARALLEL_BYTES else None
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fchmod(handle, mode)
        # The kernel's file times have millisecond resolution, too coarse for ordering.
        os.utime(handle, ns=(created, created))
        os.fsync(handle)
    finally:
        os.close(handle)
    return hashing.result() if hashing else Digest.of(data)


def _link(temporary: str, path: Path, data: bytes) -> None:
    """Move a written file to its final path. If the path exists, keep the existing file, unless damaged."""
    try:
        os.link(temporary, path)  # unlike rename, fails if the path exists
    except FileExistsError:
        if not _has_content(path, data):  # damaged on disk: restore the correct bytes
            os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        if not path.exists():  # a file system without hard links (FAT, some network shares)
            os.replace(temporary, path)


def _has_content(path: Path, data: bytes) -> bool:
    try:
        with open(path, "rb", opener=_open) as file:
            return os.fstat(file.fileno()).st_size == len(data) and file.read() == data
    except OSError:
        return False


def _make_durable_folder(folder: Path, template: Path) -> None:
    """Create `folder` and its parents, each synced before it is used."""
    if folder.is_dir():
        return
    _make_durable_folder(folder.parent, template)
    make_folder(folder, template)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except (FileNotFoundError, NotADirectoryError):
        return
