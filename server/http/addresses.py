"""Addresses of stored images that a browser opens: made for results, and checked when they are used.

Where clients need a token, an address is signed, as a browser sends no token: HMAC-SHA256 (RFC 2104, cut to
its first 128 bits) over the image, the form in which it is given, and the time when the address expires.
"""

import hmac
import os
import secrets
import time
from base64 import urlsafe_b64encode
from hashlib import sha256
from pathlib import Path
from urllib.parse import urlencode

import structlog
from starlette.datastructures import QueryParams
from starlette.requests import Request

from server.caller import READ
from server.http.auth import Identity, split_authority
from server.renditions import PREVIEW
from storage.digest import hex_digits
from storage.errors import InvalidArgument
from storage.safe_files import open_file
from tools.base import ToolError

log = structlog.get_logger()

PATH = "/images/"
WIDTH = "w"
"""Query parameter: width in pixels of a smaller copy."""
SIGNATURE, EXPIRES = "sig", "expires"
"""Query parameters of a signed address; `EXPIRES` is in seconds since 1970."""
KEY_FILE = "address.key"
KEY_BYTES = 32
DAY_S = 86_400
VALID_DAYS = 7
"""Days for which a signed address is valid, and up to one more: all that are made on one day are equal."""


BY_ADDRESS = Identity("address:", frozenset({READ}))
"""Whoever has a signed address: it stands for a token, for the one picture that it names."""


class Addresses:
    """The addresses of a server's images; a `Verifier` of those that are signed."""

    def __init__(self, public_url: str | None = None, key: bytes | None = None) -> None:
        """`public_url`: where clients reach the server, if not where they say; `key`: to sign with."""
        self._public = public_url
        self._key = key

    def base(self, request: Request) -> str:
        """The address of this server, as the client of `request` reached it."""
        if self._public:
            return self._public
        host = request.headers.get("host", "")
        if split_authority(f"//{host}") is None:
            host = _host(*request.scope["server"])
        return f"{request.url.scheme}://{host}"

    def own(self, request: Request) -> tuple[str, ...]:
        """All addresses by which the client of `request` may mean this server, in lower case."""
        host = self.base(request).partition("://")[2]
        port = request.scope["server"][1]
        here = (_host(name, port) for name in ("localhost", "127.0.0.1", "::1"))
        hosts = dict.fromkeys((host.lower(), request.headers.get("host", host).lower(), *here))
        return tuple(f"{scheme}://{host}" for host in hosts for scheme in ("http", "https"))

    def url(self, base: str, image: str, form: str = "") -> str:
        """The address of an image, from its id.

        `form`: empty for the full image, `PREVIEW`, or the width of a smaller copy as in the query, `w=320`.
        """
        digits = hex_digits(image)
        path, query = (form, "") if form == PREVIEW else ("", form)
        if self._key is not None:
            expires = (int(time.time()) // DAY_S + 1 + VALID_DAYS) * DAY_S
            signed = urlencode({EXPIRES: expires, SIGNATURE: self._signature(digits, form, expires)})
            query = f"{query}&{signed}" if query else signed
        return f"{base}{PATH}{digits}{path}{'?' if query else ''}{query}"

    async def identify(self, request: Request) -> Identity | None:
        """`BY_ADDRESS` for a request of an image by a signed address; None for any other request.

        An address gives the image and form that it was made for, until it expires.

        Raises:
            ToolError: `forbidden`: it is for something else, or has expired.
        """
        is_image = request.method in ("GET", "HEAD") and request.scope["path"].startswith(PATH)
        if not (is_image and SIGNATURE in request.query_params):
            return None
        digits, form = _asked(request)
        given = request.query_params[SIGNATURE]
        expires = expiry(request.query_params)
        right = self._key is not None and hmac.compare_digest(
            self._signature(digits, form, expires).encode(), given.encode()
        )
        if not right:
            raise ToolError(
                "forbidden", "The signature does not fit this address.", "Use the address as it was given."
            )
        if expires <= time.time():
            raise ToolError(
                "forbidden", "This address has expired.", "Ask for the image again to get a new address."
            )
        return BY_ADDRESS

    def _signature(self, digits: str, form: str, expires: int) -> str:
        assert self._key is not None
        signed = hmac.digest(self._key, f"{digits}\n{form}\n{expires}".encode(), sha256)
        return urlsafe_b64encode(signed[:16]).rstrip(b"=").decode()


def expiry(query: QueryParams) -> int:
    """When a signed address expires, in seconds since 1970; 0 if it does not say."""
    text = query.get(EXPIRES, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 12 else 0


def signing_key(store: Path | None) -> bytes:
    """The key of a store, made once and kept beside the images, readable by its owner only.

    Where it cannot be kept, a key of this process: its addresses end with it.
    """
    if store is None:
        return secrets.token_bytes(KEY_BYTES)
    path = store / KEY_FILE
    try:
        if not path.exists():
            _write_once(path, secrets.token_bytes(KEY_BYTES))
        with open_file(path) as file:
            key = file.read(KEY_BYTES + 1)
        if len(key) != KEY_BYTES:
            raise ValueError(f"it has {len(key)} bytes; delete it")
        return key
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        log.warning(
            "addresses of images end with this process: no key is kept", path=str(path), reason=reason
        )
        return secrets.token_bytes(KEY_BYTES)


def _write_once(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read; of several writers the first one's stays."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path)
        except FileExistsError:
            pass
    finally:
        part.unlink(missing_ok=True)


def _asked(request: Request) -> tuple[str, str]:
    """The digits of the image that a request asks for, and the form."""
    image: str = request.scope["path"].removeprefix(PATH)
    width = request.query_params.get(WIDTH)
    form = PREVIEW if image.endswith(PREVIEW) else "" if width is None else f"{WIDTH}={width}"
    try:
        return hex_digits(image.removesuffix(PREVIEW)), form
    except InvalidArgument:
        return "", form


def _host(host: str, port: int | None) -> str:
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"
