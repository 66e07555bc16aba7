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


class IndexDamaged(StoreError):
    """The index file is no database any more. It is only a cache: build it again."""


ADVICE_AFAR = "Check the address, the network and the credentials."
"""What to do about an object store that fails."""
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NO_WRITING = {errno.EACCES, errno.EPERM, errno.EROFS}
_SQLITE_DAMAGED = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}
_SQLITE_NO_WRITING = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM}


def from_os_error(error: OSError, folder: Path | str, reading: bool = False) -> StoreError:
    """The store's word for an operating-system error met while working below `folder`, a path or URL."""
    if reading:
        return StoreError(
            f"The image store cannot be read ({_reason(error)}).",
            ADVICE_AFAR if isinstance(folder, str) else "Ask the host to run `omnigen2-mcp store verify`.",
            str(folder),
        )
    if error.errno in _NO_ROOM:
        return _full(folder, error)
    if error.errno in _NO_WRITING or isinstance(error, PermissionError):  # object stores give no number
        return _read_only(folder, error)
    advice = ADVICE_AFAR if isinstance(folder, str) else "Check the disk and the folder."
    return StoreError(f"The image store failed: {_reason(error)}.", advice, str(folder))


def from_sqlite_error(error: sqlite3.Error, folder: Path | None) -> StoreError:
    """The store's word for a database error met while using the index below `folder`; None: in memory."""
    place = str(folder or "in memory")
    # The low byte is the primary code; the rest only refines it (SQLITE_READONLY_DIRECTORY, ...).
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    # A file-size limit or a lost disk reaches SQLite as a failed write.
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        return _full(place, error)
    if code in _SQLITE_NO_WRITING:
        return _read_only(place, error)
    if code == sqlite3.SQLITE_BUSY:
        return StoreBusy(f"The index of the image store is in use: {error}.", "Try again.", place)
    kind = IndexDamaged if code in _SQLITE_DAMAGED else StoreError
    advice = "Ask the host to run `omnigen2-mcp store rebuild-index`."
    return kind(f"The index of the image store failed: {error}.", advice, place)


def _full(folder: Path | str, error: Exception) -> StoreFull:
    return StoreFull(
        f"The image store has no room to write ({_reason(error)}); nothing was stored.",
        "Ask the host to free disk space or to run `omnigen2-mcp store gc`, then try again.",
        str(folder),
    )


def _read_only(folder: Path | str, error: Exception) -> StoreReadOnly:
    return StoreReadOnly(
        f"The image store cannot be written ({_reason(error)}); nothing was stored.",
        "Ask the host to make the folder writable, or to choose another store with --store.",
        str(folder),
    )


def _reason(error: Exception) -> str:
    """What went wrong, without the file or address it went wrong with."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return str(error)
