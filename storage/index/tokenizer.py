"""Splits text into the terms of the full-text index, ignoring case and accents.

SQLite's tokenizers split at spaces and use an old Unicode version. So text is split here: into words in
scripts with spaces; into single characters in scripts without (Chinese, Japanese, Thai, Lao, Khmer, Burmese,
Tibetan) and in Korean, because of its particles, so that a phrase query finds any substring; and into single
emoji.
"""

import re
import unicodedata
from functools import lru_cache
from itertools import groupby
from typing import Literal

BREAK = "\ue000"
"""A token that occurs in no term: separates terms, so that no phrase matches across two."""
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u2e80-\ua4cf\ua960-\ua97f"
    "\ua9e0-\ua9ff\uaa60-\uaadf\uac00-\ud7ff\uf900-\ufaff\U00016fe0-\U00018dff\U0001aff0-\U0001b2ff"
    "\U00020000-\U0003ffff]"
)
_SKIN_TONES = ("\U0001f3fb", "\U0001f3ff")
_NEW_EMOJI = "\U0001f000"
"""Unassigned characters from here on are treated as emoji of a newer Unicode version."""
_COMBINING = range(10, 37), range(200, 241)
"""Combining classes to ignore: Hebrew and Arabic vowel points; accents above, below and through."""
_Kind = Literal["gap", "word", "character"]


def terms(text: str) -> list[str]:
    """The terms of a text in order, each a token or a phrase of tokens, to be quoted in a `MATCH` query.

    Terms contain no character with a meaning in FTS5 queries.
    """
    if text.isascii():
        return re.findall(r"[a-z0-9]+", text.lower())
    found: list[str] = []
    for kind, run in groupby(_folded(text), key=_kind):
        if kind == "word":
            found.append(token("".join(run)))
        elif kind == "character":
            found.append(" ".join(map(token, run)))
    return found


def indexed(text: str) -> str:
    """The text to store in the full-text index."""
    return f" {BREAK} ".join(terms(text))


def token(word: str) -> str:
    """A word as one token. Words that are not ASCII are hex-encoded, so that SQLite keeps them."""
    # The final digit disables the stemmer, which is for English only.
    return word if word.isascii() else f"{BREAK}{word.encode().hex()}0"


def _folded(text: str) -> str:
    """Text without case, accents, width variants, ligatures, joiners and variation selectors."""
    plain = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
    return unicodedata.normalize("NFC", "".join(filter(_is_significant, plain)))


@lru_cache(maxsize=1 << 13)
def _is_significant(character: str) -> bool:
    if any(unicodedata.combining(character) in classes for classes in _COMBINING):
        return False
    invisible = unicodedata.category(character) in ("Cf", "Me") or "\ufe00" <= character <= "\ufe0f"
    return not invisible


@lru_cache(maxsize=1 << 13)
def _kind(character: str) -> _Kind:
    category = unicodedata.category(character)
    if category == "So" or _SKIN_TONES[0] <= character <= _SKIN_TONES[1]:
        return "character"
    if category == "Cn" and character >= _NEW_EMOJI:
        return "character"
    if category[0] not in "LMN":
        return "gap"
    return "character" if _UNSPACED.match(character) else "word"
