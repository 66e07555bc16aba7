"""Whose images are whose: for each principal the images that its records made, and what it finds them by.

Derived from the records: an image is a principal's from the time of the first record of that principal that
has it as an output, whoever else made or imported the same picture, before or after.
"""

import sqlite3
from datetime import datetime

from storage.digest import Digest
from storage.index.keys import TIE_BITS, first_key, unused_key
from storage.index.texts import indexed_record, owner_token, text_of

SCHEMA = """
CREATE TABLE owners (
    key INTEGER PRIMARY KEY, principal TEXT NOT NULL, image BLOB NOT NULL, record INTEGER NOT NULL,
    UNIQUE (principal, image));
CREATE INDEX owners_principal ON owners (principal);
CREATE INDEX owners_image ON owners (image);
CREATE VIRTUAL TABLE owned_words USING fts5 (text, tools, owner, tokenize = 'porter unicode61');
CREATE TABLE owned_totals (principal TEXT PRIMARY KEY, images INTEGER NOT NULL, bytes INTEGER NOT NULL)
    WITHOUT ROWID;
CREATE TRIGGER owner_added AFTER INSERT ON owners BEGIN
    INSERT OR IGNORE INTO owned_totals VALUES (new.principal, 0, 0);
    UPDATE owned_totals SET images = images + 1,
        bytes = bytes + coalesce((SELECT bytes FROM images WHERE digest = new.image), 0)
        WHERE principal = new.principal; END;
CREATE TRIGGER owner_removed AFTER DELETE ON owners BEGIN
    UPDATE owned_totals SET images = images - 1,
        bytes = bytes - coalesce((SELECT bytes FROM images WHERE digest = old.image), 0)
        WHERE principal = old.principal; END;
CREATE TRIGGER owned_image_added AFTER INSERT ON images BEGIN
    UPDATE owned_totals SET bytes = bytes + new.bytes
        WHERE principal IN (SELECT principal FROM owners WHERE image = new.digest); END;
CREATE TRIGGER owned_image_removed AFTER DELETE ON images BEGIN
    UPDATE owned_totals SET bytes = bytes - old.bytes
        WHERE principal IN (SELECT principal FROM owners WHERE image = old.digest); END;
CREATE TRIGGER owned_record_added AFTER INSERT ON records WHEN new.principal IS NOT NULL BEGIN
    INSERT OR IGNORE INTO owned_totals VALUES (new.principal, 0, 0);
    UPDATE owned_totals SET bytes = bytes + new.bytes WHERE principal = new.principal; END;
CREATE TRIGGER owned_record_removed AFTER DELETE ON records WHEN old.principal IS NOT NULL BEGIN
    UPDATE owned_totals SET bytes = bytes - old.bytes WHERE principal = old.principal; END;
"""
"""`record` is the key of the first record, which dates the image for its owner."""
TABLES = ("owners", "owned_words", "owned_totals")


def refresh(db: sqlite3.Connection, image: Digest, principal: str) -> None:
    """Bring the rows of an image of a principal in line with the records of that principal."""
    (first,) = db.execute(
        """SELECT min(key) FROM records JOIN edges ON record = key
        WHERE image = ? AND output = 1 AND principal = ?""",
        (image.raw, principal),
    ).fetchone()
    row = db.execute(
        "SELECT key, record FROM owners WHERE principal = ? AND image = ?", (principal, image.raw)
    ).fetchone()
    if row is not None:
        db.execute("DELETE FROM owned_words WHERE rowid = ?", row[:1])
        if row[1] != first:
            db.execute("DELETE FROM owners WHERE key = ?", row[:1])
            row = None
    if first is None:
        return
    key = row[0] if row is not None else unused_key(db, "owners", first >> TIE_BITS, image)
    if row is None:
        db.execute("INSERT INTO owners VALUES (?, ?, ?, ?)", (key, principal, image.raw, first))
    if found := text_of(db, image, principal):
        db.execute(
            "INSERT INTO owned_words (rowid, text, tools, owner) VALUES (?, ?, ?, ?)",
            (key, *found, owner_token(principal)),
        )


def owns(db: sqlite3.Connection, principal: str, image: Digest) -> bool:
    """Whether an image is a principal's, stored or not."""
    statement = "SELECT 1 FROM owners WHERE principal = ? AND image = ?"
    return db.execute(statement, (principal, image.raw)).fetchone() is not None


def totals(db: sqlite3.Connection, principal: str) -> tuple[int, int]:
    """The number of images of a principal, and the bytes of its images and records."""
    row = db.execute("SELECT images, bytes FROM owned_totals WHERE principal = ?", (principal,)).fetchone()
    return row or (0, 0)


def made_since(db: sqlite3.Connection, principal: str, moment: datetime) -> list[tuple[datetime, int]]:
    """When models made images for a principal since `moment`, and how many each time."""
    statement = "SELECT body FROM records WHERE key >= ? AND principal = ? ORDER BY key"
    records = [indexed_record(body) for (body,) in db.execute(statement, (first_key(moment), principal))]
    return [(record.time, len(record.outputs)) for record in records if record.model and record.outputs]
