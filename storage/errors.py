"""What the store refuses, in words an agent can act on.

Each class has a stable `code` from the project's list of error codes; surfaces pass code and message on
unchanged. The message names what was given and what is allowed, `advice` says what to do next.
"""

import errno
import sqlite3
from pathlib import Path


class StoreError(Exception):
    """Base of every error that the store raises on purpose."""

    code = "internal"

    def __init__(self, message: str, advice: str = "", place: str = "") -> None:
        """`place`: the folder or URL it happened at, for the host and nobody else."""
        super().__init__(message, advice, place)
        self.message = message
        self.advice = advice
        self.place = place

    def __str__(self) -> str:
        place = f"The store is {self.place}." if self.place else ""
        return " ".join(filter(None, (self.message, self.advice, place)))


class InvalidArgument(StoreError):
    """A reference, cursor, limit or record field that no state of the store could make right."""

    code = "invalid_argument"


class ImageNotFound(StoreError):
    """A well-formed reference to an image that is not here."""

    code = "image_not_found"


class ImageRejected(StoreError):
    """Bytes that are no image, or an image beyond the limits."""

    code = "image_rejected"


class StoreFull(StoreError):
    """No room: the quota is used up, or the disk is."""

    code = "busy"


class StoreBusy(StoreError):
    """Somebody else holds the exclusive lease that this work needs."""

    code = "busy"


class StoreReadOnly(StoreError):
    """The store, or its folder, does not take writes."""

    code = "forbidden"


class Corrupt(StoreError):
    """Stored bytes do not hash to their name."""


class Unreadable(StoreError):
    """The file system does not give the bytes of one file: a bad sector, a missing right, not a file."""


class IndexDamaged(StoreError):
    """The index is not what this program wrote. It is only a cache: build it again."""


class IndexReadOnly(StoreReadOnly):
    """The index cannot be opened or written: because of the folder, or because of what lies in its place."""


class IndexSuspect(IndexDamaged):
    """A statement failed: as it would if the tables were not ours, or if the statement is wrong."""


ADVICE_AFAR = "Check the address, the network and the credentials."
"""What to do about an object store that fails."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_WRITING = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_READING = {errno.EIO, errno.EACCES, errno.EPERM, errno.ELOOP, errno.EISDIR, errno.ENXIO}
"""What is wrong with one file. Not here: what passes, such as too many open files."""
_SQLITE_DAMAGED = {
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CONSTRAINT,  # rows that contradict each other: ours never do
    sqlite3.SQLITE_MISMATCH,
}
_SQLITE_DAMAGED_FILE = {
    sqlite3.SQLITE_IOERR_READ,
    sqlite3.SQLITE_IOERR_SHORT_READ,
    sqlite3.SQLITE_IOERR_CORRUPTFS,
}
_SQLITE_NO_WRITING = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}


def from_os_error(error: OSError, folder: Path | str, reading: bool = False) -> StoreError:
    """The store's word for an operating-system error met while working below `folder`, a path or URL."""
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


def unreadable_lease(name: str, folder: Path) -> StoreError:
    """The refusal to collect while it is not known which images a job needs."""
    return StoreError(
        f"Cannot collect: locks/leases/{name} cannot be read, and may name images that a job needs.",
        "Ask the host to remove it when no job runs.",
        str(folder),
    )


def cannot_write(error: OSError) -> bool:
    """Whether a right is missing, or the file system is read-only."""
    return error.errno in _NO_WRITING or isinstance(error, PermissionError)  # object stores give no number


def from_sqlite_error(error: sqlite3.Error, folder: Path | None) -> StoreError:
    """The store's word for a database error met while using the index below `folder`; None: in memory."""
    place = str(folder or "in memory")
    # No code: Python found that what SQLite holds as a text is none.
    no_text = sqlite3.SQLITE_CORRUPT if type(error) is sqlite3.OperationalError else sqlite3.SQLITE_MISUSE
    extended: int = getattr(error, "sqlite_errorcode", no_text)
    code = extended & 0xFF  # the primary code; the rest only refines it (SQLITE_READONLY_DIRECTORY, ...)
    if code in _SQLITE_DAMAGED or extended in _SQLITE_DAMAGED_FILE:
        return _index_failed(IndexDamaged, error, place)
    # A file-size limit or a lost disk reaches SQLite as a failed write.
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return _full(place, error)
    if code in _SQLITE_NO_WRITING:
        return read_only(place, _reason(error), IndexReadOnly)
    if code == sqlite3.SQLITE_BUSY:
        return StoreBusy(f"The index of the image store is in use: {error}.", "Try again.", place)
    return _index_failed(IndexSuspect if code == sqlite3.SQLITE_ERROR else StoreError, error, place)


def read_only(
    folder: Path | str, reason: str = "it may only be read", kind: type[StoreReadOnly] = StoreReadOnly
) -> StoreReadOnly:
    """The refusal of a store below `folder`, a path or URL, that does not take writes."""
    return kind(
        f"The image store cannot be written ({reason}); nothing was stored.",
        "Ask the host to make the folder writable, or to choose another store with --store.",
        str(folder),
    )


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
    """Where in the store, so that the host knows which file to look at; where the store is stays unsaid."""
    if isinstance(folder, str) or not isinstance(error.filename, str):
        return ""
    path = Path(error.filename)
    return f" at {path.relative_to(folder)}" if path.is_relative_to(folder) and path != folder else ""


def _reason(error: Exception) -> str:
    """What went wrong, without the file or address it went wrong with."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
