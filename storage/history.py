"""The history that an image file carries: a JSON list of records, and what an import keeps of it.

A record is joined to a store only if every image that it names is stored. The others stay what they are,
claims of a file: the record of the import keeps them as its parameter `history`. They refer to nothing in the
store, so the index, the search for equal requests and the garbage collection do not know them.
"""

import json
import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import cast

from pydantic import JsonValue, ValidationError

from storage.errors import InvalidArgument
from storage.extraction import MAX_TEXT
from storage.records import IMPORT, MAX_DEPTH, Record, depth, parse_record

HISTORY = "history"
"""Parameter of an import record: the records that the file claims, the last step first."""
MAX_RECORDS = 100
"""Maximum number of records that a file carries."""
MAX_CLAIMED = 500_000
"""Maximum size in bytes of the records that an import keeps as claims."""
MAX_REASONS = 3
"""Maximum number of reasons that are told one by one."""
_INSIDE = 3
"""Levels of lists and objects around a record in `HISTORY`."""
_MAX_TOKENS = 2_000_000
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["\[\]{},]', re.DOTALL)
"""What may hold or end an element of a JSON list: a text, or a character (a quote if a text has no end)."""


def as_text(records: Sequence[Record]) -> str:
    """The JSON list of records, as a file carries it."""
    return (b"[%s]" % b",".join(record.canonical for record in records)).decode()


def from_text(text: bytes, most: int = MAX_TEXT) -> tuple[list[Record], tuple[str, ...]]:
    """The records in a JSON list, not trusted, and reasons why others are refused, each for itself.

    After `most` bytes or `MAX_RECORDS` records, the list is not read any further.
    """
    records: list[Record] = []
    refused: list[str] = []
    size = 0
    for number, element in enumerate(_elements(text)):
        if isinstance(element, str):
            refused.append(f"Its history could not be read to the end: {element}.")
            break
        size += len(element)
        if size > most or number >= MAX_RECORDS:
            refused.append(f"Only the first {number} records of its history were read.")
            break
        try:
            record = parse_record(element)
            _ = record.canonical  # raises
            records.append(record)
        except InvalidArgument as error:
            refused.append(error.message)
    return records, tuple(refused)


def claims_in(text: bytes) -> tuple[list[JsonValue], tuple[str, ...]]:
    """The value of `HISTORY` for the history in a file (`StoredImage.history`), and what was left out."""
    if not text:
        return [], ()
    records, refused = from_text(text, 2 * MAX_CLAIMED)  # it may have white space
    claims, left = to_claims(records)
    told = [f"Left out of its history: {reason}" for reason in refused[:MAX_REASONS]]
    more = len(refused) - len(told)
    return claims, (*told, *([f"{more} more records of its history were refused."] if more else []), *left)


def to_claims(records: Sequence[Record]) -> tuple[list[JsonValue], tuple[str, ...]]:
    """The value of `HISTORY` for these records, and sentences on those that are left out."""
    claims: list[JsonValue] = []
    deep = size = 0
    for number, record in enumerate(records):
        size += len(record.canonical) + 1
        if size > MAX_CLAIMED:
            left = len(records) - number
            return claims, (*_too_deep(deep), f"The {left} oldest records of its history are too long.")
        if depth(json.loads(record.canonical)) + _INSIDE > MAX_DEPTH:
            deep += 1
        else:
            claims.append(_as_json(record))
    return claims, _too_deep(deep)


def claimed(record: Record, most: int = MAX_RECORDS) -> list[Record]:
    """The claims that an import record keeps, the last step first; `most` at most, and only valid ones.

    A claim may itself be an import with claims: they follow it.
    """
    found: list[Record] = []
    pending = deque(_claims_of(record))
    while pending and len(found) < most:
        try:
            claim = Record.model_validate(pending.popleft())
        except ValidationError:
            continue
        found.append(claim)
        pending.extendleft(reversed(_claims_of(claim)))
    return found


def _claims_of(record: Record) -> list[JsonValue]:
    claims = record.parameters.get(HISTORY) if record.tool == IMPORT else None
    return claims if isinstance(claims, list) else []


def _as_json(record: Record) -> JsonValue:
    return cast(JsonValue, record.model_dump(mode="json", exclude_none=True))


def _too_deep(count: int) -> tuple[str, ...]:
    return (f"{count} records of its history are nested too deeply.",) if count else ()


def _elements(text: bytes) -> Iterator[bytes | str]:
    """The elements of a JSON list as bytes, none of them checked; then a text that says what is wrong.

    Not a parser: a JSON library refuses the whole list for the sake of one element (nested too deeply, NaN,
    half a surrogate pair).
    """
    levels, start = 0, 0
    if not text.lstrip().startswith(b"["):
        yield "it is not a list of records"
        return
    for number, token in enumerate(_TOKEN.finditer(text)):
        at = token.start()
        sign = text[at : token.end()] if token.end() == at + 1 else b""
        levels += (sign in (b"[", b"{")) - (sign in (b"]", b"}"))
        if number > _MAX_TOKENS or sign == b'"' or (levels == 0 and sign != b"]"):
            break
        if levels == 1 and sign == b"[" and start == 0:
            start = at + 1
        elif (levels == 1 and sign == b",") or levels == 0:
            if element := text[start:at].strip():
                yield element
            start = at + 1
        if levels == 0:
            return
    yield "it has no end, or too many parts"
