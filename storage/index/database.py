"""The index: answers questions about images and records quickly. A cache, never the truth.

SQLite in WAL mode, one short transaction per write, a pool of connections so that any thread may call. Its
tables are in `tables.py`. Deleted, damaged, of another schema version or not ours at all, it is built again
from blobs and records, so there are no migrations; a file that is damaged or not ours is set aside.
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
from storage.index.tables import DERIVED, OWN, SCHEMA, SCHEMA_VERSION, totals
from storage.permissions import DATABASE_SUFFIXES, create, make_database, make_folder, may_be_database

_WAIT_S = 60.0
_WAL_VERSIONS = slice(18, 20)
"""Where in a database file it says whether it is in WAL mode."""
Identity = tuple[int, int] | None


class Index:
    """The SQLite file of one store."""

    def __init__(self, path: Path | None) -> None:
        """Without a path the index is in memory, for as long as this object lives."""
        self.path = path
        self._name = secrets.token_hex(8)
        self._free: deque[sqlite3.Connection] = deque()
        self._pooled: Identity = None
        self._kept = None if path else self._connect()  # what is in memory goes with its last connection

    def identity(self) -> Identity:
        """Which file lies there now, to find out whether another process has put a new one in its place."""
        if self.path is None:
            return None
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def state(self) -> Literal["ready", "old", "broken"]:
        """Whether the file can be used, must be rebuilt, or must be set aside: damaged, or not ours."""
        try:
            # Not in WAL mode yet: that would change a file that may not be ours.
            with self._errors(), contextlib.closing(self._open()) as db:
                version, parts = _version(db), _parts(db)
        except (IndexDamaged, StoreReadOnly):
            return "broken"
        if version == SCHEMA_VERSION and parts == _our_parts():
            return "ready"
        ours = {(kind, name) for kind, name, _ in _our_parts()}
        old = 0 < version < SCHEMA_VERSION and all((kind, name) in ours for kind, name, _ in parts)
        return "old" if old or not parts else "broken"

    def version(self) -> int:
        """Of the schema; 0 if there is none yet."""
        with self._errors(), self._connection() as db:
            return _version(db)

    def set_aside(self, quarantine: Path) -> Path | None:
        """Move the file away, whatever it is, and what SQLite keeps beside it; the folder it lies in now.

        Raises:
            OSError: the folder cannot be written.
        """
        self.close()
        if self.path is None:
            return None
        make_folder(quarantine, self.path.parent / "locks")
        place = quarantine / f"index-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        make_folder(place, self.path.parent / "locks")
        with self._turn(fcntl.LOCK_EX):
            for suffix in reversed(DATABASE_SUFFIXES):
                if os.path.lexists(self._beside(suffix)):
                    os.rename(self._beside(suffix), place / self._beside(suffix).name)
        return place

    def copy(self, path: Path) -> None:
        """Take over, in memory, what the index in a file says that may only be read. Nothing, if it is not
        readable or not whole."""
        for options in ("mode=ro", "immutable=1"):  # the second needs no file beside it, and may see less
            with contextlib.suppress(sqlite3.Error, OSError), contextlib.ExitStack() as stack:
                if not stat.S_ISREG(path.stat().st_mode):
                    return
                uri = f"{path.as_uri()}?{options}"
                theirs = stack.enter_context(contextlib.closing(sqlite3.connect(uri, uri=True)))
                content = bytearray(theirs.serialize())
                content[_WAL_VERSIONS] = b"\x01\x01"  # what is in memory has no log
                whole = stack.enter_context(contextlib.closing(sqlite3.connect(":memory:")))
                whole.deserialize(bytes(content))
                if whole.execute("PRAGMA quick_check(1)").fetchone() == ("ok",) and self._kept:
                    whole.backup(self._kept)
                    return

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
            if _parts(db) != _our_parts():
                raise IndexDamaged("The index of the image store has tables that are not ours.")
            fill(db)
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextlib.contextmanager
    def _connection(self) -> Generator[sqlite3.Connection]:
        identity = self.identity()
        if identity != self._pooled:  # another process has set the file aside, and begun a new one
            self.close()
        try:
            db = self._free.pop()
        except IndexError:
            db = self._connect()
            identity = self._pooled = self.identity()
        try:
            yield db
        except BaseException:
            db.close()  # its state is anybody's guess
            raise
        if identity == self._pooled:
            self._free.append(db)
        else:
            db.close()

    def _connect(self) -> sqlite3.Connection:
        db = self._open()
        try:
            _use_wal(db)
            # A power cut may lose the last rows, never damage the file; blobs and records are synced by
            # themselves and found again.
            db.execute("PRAGMA synchronous = NORMAL")
        except BaseException:
            db.close()
            raise
        return db

    def _open(self) -> sqlite3.Connection:
        in_memory = f"file:/omnigen2-{self._name}?vfs=memdb"
        with self._turn(fcntl.LOCK_SH):
            if self.path is not None and not may_be_database(self.path):
                raise IndexDamaged("The index of the image store is not a file.")
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
                with contextlib.suppress(sqlite3.Error):  # have it open the files beside now
                    _version(db)
            except BaseException:
                db.close()
                raise
            return db

    @contextlib.contextmanager
    def _turn(self, how: int) -> Generator[None]:
        """Open files, or set them aside: SQLite must not find the log of one database beside another."""
        handle = -1
        if self.path is not None:
            folder = self.path.parent / "locks"
            with contextlib.suppress(OSError):  # then nothing in the folder can be moved either
                handle = create(folder / "index.lock", folder)
        try:
            if handle >= 0:
                fcntl.flock(handle, how)
            yield
        finally:
            if handle >= 0:
                os.close(handle)

    def _beside(self, suffix: str) -> Path:
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


def _parts(db: sqlite3.Connection) -> frozenset[tuple[str, str, str]]:
    """The tables, indexes, triggers and views of a database: kind, name, and the statement that made it."""
    statement = "SELECT type, name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite~_%' ESCAPE '~'"
    # What a virtual table keeps is its own business, which another version of SQLite may see otherwise.
    return frozenset(
        (kind, name, "" if name.startswith("words_") else sql) for kind, name, sql in db.execute(statement)
    )


@functools.cache
def _our_parts() -> frozenset[tuple[str, str, str]]:
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        for statement in _statements(SCHEMA + OWN):
            db.execute(statement)
        return _parts(db)


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
