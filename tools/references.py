"""The ways to name an image, as syntax: text in, a typed value out.

Knows the spellings and nothing else. Which folders may be read, whether an address may be fetched and what
is stored is decided behind `Context.resolve`.
"""

import base64
import binascii
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, unquote_to_bytes, urlsplit, urlunsplit

from storage.digest import SCHEME, hex_digits
from storage.errors import InvalidArgument
from tools.base import ToolError

FORMS = (
    "Give the id of a stored image (sha256:<64 hex digits>, or at least its first 8), its image:// address, "
    "a data:image/...;base64, URI, a file in an allowed folder, or an https:// address if the host allows it."
)
"""What to do about a reference that is none, in a sentence."""

_BARE_ID = re.compile(r"[0-9a-f]{8,64}", re.ASCII | re.IGNORECASE)
_DATA = re.compile(r"data:(image/[a-z0-9.+-]+)(?:;[^,;]+)*;base64,(.*)", re.ASCII | re.IGNORECASE | re.DOTALL)
_SCHEME = re.compile(  # a file's name may hold a colon, and one letter is a Windows drive
    r"(sha256|image|data|file|https?|[a-z][a-z0-9+.-]+(?=://)):", re.ASCII | re.IGNORECASE
)
_STORED = ("sha256", SCHEME.partition(":")[0])
_SECRET = re.compile(r"([^&=]*(?:token|sig|key|secret|passw|auth|credential)[^&=]*)=[^&]*", re.IGNORECASE)
_SHOWN = 100
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
    """As the sender says; nothing is believed of it."""
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


def parse_reference(text: str, field: str) -> ImageRef:
    """What kind of image `text` names, without looking whether there is one.

    Raises:
        ToolError: `invalid_argument`, naming `field`, for text in none of the forms.
    """
    scheme = _SCHEME.match(text)
    kind = scheme[1].lower() if scheme else ""
    if names_stored(text):
        return _stored(text, field)
    if kind == "data":
        return _data(text, field)
    if kind == "https":
        return _address(text, field)
    if kind == "file":
        return _file_uri(text, field)
    if kind:
        raise wrong(text, field, f"{kind}: addresses are not read.")
    return FileRef(_path(text, text, field))


def names_stored(text: str) -> bool:
    """Whether `text` has the form of an id or of the address of a stored image. Costs nothing."""
    scheme = _SCHEME.match(text)
    return bool(scheme and scheme[1].lower() in _STORED) or _BARE_ID.fullmatch(text) is not None


def source_of(text: str) -> str:
    """Where an image came from, as its record keeps it: whole, up to `MAX_SOURCE` characters.

    Without pixels, and without what a record must not tell to those it is given to: the credentials of an
    address, and parameters that look like some.
    """
    kind, _, _ = text[:10].lower().partition(":")
    if kind == "data":
        return text[:MAX_SOURCE].partition(",")[0]
    parts = _split(text) if kind == "https" else None
    if parts:
        query = _SECRET.sub(r"\1=...", parts.query)
        text = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query, fragment=""))
    return text[:MAX_SOURCE]


def wrong(text: str, field: str, reason: str) -> ToolError:
    """The error for a reference in none of the forms."""
    return ToolError("invalid_argument", f"{field}: {shown(text)} names no image. {reason}", FORMS)


def shown(text: str) -> str:
    """A reference as it may be repeated in an error or kept in a record: short, without pixels."""
    start = text.partition(",")[0] if text[:5].lower() == "data:" else text
    return repr(start if len(start) <= _SHOWN else start[:_SHOWN] + "…")


def _stored(text: str, field: str) -> StoredRef:
    try:
        return StoredRef(hex_digits(text))
    except InvalidArgument as error:
        raise wrong(text, field, "An id has 8 to 64 hex digits.") from error


def _data(text: str, field: str) -> DataRef:
    match = _DATA.fullmatch(text)
    if match is None:
        raise wrong(text, field, "A data: URI of an image begins with data:image/png;base64, or the like.")
    payload = unquote_to_bytes(match[2].encode("utf-8", "replace"))
    try:
        data = base64.b64decode(b"".join(payload.split()), validate=True)
    except binascii.Error as error:
        raise wrong(text, field, f"What follows base64, is not base64: {error}.") from error
    return DataRef(match[1].lower(), data)


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
    return Path(path)
