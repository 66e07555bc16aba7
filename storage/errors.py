"""The errors of the store, with messages that a client can act on.

Each class has a stable `code` from the project's list of error codes; the server passes code and message on
unchanged. The message states the given and the allowed value, `advice` the next step.
"""

import contextlib
import errno
import sqlite3
from collections.abc import Generator
from pathlib import Path


class StoreError(Exception):
    """Base class of all errors that the store raises."""

    code = "internal"

    def __init__(self, message: str, advice: str = "", place: str = "") -> None:
        """`place` is the folder or URL of the store: for the host's logs only, never sent to clients."""
        super().__init__(message, advice, place)
        self.message = message
        self.advice = advice
        self.place = place

    def __str__(self) -> str:
        place = f"The store is {self.place}." if self.place else ""
        return " ".join(filter(None, (self.message, self.advice, place)))


class InvalidArgument(StoreError):
    """A reference, cursor, limit or record field that is invalid whatever the store contains."""

    code = "invalid_argument"


class ImageNotFound(StoreError):
    """A well-formed reference to an image that is not stored."""

    code = "image_not_found"


class ImageRejected(StoreError):
    """Bytes that are not a decodable image, or an image that exceeds the limits."""

    code = "image_rejected"


class StoreFull(StoreError):
    """The quota or the disk is full."""

    code = "busy"


class OverQuota(StoreError):
    """A principal has stored as much as each may."""

    code = "forbidden"


class StoreBusy(StoreError):
    """A resource is in use: the maintenance lock, the decoding budget, or the index."""

    code = "busy"


class StoreReadOnly(StoreError):
    """The store or its folder is not writable."""

    code = "forbidden"


class Corrupt(StoreError):
    """Stored bytes do not match their SHA-256 id."""


class Unreadable(StoreError):
    """One file cannot be read: an I/O error, missing permission, or not a regular file."""


class IndexDamaged(StoreError):
    """The index is damaged or was not written by this program. It can be rebuilt from the files."""


class IndexReadOnly(StoreReadOnly):
    """The index cannot be opened or written, because of its folder or a foreign file at its path."""


class IndexSuspect(IndexDamaged):
    """A statement failed: the schema may be foreign, or the statement wrong."""


ADVICE_AFAR = "Check the address, the network and the credentials."
"""Advice on errors of an object store."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_WRITING = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_READING = {errno.EIO, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO}
"""Permanent errors of one file; excludes transient ones, such as too many open files."""
_SQLITE_DAMAGED = {
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CONSTRAINT,  # violated only if the rows were not written by this program
    sqlite3.SQLITE_MISMATCH,
}
_SQLITE_DAMAGED_FILE = {
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
}
_SQLITE_NO_WRITING = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}


def from_os_error(error: OSError, folder: Path | str, reading: bool = False) -> StoreError:
    """The StoreError for an operating-system error in `folder`, a path or URL."""
    if reading:
        kind = Unreadable if error.errno in _NO_READING else StoreError
        return kind(
            f"The image store cannot be read{_at(error, folder)} ({_reason(error)}).",
            ADVICE_AFAR if isinstance(folder, str) else "Ask the host to run `omnigen2-mcp store verify`.",
            str(folder),
        )
    if error.errno in _NO_ROOM:
        return _full(folder, error)
    if cannot_write(error):
        return read_only(folder, _reason(error) + _at(error, folder))
    advice = ADVICE_AFAR if isinstance(folder, str) else "Check the disk and the folder."
    return StoreError(f"The image store failed{_at(error, folder)}: {_reason(error)}.", advice, str(folder))


@contextlib.contextmanager
def errors_afar(url: str) -> Generator[None]:
    """Convert errors of the object store at `url`, and of the library that asks it, to StoreError."""
    try:
        yield
    except StoreError:
        raise
    except FileNotFoundError as error:  # of one object it is expected, and handled
        raise StoreError("The image store is not there: no such bucket.", ADVICE_AFAR, url) from error
    except OSError as error:
        raise from_os_error(error, url) from error
    except Exception as error:
        message = f"The image store failed: {type(error).__name__}."  # its text may contain secrets
        raise StoreError(message, ADVICE_AFAR, f"{url} ({error})") from error


def unreadable_lease(name: str, folder: Path) -> StoreError:
    """The error of a collection when a lease cannot be read, so that the images a job needs are unknown."""
    return StoreError(
        f"Cannot collect: locks/leases/{name} cannot be read and may list images that a job needs.",
        "Ask the host to remove it when no job is running.",
        str(folder),
    )


def cannot_write(error: OSError) -> bool:
    """Whether permission is missing, or the file system is read-only."""
    return error.errno in _NO_WRITING or isinstance(error, PermissionError)  # object stores set no errno


def from_sqlite_error(error: sqlite3.Error, folder: Path | None) -> StoreError:
    """The StoreError for a database error of the index in `folder`, None for an index in memory."""
    place = str(folder or "in memory")
    # Without a code, Python found a text in the database that is not valid UTF-8.
    no_text = sqlite3.SQLITE_CORRUPT if type(error) is sqlite3.OperationalError else sqlite3.SQLITE_MISUSE
    extended: int = getattr(error, "sqlite_errorcode", no_text)
    code = extended & 0xFF  # primary result code, without extension (SQLITE_READONLY_DIRECTORY, ...)
    if code in _SQLITE_DAMAGED or extended in _SQLITE_DAMAGED_FILE:
        return _index_failed(IndexDamaged, error, place)
    # SQLite reports a file-size limit or a lost disk as a failed write.
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return _full(place, error)
    if code in _SQLITE_NO_WRITING:
        return read_only(place, _reason(error), IndexReadOnly)
    if code == sqlite3.SQLITE_BUSY:
        return StoreBusy(f"The index of the image store is in use: {error}.", "Try again.", place)
    return _index_failed(IndexSuspect if code == sqlite3.SQLITE_ERROR else StoreError, error, place)


def read_only(
    folder: Path | str, reason: str = "it is read-only", kind: type[StoreReadOnly] = StoreReadOnly
) -> StoreReadOnly:
    """The error of a write to a read-only store in `folder`, a path or URL."""
    return kind(
        f"The image store cannot be written ({reason}); nothing was stored.",
        "Ask the host to make the folder writable, or to choose another store with --store.",
        str(folder),
    )


def image_not_found(ref: object) -> ImageNotFound:
    """The error for an image reference that is not stored."""
    return ImageNotFound(f"No image {ref} is stored.", "List the images, or import it first.")


def _index_failed(kind: type[StoreError], error: Exception, place: str) -> StoreError:
    advice = "Ask the host to run `omnigen2-mcp store rebuild-index`."
    return kind(f"The index of the image store failed: {error}.", advice, place)


def _full(folder: Path | str, error: Exception) -> StoreFull:
    return StoreFull(
        f"The image store has no room to write ({_reason(error)}); nothing was stored.",
        "Ask the host to free disk space or to run `omnigen2-mcp store gc`, then try again.",
        str(folder),
    )


def _at(error: OSError, folder: Path | str) -> str:
    """The path of the file relative to the store, without revealing where the store is."""
    if isinstance(folder, str) or not isinstance(error.filename, str):
        return ""
    path = Path(error.filename)
    return f" at {path.relative_to(folder)}" if path.is_relative_to(folder) and path != folder else ""


def _reason(error: Exception) -> str:
    """The cause of an error, without file name or address."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
