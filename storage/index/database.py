"""The SQLite database of the index: connections, transactions, version check and replacement.

WAL mode, one short transaction per write, and a thread-safe pool of connections. The schema is in
`tables.py`. A database that is missing, damaged, foreign or of another schema version is rebuilt from blobs
and records, so there are no migrations; a damaged or foreign file is moved to the quarantine.
"""

import contextlib
import fcntl
import functools
import os
import random
import secrets
import sqlite3
import stat
import time
from collections import deque
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Literal

from storage.errors import IndexDamaged, StoreReadOnly, from_sqlite_error
from storage.index.tables import ACCESS_SCHEMA, DERIVED, SCHEMA, SCHEMA_VERSION, totals
from storage.permissions import DATABASE_SUFFIXES, create, make_database, make_folder, may_be_database

_TIMEOUT_S = 60.0
"""Maximum time to wait for a database lock."""
_WAL_VERSIONS = slice(18, 20)
"""Position in the header of a database file of the two bytes that select WAL mode."""
Identity = tuple[int, int] | None
"""Device and inode of a database file; None in memory or if there is none."""


class Index:
    """The SQLite file of one store."""

    def __init__(self, path: Path | None) -> None:
        """Open no file yet. Without a path, the index is in memory and lives as long as this object."""
        self.path = path
        self._name = secrets.token_hex(8)
        self._free: deque[sqlite3.Connection] = deque()
        self._pooled: Identity = None
        self._keep_alive = (
            None if path else self._connect()
        )  # an in-memory database ends with its last connection

    def identity(self) -> Identity:
        """Identifies the current file, to detect that another process has replaced it."""
        if self.path is None:
            return None
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def state(self) -> Literal["ready", "old", "broken"]:
        """`ready` to use, `old` and to be rebuilt, or `broken`: damaged or foreign, and to be replaced."""
        try:
            # Not in WAL mode yet: that would modify a possibly foreign file.
            with self._errors(), contextlib.closing(self._open()) as db:
                version, found = _version(db), _schema_objects(db)
        except (IndexDamaged, StoreReadOnly):
            return "broken"
        if version == SCHEMA_VERSION and found == _expected_objects():
            return "ready"
        expected = {(kind, name) for kind, name, _ in _expected_objects()}
        old = 0 < version < SCHEMA_VERSION and all((kind, name) in expected for kind, name, _ in found)
        return "old" if old or not found else "broken"

    def version(self) -> int:
        """The schema version; 0 for a new database."""
        with self._errors(), self._connection() as db:
            return _version(db)

    def set_aside(self, quarantine: Path) -> Path | None:
        """Move the database with its WAL files to `quarantine`; returns the new folder, None in memory.

        Raises:
            OSError: the folder cannot be written.
        """
        self.close()
        if self.path is None:
            return None
        make_folder(quarantine, self.path.parent / "locks")
        place = quarantine / f"index-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        make_folder(place, self.path.parent / "locks")
        with self._file_lock(fcntl.LOCK_EX):
            for suffix in reversed(DATABASE_SUFFIXES):
                if os.path.lexists(self._file(suffix)):
                    os.rename(self._file(suffix), place / self._file(suffix).name)
        return place

    def copy(self, path: Path) -> None:
        """Copy a read-only database file into memory. No effect if it is unreadable or damaged."""
        for options in ("mode=ro", "immutable=1"):  # the second needs no WAL files, but may miss recent rows
            with contextlib.suppress(sqlite3.Error, OSError), contextlib.ExitStack() as stack:
                if not stat.S_ISREG(path.stat().st_mode):
                    return
                uri = f"{path.as_uri()}?{options}"
                source = stack.enter_context(contextlib.closing(sqlite3.connect(uri, uri=True)))
                content = bytearray(source.serialize())
                content[_WAL_VERSIONS] = b"\x01\x01"  # an in-memory database has no WAL
                copied = stack.enter_context(contextlib.closing(sqlite3.connect(":memory:")))
                copied.deserialize(bytes(content))
                if copied.execute("PRAGMA quick_check(1)").fetchone() == ("ok",) and self._keep_alive:
                    copied.backup(self._keep_alive)
                    return

    def close(self) -> None:
        """Close all idle connections."""
        while self._free:
            self._free.pop().close()

    @contextlib.contextmanager
    def reading(self) -> Generator[sqlite3.Connection]:
        """A connection in a read transaction."""
        with self._errors(), self._connection() as db:
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.execute("ROLLBACK")

    @contextlib.contextmanager
    def writing(self) -> Generator[sqlite3.Connection]:
        """A connection in a write transaction, rolled back if the block raises."""
        with self._errors(), self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            finally:
                if db.in_transaction:
                    db.execute("ROLLBACK")

    def used(self) -> int:
        """Total bytes of all blobs and records."""
        with self.reading() as db:
            return totals(db)[1]

    def rebuild(self, fill: Callable[[sqlite3.Connection], None]) -> None:
        """Recreate all derived tables and have `fill` add their rows, in one transaction."""
        with self.writing() as db:
            for table in DERIVED:
                db.execute(f"DROP TABLE IF EXISTS {table}")
            for statement in _statements(SCHEMA + ACCESS_SCHEMA):
                db.execute(statement)
            if _schema_objects(db) != _expected_objects():
                raise IndexDamaged("The index of the image store has unknown tables.")
            fill(db)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextlib.contextmanager
    def _connection(self) -> Generator[sqlite3.Connection]:
        identity = self.identity()
        if identity != self._pooled:  # another process has replaced the file
            self.close()
        try:
            db = self._free.pop()
        except IndexError:
            db = self._connect()
            identity = self._pooled = self.identity()
        try:
            yield db
        except BaseException:
            db.close()  # its state is unknown
            raise
        if identity == self._pooled:
            self._free.append(db)
        else:
            db.close()

    def _connect(self) -> sqlite3.Connection:
        db = self._open()
        try:
            _use_wal(db)
            # A power cut may lose the last transactions, but not damage the file; blobs and records are
            # synced separately, and lost rows can be restored from them.
            db.execute("PRAGMA synchronous = NORMAL")
            # Temporary files of a transaction: no folder for them is needed that this user may write to.
            db.execute("PRAGMA temp_store = MEMORY")
        except BaseException:
            db.close()
            raise
        return db

    def _open(self) -> sqlite3.Connection:
        in_memory = f"file:/omnigen2-{self._name}?vfs=memdb"
        with self._file_lock(fcntl.LOCK_SH):
            if self.path is not None and not may_be_database(self.path):
                raise IndexDamaged("The index of the image store is not a regular file.")
            if self.path is not None:
                with contextlib.suppress(OSError):  # SQLite gives the better error message
                    make_database(self.path, self.path.parent / "locks")
            db = sqlite3.connect(
                self.path or in_memory,
                timeout=_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
                uri=self.path is None,
            )
            try:
                with contextlib.suppress(sqlite3.Error):  # makes SQLite open the WAL files now
                    _version(db)
            except BaseException:
                db.close()
                raise
            return db

    @contextlib.contextmanager
    def _file_lock(self, operation: int) -> Generator[None]:
        """Lock the opening or replacing of files: SQLite must not pair a database with another's WAL."""
        handle = -1
        if self.path is not None:
            folder = self.path.parent / "locks"
            with contextlib.suppress(OSError):  # then the folder is not writable, and no file can be replaced
                handle = create(folder / "index.lock", folder)
        try:
            if handle >= 0:
                fcntl.flock(handle, operation)
            yield
        finally:
            if handle >= 0:
                os.close(handle)

    def _file(self, suffix: str) -> Path:
        assert self.path is not None
        return self.path.with_name(self.path.name + suffix)

    @contextlib.contextmanager
    def _errors(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise from_sqlite_error(error, self.path.parent if self.path else None) from error


def _version(db: sqlite3.Connection) -> int:
    return db.execute("PRAGMA user_version").fetchone()[0]


def _schema_objects(db: sqlite3.Connection) -> frozenset[tuple[str, str, str]]:
    """The tables, indexes, triggers and views of a database: type, name and SQL definition."""
    statement = "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite~_%' ESCAPE '~'"
    # The shadow tables of a virtual table may differ between versions of SQLite.
    return frozenset(
        (kind, name, "" if name.startswith(("words_", "owned_words_")) else sql)
        for kind, name, sql in db.execute(statement)
    )


@functools.cache
def _expected_objects() -> frozenset[tuple[str, str, str]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for statement in _statements(SCHEMA + ACCESS_SCHEMA):
            db.execute(statement)
        return _schema_objects(db)


def _use_wal(db: sqlite3.Connection) -> None:
    # Switching a new file needs exclusive access; SQLite ignores `timeout` here and fails at once if another
    # process is opening the file too.
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.001, 0.01))  # random, so that processes do not retry in step


def _statements(script: str) -> Generator[str]:
    # Not `executescript`: it commits first, so that readers would see the empty tables.
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
