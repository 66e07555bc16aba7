"""What an image is found by: the text and the tools of the records that made it, and its label.

A viewer is a principal who sees only the records of that principal, or `EVERYONE`.
"""

import sqlite3

from storage.digest import Digest
from storage.errors import IndexDamaged, InvalidArgument
from storage.index import tokenizer
from storage.records import LABEL, Record, parse_record

EVERYONE = ""
"""The viewer who sees the records of all principals."""
_MAX_RECORDS = 20
"""Maximum number of records whose text is indexed for one image."""


def text_of(db: sqlite3.Connection, image: Digest, viewer: str) -> tuple[str, str] | None:
    """The text and the tools to index for an image; None if there are none."""
    statement = f"""SELECT body FROM records JOIN edges ON record = key WHERE image = ? AND output = 1
        {"AND principal = ?" if viewer else ""} ORDER BY key LIMIT {_MAX_RECORDS}"""
    given = (image.raw, viewer) if viewer else (image.raw,)
    records = [indexed_record(body) for (body,) in db.execute(statement, given)]
    label = db.execute(
        "SELECT value FROM notes WHERE image = ? AND tool = ? AND viewer = ?", (image.raw, LABEL, viewer)
    ).fetchone()
    texts = [record.searched_text() for record in records] + [label[0] if label and label[0] else ""]
    if not (records or texts[-1]):
        return None
    return tokenizer.indexed("\n".join(texts)), " ".join(sorted({tool_token(r.tool) for r in records}))


def indexed_record(body: bytes) -> Record:
    """The record in an indexed body.

    Raises:
        IndexDamaged: `body` is not a valid record.
    """
    try:
        return parse_record(body)
    except InvalidArgument as error:
        raise IndexDamaged("The index of the image store contains an invalid record.") from error


def tool_token(tool: str) -> str:
    """The name of a tool as one token of the full-text index, whatever characters it contains."""
    return "t" + tool.encode().hex()


def owner_token(principal: str) -> str:
    """The name of a principal as one token of the full-text index."""
    return "o" + principal.encode().hex()
