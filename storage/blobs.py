"""Where bytes live: named by their SHA-256, written once, never changed.

`BlobStore` is the plugin point: five methods, of which `put` gives the name, so nothing can be stored under a
wrong one. It knows nothing of images, records or the index. `LocalBlobs` is the default; quota, read-only and
verify-on-read are wrappers with the same five methods, in `storage/policies.py`.

Decisions of `LocalBlobs`: a blob is written into a staging folder on the same file system, because a writer
that is killed must not leave a file under `blobs/` that is not named by its own hash, and because its name is
only known once it is hashed, which happens while the disk is busy with it.
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
from storage.permissions import BLOB, make_folder, permissions

_FOLDER = re.compile(r"[0-9a-f]{2}")
_FILE = re.compile(r"[0-9a-f]{62}")
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_ALONGSIDE = 1 << 17
"""Bytes from which hashing in a second thread is quicker than handing the work over costs."""
MAX_BYTES = 1 << 30
"""More than any stored picture or record has: such a file is not even read."""
_hashing = ThreadPoolExecutor(2, thread_name_prefix="blob-hash") if _CORES > 1 else None


@dataclass(frozen=True, slots=True)
class Blob:
    """What a store knows of a blob without reading it."""

    digest: Digest
    size: int
    """Bytes."""
    created: int
    """Nanoseconds since 1970, UTC."""


class BlobStore(Protocol):
    """Bytes by digest. Every method may be called from several threads and processes at once."""

    def put(self, data: bytes) -> Blob:
        """Store `data` durably, then name it. Idempotent: equal bytes keep their first time of creation.

        Raises:
            StoreFull, StoreReadOnly: nothing was stored.
        """
        ...

    def get(self, digest: Digest) -> bytes:
        """The bytes as they lie there; `KeyError` if there are none."""
        ...

    def has(self, digest: Digest) -> Blob | None:
        """What is known of a blob, or None if it is not there."""
        ...

    def list(self) -> Iterator[Blob]:
        """Every blob, in no particular order. Blobs put meanwhile may be missing."""
        ...

    def delete(self, digest: Digest) -> None:
        """Remove a blob; no error if it is not there."""
        ...


class LocalBlobs:
    """A folder of immutable files: `<folder>/sha256/<2 hex>/<62 hex>`, read by the owner only."""

    def __init__(self, folder: Path) -> None:
        """What a crash leaves behind lies in `tmp` beside `folder`."""
        self.folder = folder
        self.staging = folder.parent / "tmp"
        self._model = folder.parent / "locks"

    def put(self, data: bytes) -> Blob:
        try:
            return self._put(data)
        except OSError as error:
            raise from_os_error(error, self.folder.parent) from error

    def get(self, digest: Digest) -> bytes:
        try:
            with open(self.path(digest), "rb", opener=_open) as file:
                if os.fstat(file.fileno()).st_size > MAX_BYTES:
                    raise Corrupt(f"{digest} is larger than anything that was stored.", "")
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
                    # Gone between listing and looking: a collection is running beside us.
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
        """Where the blob lies, or would."""
        return Path(f"{self.folder}/sha256/{digest.hex[:2]}/{digest.hex[2:]}")

    def _put(self, data: bytes) -> Blob:
        make_folder(self.staging, self._model)
        temporary = f"{self.staging}/{secrets.token_hex(8)}"
        created = time.time_ns()
        try:
            digest = _written(temporary, data, created, permissions(self._model, BLOB))
            path = self.path(digest)
            folder = path.parent
            if not folder.is_dir():
                self._make_folder(folder)
            _name(temporary, path, data)
            # Also when the blob was there: whoever linked it may not have come this far.
            _sync_folder(folder)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        status = path.stat()
        return Blob(digest, status.st_size, status.st_mtime_ns)

    def _make_folder(self, folder: Path) -> None:
        """Create a folder of blobs, durably. With the first one come all others: one by one, each would let a
        put wait for the disk once more."""
        if not folder.parent.is_dir():
            self._make_all_folders(folder.parent)
        _make_durable_folder(folder, self._model)

    def _make_all_folders(self, base: Path) -> None:
        _make_durable_folder(base.parent, self._model)
        aside = self.staging / secrets.token_hex(8)  # nobody must trust a folder that is not durable yet
        try:
            make_folder(aside, self._model)
            for number in range(256):
                make_folder(aside / f"{number:02x}", self._model)
            _sync_folder(aside)
            with contextlib.suppress(OSError):  # somebody else was quicker
                aside.rename(base)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        _sync_folder(base.parent)


def foreign_files(folder: Path) -> Iterator[Path]:
    """What lies below a `LocalBlobs` folder and is no blob: it was put there by somebody else."""
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
    """Open a regular file, following no link, and without ever waiting for what only has its name."""
    handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.ENXIO, "Not a regular file", path)
    return handle


def _written(path: str, data: bytes, created: int, mode: int) -> Digest:
    """Write `data` durably, with these permissions, dated `created`, and hash it meanwhile."""
    hashing = _hashing.submit(Digest.of, data) if _hashing and len(data) >= _ALONGSIDE else None
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest) :]
        os.fchmod(handle, mode)
        # The kernel's own clock for files ticks in milliseconds: too coarse to order by.
        os.utime(handle, ns=(created, created))
        os.fsync(handle)
    finally:
        os.close(handle)
    return hashing.result() if hashing else Digest.of(data)


def _name(temporary: str, path: Path, data: bytes) -> None:
    """Give a written file its name. Of two writers of the same bytes the first one's file stays."""
    try:
        os.link(temporary, path)  # unlike a rename, fails if the name is taken
    except FileExistsError:
        if not _holds(path, data):  # damaged on disk: put the right bytes back
            os.replace(temporary, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        if not path.exists():  # a file system without links (FAT, some network shares)
            os.replace(temporary, path)


def _holds(path: Path, data: bytes) -> bool:
    try:
        with open(path, "rb", opener=_open) as file:
            return os.fstat(file.fileno()).st_size == len(data) and file.read() == data
    except OSError:
        return False


def _make_durable_folder(folder: Path, model: Path) -> None:
    """Create `folder`, and see to it that it survives a power cut before anything in it is named."""
    if folder.is_dir():
        return
    _make_durable_folder(folder.parent, model)
    make_folder(folder, model)
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
