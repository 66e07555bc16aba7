"""Keys of rows by time: microseconds since 1970 times 2048, plus 11 bits of a digest to break ties.

The key defines the order of rows in their table and in the full-text index, so pages are range scans and
cursors survive a rebuild.
"""

import sqlite3
from datetime import datetime

from storage.digest import Digest

TIE_BITS = 11
_LAST = (1 << 63 - TIE_BITS) - (1 << 20)
"""Maximum time in a key; the range above it is for rows whose key is already taken."""


def key_of(microseconds: int, digest: Digest) -> int:
    """The key of a row of this time since 1970."""
    return _shifted(microseconds) | (int.from_bytes(digest.raw[:2], "big") >> (16 - TIE_BITS))


def first_key(moment: datetime) -> int:
    """The smallest key of a row of `moment` or later."""
    return _shifted(round(moment.timestamp() * 1_000_000))


def unused_key(db: sqlite3.Connection, table: str, microseconds: int, digest: Digest) -> int:
    """A key for a new row of `table`: `key_of`, or one soon after it."""
    key = key_of(microseconds, digest)
    step = 1 + int.from_bytes(digest.raw[2:4], "big")  # depends on the digest, to avoid long probe sequences
    while db.execute(f"SELECT 1 FROM {table} WHERE key = ?", (key,)).fetchone():
        key += step
    return key


def _shifted(microseconds: int) -> int:
    # Times outside 1827 to 2112 do not fit and are clamped.
    return max(-_LAST, min(microseconds, _LAST)) << TIE_BITS
