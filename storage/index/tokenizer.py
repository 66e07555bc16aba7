"""Text as terms of the full-text index: what is written alike, or differs in case or accents only, is alike.

SQLite's tokenizers split at spaces and know the characters of an old Unicode version. So text is split here:
words where scripts have spaces; single characters where they have none (Chinese, Japanese, Korean with its
particles, Thai, Lao, Khmer, Burmese, Tibetan), so that a phrase of them finds any part of a text; and emoji.
"""

import re
import unicodedata
from functools import lru_cache
from itertools import groupby
from typing import Literal

BREAK = "\ue000"
"""A token that no term has: between two terms, so that no phrase goes across."""
_UNSPACED = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1100-\u11ff\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u2e80-\ua4cf\ua960-\ua97f"
    "\ua9e0-\ua9ff\uaa60-\uaadf\uac00-\ud7ff\uf900-\ufaff\U00016fe0-\U00018dff\U0001aff0-\U0001b2ff"
    "\U00020000-\U0003ffff]"
)
_SKIN_TONES = ("\U0001f3fb", "\U0001f3ff")
_NEW_EMOJI = "\U0001f000"
"""From here on, what this Python does not know yet is taken for an emoji."""
_SPOKEN = range(10, 37), range(200, 241)
"""Combining classes of points and accents: Hebrew and Arabic vowels; above, below and through letters."""
_Kind = Literal["gap", "word", "character"]


def terms(text: str) -> list[str]:
    """The terms of a text in their order, each a token or a phrase of tokens, for `MATCH` between quotes.

    None of them has a character with a meaning in a query.
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
    """A text as the index holds it."""
    return f" {BREAK} ".join(terms(text))


def token(word: str) -> str:
    """A word as one token. One beyond ASCII is spelt so that SQLite need not know its characters."""
    # The digit at the end keeps the stemmer away, which knows English only.
    return word if word.isascii() else f"{BREAK}{word.encode().hex()}0"


def _folded(text: str) -> str:
    """Text without case, accents, widths, ligatures and what joins or varies characters invisibly."""
    plain = unicodedata.normalize("NFD", unicodedata.normalize("NFKC", text).casefold())
    return unicodedata.normalize("NFC", "".join(filter(_counts, plain)))


@lru_cache(maxsize=1 << 13)
def _counts(character: str) -> bool:
    if any(unicodedata.combining(character) in classes for classes in _SPOKEN):
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
