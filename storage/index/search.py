"""Read-only queries: find by id prefix, list, full-text search, lineage.

Uses the tables of `storage/index/tables.py`. Each query is one SQL statement, a lineage one per ancestor.

A query is made for a viewer: `EVERYONE`, or a principal for whom only its own images, records and labels
exist. What others have is not even read for a principal, but for the terms of a full-text query.
"""

import re
import sqlite3
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from storage.digest import Digest
from storage.errors import InvalidArgument
from storage.index import tokenizer
from storage.index.keys import TIE_BITS, first_key
from storage.index.tables import IMAGE_COLUMNS, ImageRow, image_row
from storage.index.texts import EVERYONE, indexed_record, owner_token, tool_token
from storage.records import Record

MAX_TERMS = 256
"""Maximum number of terms in a query: each costs an index lookup."""
_CURSOR = re.compile(r"[0-9a-f]{1,16}", re.ASCII)


_OWNED = f"""(SELECT owners.key, owners.image AS digest, width, height, bytes,
    (owners.record >> {TIE_BITS}) * 1000 AS created
    FROM owners CROSS JOIN images AS stored ON stored.digest = owners.image
    WHERE owners.principal = :viewer) AS images"""
"""The images of one principal; CROSS JOIN keeps the order, so that no row of another is read."""


def _images(viewer: str) -> str:
    """The images that a viewer sees, as a table `images`."""
    return _OWNED if viewer else "images"


def images_with_prefix(db: sqlite3.Connection, prefix: str, viewer: str = EVERYONE) -> list[ImageRow]:
    """Up to two images whose digest begins with these hex digits, enough to detect ambiguity."""
    low, high = prefix.ljust(64, "0"), prefix.ljust(64, "f")
    statement = f"""SELECT {IMAGE_COLUMNS} FROM {_images(viewer)}
        WHERE images.digest BETWEEN :low AND :high ORDER BY images.digest LIMIT 2"""
    given = {"viewer": viewer, "low": bytes.fromhex(low), "high": bytes.fromhex(high)}
    return [image_row(row) for row in db.execute(statement, given)]


@dataclass(frozen=True, slots=True)
class Query:
    """Conditions on the images to list."""

    text: str | None
    """Words that must all occur in label, prompt or instruction. Case, accents and English inflection are
    ignored; in scripts without spaces, substrings match."""
    tool: str | None
    since: datetime | None
    """Earliest time of storage, with a time zone."""
    limit: int
    """Maximum number of images."""
    cursor: str | None
    """The cursor of the previous page; None for the first page."""


def list_images(
    db: sqlite3.Connection, query: Query, viewer: str = EVERYONE
) -> tuple[list[ImageRow], str | None]:
    """A page of images, newest first, and the cursor of the next page, None on the last page.

    Raises:
        InvalidArgument: the cursor is invalid, the query has too many terms, or `since` has no time zone.
    """
    match = _match_expression(query, viewer)
    if match == "":
        return [], None
    words = "owned_words" if viewer else "words"
    source, key = (
        (f"{words} JOIN {_images(viewer)} ON images.key = {words}.rowid", f"{words}.rowid")
        if match
        else (_images(viewer), "images.key")
    )
    values = {"before": _cursor_key(query.cursor), "first": _first_key(query.since), "match": match}
    conditions = {"before": f"{key} < :before", "first": f"{key} >= :first", "match": f"{words} MATCH :match"}
    where = " AND ".join(text for name, text in conditions.items() if values[name] is not None) or "TRUE"
    # One more than the limit, to see whether there is a next page.
    statement = f"SELECT {IMAGE_COLUMNS} FROM {source} WHERE {where} ORDER BY {key} DESC LIMIT :most"
    rows = db.execute(statement, values | {"viewer": viewer, "most": query.limit + 1}).fetchall()
    images = [image_row(row) for row in rows[: query.limit]]
    return images, f"{images[-1].key:x}" if len(rows) > query.limit else None


def _match_expression(query: Query, viewer: str) -> str | None:
    """The full-text expression; None without a condition, empty if no image can match."""
    terms: list[str] = []
    if query.text is not None and query.text.strip():
        asked = list(dict.fromkeys(tokenizer.terms(query.text)))
        if not asked:
            return ""
        if len(asked) > MAX_TERMS:
            raise InvalidArgument(
                f"query: {len(asked)} words given; at most {MAX_TERMS} are allowed.",
                "Leave out the common ones.",
            )
        terms += [f'text : "{term}"' for term in asked]
    if query.tool is not None:
        terms.append(f'tools : "{tool_token(query.tool)}"')
    if terms and viewer:
        terms.append(f'owner : "{owner_token(viewer)}"')
    return " AND ".join(terms) or None


def _cursor_key(cursor: str | None) -> int | None:
    if cursor is None:
        return None
    if not _CURSOR.fullmatch(cursor) or int(cursor, 16) >= 1 << 63:
        raise InvalidArgument(
            f"{cursor[:40]!r} is not a valid cursor.",
            "Give the cursor of the previous page, or leave it out for the first page.",
        )
    return int(cursor, 16)


def _first_key(since: datetime | None) -> int | None:
    if since is None:
        return None
    if since.tzinfo is None:
        raise InvalidArgument(
            f"since is {since.isoformat()}, without a time zone.", "Add one, for example +00:00."
        )
    return first_key(since)


@dataclass(frozen=True, slots=True)
class Origin:
    """An image of a lineage, and the record that made it, if any."""

    image: ImageRow
    record_id: Digest | None
    record: Record | None


def _origin_statement(viewer: str) -> str:
    by = "JOIN records AS by ON by.key = made.record AND by.principal = :viewer" if viewer else ""
    return f"""SELECT {IMAGE_COLUMNS}, records.digest, records.body FROM {_images(viewer)}
        LEFT JOIN records ON records.key = (
            SELECT made.record FROM edges AS made {by} WHERE made.image = images.digest AND made.output = 1
            AND NOT EXISTS (SELECT 1 FROM edges AS used
                WHERE used.record = made.record AND used.output = 0 AND used.image = images.digest)
            ORDER BY made.record LIMIT 1)
        WHERE images.digest = :image"""


def origin(db: sqlite3.Connection, image: Digest, viewer: str = EVERYONE) -> Origin | None:
    """An image and the earliest record that has it as output and not as input; None if not indexed."""
    row = db.execute(_origin_statement(viewer), {"image": image.raw, "viewer": viewer}).fetchone()
    if row is None:
        return None
    digest, body = row[-2:]
    made = (Digest(digest), indexed_record(body)) if body is not None else (None, None)
    return Origin(image_row(row), *made)


def origins(
    db: sqlite3.Connection, images: Iterable[Digest], limit: int | None = None, viewer: str = EVERYONE
) -> dict[Digest, Origin]:
    """Images and all their ancestors, or the first `limit` of them in breadth-first order."""
    found: dict[Digest, Origin] = {}
    ahead = deque(images)
    met = set(ahead)
    while ahead and (limit is None or len(found) < limit):
        if one := origin(db, ahead.popleft(), viewer):
            found[one.image.digest] = one
            fresh = [digest for digest in (one.record.inputs if one.record else ()) if digest not in met]
            ahead.extend(dict.fromkeys(fresh))
            met.update(fresh)
    return found


def oldest_first(found: dict[Digest, Origin], image: Digest) -> list[Origin]:
    """`found` in topological order: every image after those it was made from, `image` last."""
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


def records_of_request(db: sqlite3.Connection, key: Digest, viewer: str = EVERYONE) -> list[bytes]:
    """The bodies of the oldest 100 records with this request key, oldest first."""
    statement = f"""SELECT body FROM records WHERE memo = :memo {"AND principal = :viewer" if viewer else ""}
        ORDER BY key LIMIT 100"""
    return [body for (body,) in db.execute(statement, {"memo": key.raw, "viewer": viewer})]


def has_record(db: sqlite3.Connection, digest: Digest, viewer: str) -> bool:
    """Whether a principal has this record."""
    statement = "SELECT 1 FROM records WHERE digest = ? AND principal = ?"
    return db.execute(statement, (digest.raw, viewer)).fetchone() is not None


def roots(db: sqlite3.Connection, stored_since: int, accessed_since: int) -> set[Digest]:
    """Images with a label or pin, stored or accessed since a time, in nanoseconds since 1970."""
    statement = """SELECT image FROM notes WHERE value IS NOT NULL
        UNION SELECT digest FROM images WHERE created >= ? UNION SELECT image FROM accesses WHERE time >= ?"""
    return {Digest(raw) for (raw,) in db.execute(statement, (stored_since, accessed_since))}


def reachable(db: sqlite3.Connection, roots: set[Digest]) -> set[Digest]:
    """`roots`, and every image in a record that made a reachable image."""
    makers: defaultdict[bytes, list[int]] = defaultdict(list)
    images_of: defaultdict[int, list[bytes]] = defaultdict(list)
    for record, output, image in db.execute("SELECT record, output, image FROM edges"):
        images_of[record].append(image)
        if output:
            makers[image].append(record)
    reached = {digest.raw for digest in roots}
    pending = list(reached)
    followed: set[int] = set()
    while pending:
        for record in makers[pending.pop()]:
            if record not in followed:
                followed.add(record)
                fresh = set(images_of[record]) - reached
                reached |= fresh
                pending += fresh
    return {Digest(raw) for raw in reached}


def records_referring_to(db: sqlite3.Connection, images: set[Digest]) -> set[Digest]:
    """Records with one of these images as input or output."""
    statement = "SELECT DISTINCT digest FROM edges JOIN records ON key = record WHERE image = ?"
    return {Digest(raw) for image in images for (raw,) in db.execute(statement, (image.raw,))}
