"""Questions to the index: find by name, list, search, walk the lineage. Reads only.

Knows the tables of `storage/index.py`, and writes SQL so that each question is one statement.
"""

import re
import sqlite3
from dataclasses import dataclass

from storage.digest import Digest
from storage.errors import InvalidArgument
from storage.records import Record, parse_record
from storage.rows import IMAGE_COLUMNS, ImageRow, image_row, tool_word

_WORD = re.compile(r"\w+")
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
    """Words that all occur in the label, prompt or instruction; endings do not matter."""
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
        words = _WORD.findall(question.query)
        if not words:
            return ""
        terms += [f'text : "{word}"' for word in words]
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


_MAKER = """(SELECT made.record FROM edges AS made WHERE made.image = up.image AND made.output = 1
    AND NOT EXISTS (SELECT 1 FROM edges AS used
        WHERE used.record = made.record AND used.output = 0 AND used.image = up.image)
    ORDER BY made.record LIMIT 1)"""
_LINEAGE = f"""
WITH RECURSIVE
up (image) AS (
    SELECT ? UNION SELECT edges.image FROM up JOIN edges ON edges.output = 0 AND edges.record = {_MAKER}),
made (image, record) AS (SELECT up.image, {_MAKER} FROM up)
SELECT {IMAGE_COLUMNS}, records.digest, records.body
FROM made JOIN images ON images.digest = made.image LEFT JOIN records ON records.key = made.record
"""


def origins(db: sqlite3.Connection, image: Digest) -> dict[Digest, Origin]:
    """The image and all its ancestors, each with the earliest record that made it from other images."""
    found: dict[Digest, Origin] = {}
    for row in db.execute(_LINEAGE, (image.raw,)):
        ancestor, (digest, body) = image_row(row), row[-2:]
        made = (Digest(digest), parse_record(body)) if body is not None else (None, None)
        found[ancestor.digest] = Origin(ancestor, *made)
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
    """The bodies of the records of equal requests, oldest first."""
    return [
        body for (body,) in db.execute("SELECT body FROM records WHERE memo = ? ORDER BY key", (memo.raw,))
    ]
