"""The index: answers questions about images and records quickly. A cache, never the truth.

SQLite in WAL mode, one short transaction per write, a pool of connections so that any thread may call. Its
tables are in `rows.py`. Deleted, damaged, or of another schema version it is built again from blobs and
records, so there are no migrations.
"""

import contextlib
import random
import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Literal

from storage.errors import IndexDamaged, from_sqlite_error
from storage.modes import make_database
from storage.rows import DERIVED, OWN, SCHEMA, SCHEMA_VERSION, totals

_WAIT_S = 60.0


class Index:
    """The SQLite file of one store."""

    def __init__(self, path: Path | None) -> None:
        """Without a path the index is in memory, for as long as this object lives."""
        self.path = path
        self._name = secrets.token_hex(8)
        self._free: deque[sqlite3.Connection] = deque()
        self._kept = None if path else self._connect()  # what is in memory goes with its last connection

    def state(self) -> Literal["ready", "old", "broken"]:
        """Whether the file can be used, must be rebuilt, or must be deleted."""
        try:
            return "ready" if self.version() == SCHEMA_VERSION else "old"
        except IndexDamaged:
            return "broken"

    def version(self) -> int:
        """Of the schema; 0 if there is none yet."""
        with self._errors(), self._connection() as db:
            return db.execute("PRAGMA user_version").fetchone()[0]

    def forget(self) -> None:
        """Delete the file, whatever is in it."""
        self.close()
        if self.path is None:
            return
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        """Close every connection that is not in use."""
        while self._free:
            self._free.pop().close()

    @contextlib.contextmanager
    def reading(self) -> Generator[sqlite3.Connection]:
        """A connection on one consistent state."""
        with self._errors(), self._connection() as db:
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.execute("ROLLBACK")

    @contextlib.contextmanager
    def writing(self) -> Generator[sqlite3.Connection]:
        """A connection inside a write transaction: all of the block, or nothing."""
        with self._errors(), self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def used(self) -> int:
        """Bytes of all blobs and records."""
        with self.reading() as db:
            return totals(db)[1]

    def rebuild(self, fill: Callable[[sqlite3.Connection], None]) -> None:
        """Empty all derived tables and let `fill` add everything again, in one transaction."""
        with self.writing() as db:
            for table in DERIVED:
                db.execute(f"DROP TABLE IF EXISTS {table}")
            for statement in _statements(SCHEMA + OWN):
                db.execute(statement)
            fill(db)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextlib.contextmanager
    def _connection(self) -> Generator[sqlite3.Connection]:
        try:
            db = self._free.pop()
        except IndexError:
            db = self._connect()
        try:
            yield db
        except BaseException:
            db.close()  # its state is anybody's guess
            raise
        self._free.append(db)

    def _connect(self) -> sqlite3.Connection:
        in_memory = f"file:/omnigen2-{self._name}?vfs=memdb"
        if self.path is not None:
            with contextlib.suppress(OSError):  # SQLite says better what is wrong
                make_database(self.path, self.path.parent / "locks")
        db = sqlite3.connect(
            self.path or in_memory,
            timeout=_WAIT_S,
            isolation_level=None,
            check_same_thread=False,
            uri=self.path is None,
        )
        try:
            _use_wal(db)
            # A power cut may lose the last rows, never damage the file; blobs and records are synced by
            # themselves and found again.
            db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            db.close()
            raise
        return db

    @contextlib.contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise from_sqlite_error(error, self.path.parent if self.path else None) from error


def _use_wal(db: sqlite3.Connection) -> None:
    # The switch of a new file wants it alone, and SQLite gives up at once, whatever `timeout` says, when
    # another process is opening it as well.
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.001, 0.01))  # uneven, or all would come back together


def _statements(script: str) -> Generator[str]:
    # `executescript` commits first, which would show readers the emptied tables.
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
