"""What became of every job, written down beside the store, so that a restart forgets none.

One SQLite file for all servers of a store. A job whose server no longer lives was interrupted; that a server
lives is said by a lock that the kernel gives back when the process dies, so nothing is ever left stale. Only
the newest jobs are kept. Nothing is synced: what a power failure takes with it are statuses, never images.
"""

import fcntl
import os
import secrets
import sqlite3
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from storage.errors import from_os_error, from_sqlite_error
from storage.modes import create, make_database, make_folder
from tools.base import Code, JobState, ToolError

FILE = "jobs.sqlite"
KEPT = 10_000
"""Jobs that are remembered."""

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS jobs (
        number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, principal TEXT NOT NULL, tool TEXT NOT NULL,
        owner TEXT NOT NULL, state TEXT NOT NULL, result TEXT, code TEXT, message TEXT, advice TEXT
    ) STRICT
"""


@dataclass(frozen=True)
class Entry:
    """A job as it was written down."""

    id: str
    tool: str
    state: JobState
    result: str | None
    """JSON."""
    error: ToolError | None


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
        self._db = sqlite3.connect(
            self.folder / FILE if self.folder else ":memory:",
            timeout=10,
            isolation_level=None,
            check_same_thread=False,
        )
        self._do("PRAGMA journal_mode = WAL")
        self._do("PRAGMA synchronous = OFF")
        self._do(_SCHEMA)

    def close(self) -> None:
        """Give the files back; jobs that have not ended count as interrupted from now on."""
        self._db.close()
        if self.folder is not None and self._alive is not None:
            with suppress(OSError):
                _sign(self.folder, self._owner).unlink()
            os.close(self._alive)

    def begin(self, job_id: str, principal: str, tool: str) -> None:
        """Write down a new job. Raises StoreError if that is not possible."""
        self._do(
            "INSERT INTO jobs (id, principal, tool, owner, state) VALUES (?, ?, ?, ?, 'running')",
            job_id, principal, tool, self._owner,
        )  # fmt: skip
        self._do("DELETE FROM jobs WHERE number <= (SELECT max(number) FROM jobs) - ?", KEPT)

    def end(self, job_id: str, state: JobState, result: str | None, error: ToolError | None) -> None:
        """Write down how a job ended. Raises StoreError if that is not possible."""
        words = (error.code, error.message, error.advice) if error else (None, None, None)
        self._do(
            "UPDATE jobs SET state = ?, result = ?, code = ?, message = ?, advice = ? WHERE id = ?",
            state, result, *words, job_id,
        )  # fmt: skip

    def find(self, job_id: str, principal: str) -> Entry | None:
        """The job with this id, if it is the principal's."""
        rows = self._do(
            "SELECT tool, owner, state, result, code, message, advice FROM jobs"
            " WHERE id = ? AND principal = ?",
            job_id, principal,
        )  # fmt: skip
        if not rows:
            return None
        tool, owner, state, result, code, message, advice = rows[0]
        error = ToolError(cast(Code, code), message, advice) if code else None
        if state == "running" and not self._lives(owner):
            return Entry(job_id, tool, "interrupted", None, interrupted())
        return Entry(job_id, tool, state, result, error)

    def _do(self, statement: str, *values: object) -> list[tuple]:
        try:
            with self._lock:
                return self._db.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise from_sqlite_error(error, self.folder) from error

    def _sign_in(self, folder: Path) -> None:
        """Make the files, and show that this server lives."""
        make_folder(folder, folder.parent / "locks")
        with suppress(OSError):  # SQLite says better what is wrong
            make_database(folder / FILE, folder)
        for other in folder.glob("*.alive"):
            self._lives(other.stem)  # sweeps away what dead servers left
        unsigned = _sign(folder, self._owner).with_suffix(".new")
        self._alive = create(unsigned, folder)
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        unsigned.rename(_sign(folder, self._owner))  # named once it is locked: nobody sees it unlocked

    def _lives(self, owner: str) -> bool:
        """Whether the server of that name still runs; removes its sign of life if not."""
        if owner == self._owner or self.folder is None:
            return True
        sign = _sign(self.folder, owner)
        try:
            with sign.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        sign.unlink(missing_ok=True)
        return False


def _sign(folder: Path, owner: str) -> Path:
    return folder / f"{owner}.alive"


def interrupted() -> ToolError:
    """Why a job did not end, and what to do about it."""
    return ToolError(
        "cancelled",
        "The server stopped before the job was done; nothing of it was stored.",
        "Send the request again; with the same seed it gives the same result.",
    )
