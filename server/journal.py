"""The state of every job, stored beside the images, so that it survives a restart.

One SQLite file for all servers of a store. A job whose server has died was interrupted; a living server holds
a lock, which the kernel releases when the process dies, so no entry is ever stale. Only
the newest jobs are kept. Nothing is synced: what a power failure takes with it are statuses, never images. A
file that cannot be used is set aside, beside the new one that takes its place.
"""

import fcntl
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from server.log import get_logger
from storage.errors import from_os_error, from_sqlite_error
from storage.permissions import create, make_database, make_folder, may_be_database
from tools.base import Code, JobState, ToolError

FILE = "jobs.sqlite"
log = get_logger(__name__)
KEPT = 10_000
"""Number of newest jobs that are kept."""
UNUSABLE = {
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CONSTRAINT,
    sqlite3.SQLITE_MISMATCH,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_PERM,
}
"""What SQLite says of a damaged file, and of one with tables that are not ours."""

KEPT_KEYS = 1_000
"""Number of newest idempotency keys of a principal that are kept."""
KEY_S = 24 * 3600
"""Seconds for which they are kept."""

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS jobs (
        number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, principal TEXT NOT NULL, tool TEXT NOT NULL,
        owner TEXT NOT NULL, state TEXT NOT NULL, result TEXT, code TEXT, message TEXT, advice TEXT
    ) STRICT;
    CREATE TABLE IF NOT EXISTS keys (
        number INTEGER PRIMARY KEY, principal TEXT NOT NULL, key TEXT NOT NULL, call TEXT NOT NULL,
        created INTEGER NOT NULL, job TEXT, result TEXT, UNIQUE (principal, key)
    ) STRICT
"""
_COLUMNS = "number, id, tool, owner, state, result, code, message, advice, created"


@dataclass(frozen=True)
class Entry:
    """A job as it was journaled."""

    id: str
    tool: str
    state: JobState
    result: str | None
    """What `Result.to_journal` gave."""
    error: ToolError | None
    created: int | None = None
    """When it was queued, in seconds of Unix time; None if an earlier version wrote it."""


@dataclass(frozen=True)
class Keyed:
    """What an idempotency key stands for."""

    call: str
    """Digest of the call."""
    job: str | None
    """Id of its job."""
    result: str | None
    """Of a call without a job: what `Result.to_journal` gave."""


class Journal:
    """The journal of one store, as one server writes it. Safe for use by several threads."""

    def __init__(self, store: Path | None) -> None:
        """Open the journal of the store in the folder `store`; that of a store in memory is there, too.

        Raises:
            StoreError: it cannot be written.
        """
        self.folder = store / "jobs" if store else None
        self._owner = secrets.token_hex(8)
        self._lock = threading.Lock()
        self._alive: int | None = None
        if self.folder is not None:
            try:
                self._sign_in(self.folder)
            except OSError as error:
                raise from_os_error(error, self.folder.parent) from error
        try:
            with self._lock:
                self._db = self._opened()
        except sqlite3.Error as error:
            raise from_sqlite_error(error, self.folder) from error

    def close(self) -> None:
        """Close the files; jobs that have not ended count as interrupted from now on."""
        self._db.close()
        if self.folder is not None and self._alive is not None:
            with suppress(OSError):
                _sign(self.folder, self._owner).unlink()
            os.close(self._alive)

    def begin(self, job_id: str, principal: str, tool: str) -> None:
        """Add a new job. Raises StoreError if that is not possible."""
        self._do(
            "INSERT INTO jobs (id, principal, tool, owner, state, created)"
            " VALUES (?, ?, ?, ?, 'running', ?)",
            job_id, principal, tool, self._owner, int(time.time()),
        )  # fmt: skip
        self._do("DELETE FROM jobs WHERE number <= (SELECT max(number) FROM jobs) - ?", KEPT)

    def end(self, job_id: str, state: JobState, result: str | None, error: ToolError | None) -> None:
        """Record how a job ended. Raises StoreError if that is not possible."""
        words = (error.code, error.message, error.advice) if error else (None, None, None)
        self._do(
            "UPDATE jobs SET state = ?, result = ?, code = ?, message = ?, advice = ? WHERE id = ?",
            state, result, *words, job_id,
        )  # fmt: skip

    def find(self, job_id: str, principal: str) -> Entry | None:
        """The job with this id, if it is the principal's."""
        rows = self._do(f"SELECT {_COLUMNS} FROM jobs WHERE id = ? AND principal = ?", job_id, principal)
        return self._entry(*rows[0][1:]) if rows else None

    def newest(self, principal: str, limit: int, before: str | None = None) -> list[Entry]:
        """The newest jobs of a principal, newest first; with `before`, only those older than that job."""
        older = "AND number < (SELECT number FROM jobs WHERE id = ?)" if before else "AND ? IS NULL"
        rows = self._do(
            f"SELECT {_COLUMNS} FROM jobs WHERE principal = ? {older} ORDER BY number DESC LIMIT ?",
            principal, before, limit,
        )  # fmt: skip
        return [entry for row in rows if (entry := self._entry(*row[1:])) is not None]

    def _entry(
        self, job_id: str, tool: str, owner: str, state: str, result: str | None,
        code: str | None, message: str | None, advice: str | None, created: int | None,
    ) -> Entry | None:  # fmt: skip
        """A row as an entry; None if it was not written by us."""
        if state not in get_args(JobState):
            return None
        known = code if code in get_args(Code) else "internal"
        error = ToolError(cast(Code, known), message or "", advice or "") if code else None
        if state == "running" and not self._lives(owner):
            return Entry(job_id, tool, "interrupted", None, interrupted(), created)
        return Entry(job_id, tool, cast(JobState, state), result, error, created)

    def keep_key(self, principal: str, key: str, kept: Keyed) -> None:
        """Keep what a key stands for, in the place of what it stood for. Raises StoreError."""
        now = int(time.time())
        self._do(
            "INSERT OR REPLACE INTO keys (principal, key, call, created, job, result)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            principal, key, kept.call, now, kept.job, kept.result,
        )  # fmt: skip
        self._do(
            "DELETE FROM keys WHERE created < ? OR (principal = ? AND number <="
            " (SELECT number FROM keys WHERE principal = ? ORDER BY number DESC LIMIT 1 OFFSET ?))",
            now - KEY_S, principal, principal, KEPT_KEYS,
        )  # fmt: skip

    def find_key(self, principal: str, key: str) -> Keyed | None:
        """What a principal's key stands for, if it is known and not too old."""
        rows = self._do(
            "SELECT call, job, result FROM keys WHERE principal = ? AND key = ? AND created >= ?",
            principal, key, int(time.time()) - KEY_S,
        )  # fmt: skip
        return Keyed(*rows[0]) if rows else None

    def _do(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                try:
                    return self._db.execute(statement, values).fetchall()
                except sqlite3.Error as error:
                    if not self._unusable(error) or isinstance(error, sqlite3.IntegrityError):
                        raise
                    self._db.close()
                    self._db = self._opened(broken=error)
                    return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise from_sqlite_error(error, self.folder) from error

    def _opened(self, broken: sqlite3.Error | None = None) -> sqlite3.Connection:
        """The database; a new one if it is `broken` or cannot be used."""
        if self.folder is None:
            return _database(":memory:")
        with _alone(self.folder):  # what one server sets aside must not be the new file of another
            if broken is not None:
                _set_aside(self.folder / FILE, broken)
            try:
                return _database(self.folder / FILE)
            except sqlite3.Error as error:
                if not self._unusable(error):
                    raise
                _set_aside(self.folder / FILE, error)
            with suppress(OSError):  # SQLite says better what is wrong
                make_database(self.folder / FILE, self.folder)
            return _database(self.folder / FILE)

    def _unusable(self, error: sqlite3.Error) -> bool:
        """Whether a new file would help; it would not on a disk that is full or read-only."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        return self.folder is not None and code in UNUSABLE

    def _sign_in(self, folder: Path) -> None:
        """Create the files, and lock the one that marks this server as alive."""
        if folder.exists() and not folder.is_dir():
            _rename_aside(folder)
        make_folder(folder, folder.parent / "locks")
        with suppress(OSError):  # SQLite says better what is wrong
            make_database(folder / FILE, folder)
        for other in folder.glob("*.alive"):
            self._lives(other.stem)  # removes the files of dead servers
        unsigned = _sign(folder, self._owner).with_suffix(".new")
        self._alive = create(unsigned, folder)
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        unsigned.rename(
            _sign(folder, self._owner)
        )  # named once it is locked: no other process sees it unlocked

    def _lives(self, owner: str) -> bool:
        """Whether the server of that name still runs; removes its lock file if not."""
        if owner == self._owner or self.folder is None:
            return True
        sign = _sign(self.folder, owner)
        try:
            with sign.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:  # gone, or no file of ours
            return False
        with suppress(OSError):
            sign.unlink()
        return False


def _database(file: Path | str) -> sqlite3.Connection:
    """The database in a file, whose table is there and takes our rows."""
    if isinstance(file, Path) and not may_be_database(file):
        raise sqlite3.OperationalError("not a regular file")
    database = sqlite3.connect(file, timeout=10, isolation_level=None, check_same_thread=False)
    try:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = OFF")
        database.executescript(_SCHEMA)
        if "created" not in [row[1] for row in database.execute("PRAGMA table_info(jobs)")]:
            database.execute("ALTER TABLE jobs ADD COLUMN created INTEGER")  # an earlier version wrote it
        database.execute("BEGIN IMMEDIATE")
        database.execute(
            "INSERT INTO jobs (id, principal, tool, owner, state, result, code, message, advice)"
            " VALUES ('', '', '', '', 'running', NULL, NULL, NULL, NULL)"
        )
        database.execute(f"SELECT {_COLUMNS}, max(number) FROM jobs").fetchall()
        database.execute(
            "INSERT INTO keys (principal, key, call, created, job, result) VALUES ('', '', '', 0, NULL, NULL)"
        )
        database.execute("ROLLBACK")
    except BaseException:
        database.close()
        raise
    return database


def _set_aside(file: Path, error: sqlite3.Error) -> None:
    """Give a database another name, so that a new one can be begun. What cannot be renamed stays."""
    kept = _rename_aside(file)
    if kept is None:
        return
    for suffix in ("-wal", "-shm"):
        with suppress(OSError):
            file.with_name(file.name + suffix).rename(kept.with_name(kept.name + suffix))
    log.warning("the journal of jobs cannot be used; a new one is begun", kept=kept.name, reason=str(error))


def _rename_aside(path: Path) -> Path | None:
    kept = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(2)}")
    try:
        path.rename(kept)
    except OSError:
        return None
    return kept


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Open the journal while no other server does: one at a time sets a file aside, or switches it to WAL."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise from_os_error(error, folder.parent) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _sign(folder: Path, owner: str) -> Path:
    return folder / f"{owner}.alive"


def interrupted() -> ToolError:
    """Why a job did not end, and what to do about it."""
    return ToolError(
        "cancelled",
        "The server stopped before the job was done; nothing of it was stored.",
        "Send the request again; with the same seed it gives the same result.",
    )
