"""The ways to name an image, as syntax: text in, a typed value out.

Knows the spellings and nothing else. Which folders may be read, whether an address may be fetched and what
is stored is decided behind `Context.resolve`. Forgives what language models and people put around a name
(quotes, brackets, Markdown), and reads data: URIs as browsers do.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from storage.digest import SCHEME, hex_digits
from storage.errors import InvalidArgument
from tools.base import ToolError

FORMS = (
    "Give the id of a stored image (sha256:<64 hex digits>, or at least its first 8), its image:// address "
    "or url, a data:image/...;base64, URI, a file in an allowed folder, or an https:// address if the host "
    "allows it."
)
"""What to do about a reference that is none, in a sentence."""

_BARE_ID = re.compile(r"[0-9a-f]{8,64}", re.ASCII | re.IGNORECASE)
_NO_ID = re.compile(r"[0-9a-f]{1,7}|[0-9a-f]{65,128}", re.ASCII | re.IGNORECASE)
_CUT_ID = re.compile(r"(?:id:? )?((?:sha256:)?[0-9a-f]{8,64})[.,;\u2026]*", re.ASCII | re.IGNORECASE)
"""An id with what stands around it in a sentence, or with the dots of an abbreviation."""
_ADDRESS = re.compile(
    r"/images/(?:sha256:)?([0-9a-f]{8,64})(?:/preview)?(?:[?#].*)?", re.ASCII | re.IGNORECASE
)
"""The address of a stored image, after the address of its server."""
_DATA = re.compile(
    r"data:(image/[a-z0-9.+-]+|(?:application|binary)/octet-stream|)(?:;[^,;]+)*;base64",
    re.ASCII | re.IGNORECASE,
)
_ENDS = ('""', "''", "``", "<>", "\u201c\u201d", "\u2018\u2019")
"""Characters that may stand around a name."""
_PICTURE = re.compile(r"(?:iVBORw0KGgo|/9j/|R0lGOD|UklGR)[A-Za-z0-9+/_-]{40}", re.ASCII)
"""How the base64 of a PNG, JPEG, GIF or WebP begins."""
_SCHEME = re.compile(  # a file's name may hold a colon, and one letter is a Windows drive
    r"(sha256|image|data|file|https?|[a-z][a-z0-9+.-]{1,30}(?=://)):", re.ASCII | re.IGNORECASE
)
_STORED = ("sha256", SCHEME.partition(":")[0])
_SECRET = re.compile("token|sig|key|secret|passw|auth|credential", re.IGNORECASE)
_BAD_ESCAPE = re.compile(rb"%(?![0-9a-fA-F]{2})")
_WHITESPACE = b" \t\r\n\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_SHOWN = 100
MAX_NAME = 8192
"""Characters of a reference that names something; only pictures inside the request are longer."""
MAX_AROUND = 3
"""Layers of quotes and brackets around a name that are read."""
MAX_DATA_HEAD = 200
"""Characters of a data: URI before its data."""
MAX_SOURCE = 2000
"""Characters of a reference that a record keeps."""


@dataclass(frozen=True, slots=True)
class StoredRef:
    """An image of the store."""

    digits: str
    """8 to 64 lower-case hex digits: the whole digest, or what it begins with."""


@dataclass(frozen=True, slots=True)
class DataRef:
    """An image that came inside the request."""

    mime_type: str
    """As the sender says, empty if it says nothing; nothing is believed of it."""
    data: bytes


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file of this machine."""

    path: Path
    """As given: it may be relative, lead anywhere or nowhere."""


@dataclass(frozen=True, slots=True)
class UrlRef:
    """An image somewhere else."""

    url: str
    """`https` with a host; nothing more is checked."""


ImageRef = StoredRef | DataRef | FileRef | UrlRef


def parse_reference(text: str, field: str, own: Sequence[str] = ()) -> ImageRef:
    """What kind of image `text` names, without looking whether there is one.

    `own` are the addresses of this server, in lower case and without a slash at the end
    (`http://localhost:8765`): below them, /images/<id> is a stored image.

    Raises:
        ToolError: `invalid_argument`, naming `field`, for text in none of the forms.
    """
    given, text = text, _bare(text)
    scheme = _SCHEME.match(text)
    kind = scheme[1].lower() if scheme else ""
    if kind == "data":
        return _data(text, field)
    if _PICTURE.match(text):
        return DataRef("", _decoded(text, text, field))
    if len(given) > MAX_NAME:
        raise wrong(text, field, f"It has {len(given):,} characters; at most {MAX_NAME:,} name something.")
    if digits := address_digits(text, own):
        return StoredRef(digits)
    if names_stored(text) or _NO_ID.fullmatch(text):
        return _stored(text, field)
    if kind == "https":
        return _address(text, field)
    if kind == "file":
        return _file_uri(text, field)
    if kind:
        raise wrong(text, field, f"{kind}: addresses are not read.")
    return FileRef(_path(text, text, field))


def names_stored(text: str, own: Sequence[str] = ()) -> bool:
    """Whether `text` has the form of an id or of the address of a stored image. Costs nothing.

    `own` as for `parse_reference`.
    """
    text = _bare(text)
    scheme = _SCHEME.match(text)
    if scheme and scheme[1].lower() in _STORED:
        return True
    return _BARE_ID.fullmatch(text) is not None or address_digits(text, own) is not None


def address_digits(text: str, own: Sequence[str]) -> str | None:
    """The digits of the image that is at the address `text` of this server, or at a path of it.

    None for any other text. `own` as for `parse_reference`.
    """
    if len(text) > MAX_NAME:
        return None
    low = text.lower()
    found = (_ADDRESS.fullmatch(low, len(base)) for base in ("", *own) if low.startswith(base))
    return next((match[1] for match in found if match), None)


def source_of(text: str) -> str:
    """Where an image came from, as its record keeps it: whole, up to `MAX_SOURCE` characters.

    Without pixels, and without secrets, as records are passed on: without the credentials of an address, and
    without values of parameters that look like some.
    """
    text = _bare(text)
    kind, _, _ = text[:10].lower().partition(":")
    if kind == "data" or _PICTURE.match(text):
        return text[:MAX_SOURCE].partition(",")[0] if kind == "data" else "base64"
    parts = _split(text) if kind == "https" else None
    if parts:
        query = "&".join(map(_harmless, parts.query.split("&")))
        text = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment=""))
    return text[:MAX_SOURCE]


def _harmless(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    return f"{name}=..." if equals and _SECRET.search(name) else parameter


def wrong(text: str, field: str, reason: str, advice: str = FORMS) -> ToolError:
    """The error for a reference in none of the forms."""
    return ToolError("invalid_argument", f"{field}: {shown(text)} names no image. {reason}", advice)


def shown(text: str) -> str:
    """A reference as an error may repeat it: in quotes, at most 100 characters, without pixels."""
    text = _bare(text)
    start = text[: _SHOWN + 1]
    if _PICTURE.match(text):
        start = f"{text[:12]}..."
    elif start[:5].lower() == "data:":
        start = start.partition(",")[0]
    quoted = repr(start)  # what cannot be printed takes up to ten characters
    return quoted if len(quoted) <= _SHOWN else quoted[: _SHOWN - 2] + "…" + quoted[0]


def _stored(text: str, field: str) -> StoredRef:
    try:
        return StoredRef(hex_digits(text))
    except InvalidArgument as error:
        advice = (
            f"Give more of its digits; if it is a file, write ./{text[:_SHOWN]}." if len(text) < 8 else FORMS
        )
        raise wrong(text, field, "An id has 8 to 64 hex digits.", advice) from error


def _data(text: str, field: str) -> DataRef:
    comma = text.find(",", 0, MAX_DATA_HEAD)
    match = _DATA.fullmatch("".join(text[: max(comma, 0)].split()))
    if match is None:
        raise wrong(text, field, "A data: URI of an image begins with data:image/png;base64, or the like.")
    return DataRef(match[1].lower(), _decoded(text[comma + 1 :], text, field))


def _decoded(payload: str, text: str, field: str) -> bytes:
    """The bytes of base64 as browsers take it: white space, either alphabet, padding or none."""
    try:
        plain = _unescaped(payload.encode("ascii", "replace")).translate(_URL_SAFE, _WHITESPACE).rstrip(b"=")
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except binascii.Error as error:
        reason = f"What should be base64 is not: {error}."
        raise wrong(text, field, reason) from error


def _unescaped(payload: bytes) -> bytes:
    """`payload` without percent escapes. Takes 20 ms per MB at worst; `urllib` takes half a second.

    Raises:
        binascii.Error: a percent sign is not followed by two hex digits.
    """
    if b"%" not in payload:
        return payload
    if _BAD_ESCAPE.search(payload):
        raise binascii.Error("a percent sign without two hex digits")
    # Quoted-printable is the same with another sign, and its decoder is written in C.
    return binascii.a2b_qp(payload.replace(b"=", b"%3D").replace(b"%", b"="))


def _address(text: str, field: str) -> UrlRef:
    parts = _split(text)
    if not parts or not parts.hostname or not text.isprintable() or " " in text:
        raise wrong(text, field, "An address needs a host: https://example.com/picture.png.")
    return UrlRef(text)


def _file_uri(text: str, field: str) -> FileRef:
    parts = _split(text)
    if not parts or parts.netloc not in ("", "localhost"):
        raise wrong(text, field, "A file: URI has three slashes and no host: file:///folder/picture.png.")
    return FileRef(_path(unquote(parts.path), text, field))


def _split(address: str) -> SplitResult | None:
    try:
        return urlsplit(address)
    except ValueError:  # brackets that hold no IPv6 address
        return None


def _path(path: str, text: str, field: str) -> Path:
    if not path.strip() or "\0" in path:
        raise wrong(text, field, "A path has at least one character, and no NUL.")
    if path == "~" or path.startswith("~/"):
        with suppress(RuntimeError):  # this user has no home
            return Path.home() / path[2:].lstrip("/")
    return Path(path)


def _bare(text: str) -> str:
    """`text` without what may stand around a name: white space, quotes, brackets, a Markdown link.

    A name in which they belong can be given as a path: ./'name'.
    """
    for _ in range(MAX_AROUND):
        before, text = text, text.strip()
        if text[:1] + text[-1:] in _ENDS and len(text) > 1:
            text = text[1:-1]
        elif text.endswith(")") and text.startswith(("[", "![")) and "](" in text[:MAX_NAME]:
            text = text[:-1].partition("](")[2]
        elif len(text) < 80 and (match := _CUT_ID.fullmatch(text)):
            text = match[1]
        if text is before or text == before:
            break
    return text
