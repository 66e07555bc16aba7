"""Read-only queries: find by id prefix, list, full-text search, lineage.

Uses the tables of `storage/index/tables.py`. Each query is one SQL statement, a lineage one per ancestor.
"""

import re
import sqlite3
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from storage.digest import Digest
from storage.errors import InvalidArgument
from storage.index import tokenizer
from storage.index.tables import IMAGE_COLUMNS, ImageRow, image_row, indexed_record, tool_word
from storage.records import Record

MAX_TERMS = 256
"""Words of a query: each costs a look into the index."""
_CURSOR = re.compile(r"[0-9a-f]{1,16}", re.ASCII)


def matching(db: sqlite3.Connection, prefix: str) -> list[ImageRow]:
    """Up to two images whose digest begins with these hex digits: enough to know whether one is meant."""
    low, high = prefix.ljust(64, "0"), prefix.ljust(64, "f")
    statement = f"SELECT {IMAGE_COLUMNS} FROM images WHERE digest BETWEEN ? AND ? ORDER BY digest LIMIT 2"
    rows = db.execute(statement, (bytes.fromhex(low), bytes.fromhex(high))).fetchall()
    return [image_row(row) for row in rows]


@dataclass(frozen=True, slots=True)
class Question:
    """Which images to list, newest first."""

    query: str | None
    """Words that all occur in the label, prompt or instruction, whatever their case, accents and English
    endings; in scripts without spaces, parts of the text."""
    tool: str | None
    since: int | None
    """Least key."""
    limit: int
    cursor: str | None
    """What an earlier page ended with."""


def listed(db: sqlite3.Connection, question: Question) -> tuple[list[ImageRow], str | None]:
    """A page of images, and the cursor of the next one if there is more.

    Raises:
        InvalidArgument: the cursor is none of ours.
    """
    match = _match(question)
    if match == "":
        return [], None
    source, key = (
        ("words JOIN images ON key = words.rowid", "words.rowid") if match else ("images", "images.key")
    )
    conditions = [
        (f"{key} < ?", _last_key(question.cursor)),
        (f"{key} >= ?", question.since),
        ("words MATCH ?", match),
    ]
    given = [(text, value) for text, value in conditions if value is not None]
    where = " AND ".join(text for text, _ in given) or "TRUE"
    # One more than asked, to know whether there is another page.
    statement = f"SELECT {IMAGE_COLUMNS} FROM {source} WHERE {where} ORDER BY {key} DESC LIMIT ?"
    rows = db.execute(statement, (*(value for _, value in given), question.limit + 1)).fetchall()
    images = [image_row(row) for row in rows[: question.limit]]
    return images, f"{images[-1].key:x}" if len(rows) > question.limit else None


def _match(question: Question) -> str | None:
    """The full-text expression; None if nothing is to be matched, empty if nothing can match."""
    terms: list[str] = []
    if question.query is not None and question.query.strip():
        asked = list(dict.fromkeys(tokenizer.terms(question.query)))
        if not asked:
            return ""
        if len(asked) > MAX_TERMS:
            raise InvalidArgument(
                f"query: {len(asked)} words given; at most {MAX_TERMS} are allowed.",
                "Leave the common ones out.",
            )
        terms += [f'text : "{term}"' for term in asked]
    if question.tool is not None:
        terms.append(f'tools : "{tool_word(question.tool)}"')
    return " AND ".join(terms) or None


def _last_key(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not _CURSOR.fullmatch(cursor) or int(cursor, 16) >= 1 << 63:
        raise InvalidArgument(
            f"{cursor[:40]!r} is no cursor.",
            "Give the cursor of the page before, or leave it out for the first page.",
        )
    return int(cursor, 16)


@dataclass(frozen=True, slots=True)
class Origin:
    """An image of a lineage, and the record that made it, if there is one."""

    image: ImageRow
    record_id: Digest | None
    record: Record | None


_ORIGIN = f"""SELECT {IMAGE_COLUMNS}, records.digest, records.body FROM images
LEFT JOIN records ON records.key = (
    SELECT made.record FROM edges AS made WHERE made.image = images.digest AND made.output = 1
    AND NOT EXISTS (SELECT 1 FROM edges AS used
        WHERE used.record = made.record AND used.output = 0 AND used.image = images.digest)
    ORDER BY made.record LIMIT 1)
WHERE images.digest = ?"""


def origin(db: sqlite3.Connection, image: Digest) -> Origin | None:
    """An image with the earliest record that made it from other images; None if it is not indexed."""
    row = db.execute(_ORIGIN, (image.raw,)).fetchone()
    if row is None:
        return None
    digest, body = row[-2:]
    made = (Digest(digest), indexed_record(body)) if body is not None else (None, None)
    return Origin(image_row(row), *made)


def origins(
    db: sqlite3.Connection, images: Iterable[Digest], limit: int | None = None
) -> dict[Digest, Origin]:
    """Images with all their ancestors, or those `limit` that come first breadth first."""
    found: dict[Digest, Origin] = {}
    ahead = deque(images)
    met = set(ahead)
    while ahead and (limit is None or len(found) < limit):
        if one := origin(db, ahead.popleft()):
            found[one.image.digest] = one
            fresh = [digest for digest in (one.record.inputs if one.record else ()) if digest not in met]
            ahead.extend(dict.fromkeys(fresh))
            met.update(fresh)
    return found


def oldest_first(found: dict[Digest, Origin], image: Digest) -> list[Origin]:
    """`origins` in an order in which every image comes after those it was made from; `image` is last."""
    ordered: list[Origin] = []
    seen: set[Digest] = set()
    path = [(image, False)]
    while path:
        digest, ready = path.pop()
        if ready:
            ordered.append(found[digest])
        elif digest in found and digest not in seen:
            seen.add(digest)
            record = found[digest].record
            path.append((digest, True))
            path += [(made_from, False) for made_from in reversed(record.inputs if record else ())]
    return ordered


def equal(db: sqlite3.Connection, memo: Digest) -> list[bytes]:
    """The bodies of the first records of equal requests, oldest first."""
    statement = "SELECT body FROM records WHERE memo = ? ORDER BY key LIMIT 100"
    return [body for (body,) in db.execute(statement, (memo.raw,))]
