"""The schema of the index, writes, and lookups. All functions run in the caller's transaction.

Rows are keyed by time, see `storage/index/keys.py`. The tables of what each principal sees are in
`storage/index/owners.py`; changes of records are passed on to them.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from storage.blobs import Blob
from storage.digest import Digest
from storage.errors import IndexDamaged
from storage.index import owners
from storage.index.keys import unused_key
from storage.index.texts import EVERYONE, indexed_record, text_of
from storage.records import LABEL, PIN, Record

SCHEMA_VERSION = 4
SCHEMA = (
    """
CREATE TABLE images (
    key INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, width INTEGER NOT NULL, height INTEGER NOT NULL,
    bytes INTEGER NOT NULL, created INTEGER NOT NULL);
CREATE TABLE records (
    key INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, memo BLOB NOT NULL, principal TEXT,
    bytes INTEGER NOT NULL, body BLOB NOT NULL);
CREATE INDEX records_memo ON records (memo, principal);
CREATE TABLE edges (
    record INTEGER NOT NULL, output INTEGER NOT NULL, place INTEGER NOT NULL, image BLOB NOT NULL,
    PRIMARY KEY (record, output, place)) WITHOUT ROWID;
CREATE INDEX edges_image ON edges (image, output, record);
CREATE TABLE notes (
    image BLOB NOT NULL, tool TEXT NOT NULL, viewer TEXT NOT NULL, record INTEGER NOT NULL, value TEXT,
    PRIMARY KEY (image, tool, viewer)) WITHOUT ROWID;
CREATE VIRTUAL TABLE words USING fts5 (text, tools, tokenize = 'porter unicode61');
CREATE TABLE totals (images INTEGER NOT NULL, bytes INTEGER NOT NULL);
INSERT INTO totals VALUES (0, 0);
CREATE TRIGGER image_added AFTER INSERT ON images
    BEGIN UPDATE totals SET images = images + 1, bytes = bytes + new.bytes; END;
CREATE TRIGGER image_removed AFTER DELETE ON images
    BEGIN UPDATE totals SET images = images - 1, bytes = bytes - old.bytes; END;
CREATE TRIGGER record_added AFTER INSERT ON records
    BEGIN UPDATE totals SET bytes = bytes + new.bytes; END;
CREATE TRIGGER record_removed AFTER DELETE ON records
    BEGIN UPDATE totals SET bytes = bytes - old.bytes; END;
"""
    + owners.SCHEMA
)
# Not derived from blobs and records, so a rebuild keeps it: the time of the last access to each image.
ACCESS_SCHEMA = """
CREATE TABLE IF NOT EXISTS accesses (image BLOB PRIMARY KEY, time INTEGER NOT NULL) WITHOUT ROWID;
"""
DERIVED = ("images", "records", "edges", "notes", "words", "totals", *owners.TABLES)

IMAGE_COLUMNS = """images.key, images.digest, images.width, images.height, images.bytes, images.created,
    (SELECT value FROM notes WHERE image = images.digest AND tool = 'label_image' AND viewer = :viewer),
    (SELECT value FROM notes WHERE image = images.digest AND tool = 'pin_image' AND viewer = :viewer)"""


@dataclass(frozen=True, slots=True)
class ImageRow:
    """The index row of an image."""

    key: int
    digest: Digest
    width: int
    height: int
    size: int
    created: int
    """Nanoseconds since 1970, UTC."""
    label: str | None
    pinned: bool


def image_row(row: Sequence[Any]) -> ImageRow:
    """The row in the columns `IMAGE_COLUMNS`."""
    return ImageRow(row[0], _digest(row[1]), row[2], row[3], row[4], row[5], row[6], row[7] is not None)


def _digest(raw: Any) -> Digest:
    if not isinstance(raw, bytes) or len(raw) != 32:
        raise IndexDamaged("The index of the image store contains an invalid id.")
    return Digest(raw)


def has_image(db: sqlite3.Connection, digest: Digest) -> bool:
    """Whether the image is indexed."""
    return db.execute("SELECT 1 FROM images WHERE digest = ?", (digest.raw,)).fetchone() is not None


def known_images(db: sqlite3.Connection) -> set[Digest]:
    """Every indexed image."""
    return {_digest(raw) for (raw,) in db.execute("SELECT digest FROM images")}


def known_records(db: sqlite3.Connection) -> set[Digest]:
    """Every indexed record."""
    return {_digest(raw) for (raw,) in db.execute("SELECT digest FROM records")}


def add_image(db: sqlite3.Connection, blob: Blob, size: tuple[int, int]) -> None:
    """Index a durable blob; `size` is width and height in pixels. No effect if already indexed."""
    if has_image(db, blob.digest):
        return
    key = unused_key(db, "images", blob.created // 1000, blob.digest)
    values = (key, blob.digest.raw, *size, blob.size, blob.created)
    db.execute("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)", values)
    _index_text(db, key, blob.digest)


def add_record(db: sqlite3.Connection, digest: Digest, record: Record, body: bytes) -> None:
    """Index a durable record. No effect if already indexed."""
    if db.execute("SELECT 1 FROM records WHERE digest = ?", (digest.raw,)).fetchone():
        return
    key = unused_key(db, "records", _microseconds(record), digest)
    values = (key, digest.raw, record.request_key.raw, record.owner, len(body), body)
    db.execute("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", values)
    edges = [(key, 0, place, image.raw) for place, image in enumerate(record.inputs)]
    edges += [(key, 1, place, image.raw) for place, image in enumerate(record.outputs)]
    db.executemany("INSERT INTO edges VALUES (?, ?, ?, ?)", edges)
    _apply_annotation(db, key, record)
    for image in {*record.outputs, *(record.inputs if record.tool == LABEL else ())}:
        _reindex_text(db, image)
        if record.owner:
            owners.refresh(db, image, record.owner)


def remove_images(db: sqlite3.Connection, digests: Iterable[Digest]) -> None:
    """Remove deleted images."""
    for digest in digests:
        row = db.execute("DELETE FROM images WHERE digest = ? RETURNING key", (digest.raw,)).fetchone()
        if row:
            db.execute("DELETE FROM words WHERE rowid = ?", row)
        db.execute("DELETE FROM accesses WHERE image = ?", (digest.raw,))


def remove_records(db: sqlite3.Connection, digests: Iterable[Digest]) -> None:
    """Remove deleted records, and the labels, pins, owners and search text that came from them."""
    touched: set[bytes] = set()
    owned: set[tuple[bytes, str]] = set()
    for digest in digests:
        row = db.execute(
            "DELETE FROM records WHERE digest = ? RETURNING key, principal", (digest.raw,)
        ).fetchone()
        if row:
            key, principal = row
            images = {raw for (raw,) in db.execute("SELECT image FROM edges WHERE record = ?", (key,))}
            touched |= images
            owned |= {(raw, principal) for raw in images if principal}
            db.execute("DELETE FROM edges WHERE record = ?", (key,))
    for raw in touched:
        _reapply_annotations(db, raw)
        _reindex_text(db, _digest(raw))
    for raw, principal in owned:
        owners.refresh(db, _digest(raw), principal)


def totals(db: sqlite3.Connection) -> tuple[int, int]:
    """The number of images, and the total bytes of images and records."""
    images, size = db.execute("SELECT images, bytes FROM totals").fetchone()
    return images, size


def size_of(db: sqlite3.Connection, images: Iterable[Digest], records: Iterable[Digest]) -> int:
    """Total bytes of these images and records."""
    statements = (("images", images), ("records", records))
    return sum(
        db.execute(f"SELECT coalesce(sum(bytes), 0) FROM {table} WHERE digest = ?", (digest.raw,)).fetchone()[
            0
        ]
        for table, digests in statements
        for digest in digests
    )


def dangling_records(db: sqlite3.Connection) -> list[Digest]:
    """Records that refer to an image which is not indexed."""
    statement = """SELECT DISTINCT records.digest FROM edges JOIN records ON records.key = record
        LEFT JOIN images ON images.digest = image WHERE images.key IS NULL ORDER BY records.digest"""
    return [_digest(raw) for (raw,) in db.execute(statement)]


def annotations_of(db: sqlite3.Connection, image: Digest, viewer: str = EVERYONE) -> list[Record]:
    """The records of the current label and pin of an image."""
    statement = """SELECT body FROM notes JOIN records ON key = record
        WHERE image = ? AND viewer = ? AND value IS NOT NULL"""
    return [indexed_record(body) for (body,) in db.execute(statement, (image.raw, viewer))]


def touch(db: sqlite3.Connection, digests: Iterable[Digest], time: int) -> None:
    """Record an access to images at `time`, nanoseconds since 1970."""
    statement = """INSERT INTO accesses VALUES (?, ?)
        ON CONFLICT (image) DO UPDATE SET time = max(time, excluded.time)"""
    db.executemany(statement, [(digest.raw, time) for digest in digests])


def touch_untouched(db: sqlite3.Connection, time: int) -> None:
    """Record an access at `time`, nanoseconds since 1970, to images without a recorded access."""
    db.execute("INSERT OR IGNORE INTO accesses SELECT digest, ? FROM images", (time,))


def last_touched(db: sqlite3.Connection, digest: Digest) -> int:
    """Time of the last access to an image, nanoseconds since 1970; 0 if none is recorded."""
    row = db.execute("SELECT time FROM accesses WHERE image = ?", (digest.raw,)).fetchone()
    return row[0] if row else 0


def _microseconds(record: Record) -> int:
    return round(record.time.timestamp() * 1_000_000)


def _apply_annotation(db: sqlite3.Connection, key: int, record: Record) -> None:
    """Apply a label or pin record, unless a later one was applied."""
    if record.tool not in (LABEL, PIN):
        return
    value = (
        record.parameters.get("label") if record.tool == LABEL else record.parameters.get("pinned") or None
    )
    statement = """INSERT INTO notes VALUES (?, ?, ?, ?, ?) ON CONFLICT (image, tool, viewer)
        DO UPDATE SET record = excluded.record, value = excluded.value WHERE excluded.record > record"""
    for image in record.inputs:
        for viewer in (EVERYONE, *([record.owner] if record.owner else [])):
            db.execute(statement, (image.raw, record.tool, viewer, key, value))


def _reapply_annotations(db: sqlite3.Connection, image: bytes) -> None:
    db.execute("DELETE FROM notes WHERE image = ?", (image,))
    statement = "SELECT key, body FROM records JOIN edges ON record = key WHERE image = ? AND output = 0"
    for key, body in db.execute(statement, (image,)).fetchall():
        _apply_annotation(db, key, indexed_record(body))


def _reindex_text(db: sqlite3.Connection, image: Digest) -> None:
    """Rewrite the search text of an image, if it is indexed."""
    row = db.execute("SELECT key FROM images WHERE digest = ?", (image.raw,)).fetchone()
    if row is not None:
        db.execute("DELETE FROM words WHERE rowid = ?", row)
        _index_text(db, row[0], image)


def _index_text(db: sqlite3.Connection, key: int, image: Digest) -> None:
    """Write the search text of an image."""
    if found := text_of(db, image, EVERYONE):
        db.execute("INSERT INTO words (rowid, text, tools) VALUES (?, ?, ?)", (key, *found))
