"""OAuth 2.1: access tokens of an authorization server, as JWTs (RFC 9068) checked against its public keys.

The keys come from the JWKS that the metadata of the issuer names (RFC 8414, or OpenID Connect Discovery), or
that the host names. They are kept, and fetched again when they are old or a token names one that is not among
them, but no more often than every `PAUSE_S` seconds.
"""

import time
from typing import Any, NoReturn, cast
from urllib.parse import urlsplit

import anyio
import httpx2
import jwt
from pydantic_core import from_json
from starlette.requests import Request

from server.caller import SCOPES
from server.http.auth import Identity, bearer
from server.log import get_logger
from server.settings import is_secure

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Signatures that are accepted: with a private key only. A shared secret or no signature proves nothing."""
CLAIMS = ("iss", "sub", "aud", "exp")
"""Claims that a token must have."""
MAX_TOKEN = 16_384
"""Characters of a token."""
MAX_SUBJECT = 255
SKEW_S = 30
"""Seconds by which the clocks of issuer and server may differ."""
FETCH_S = 10.0
"""Seconds for everything that is fetched at once."""
MAX_BYTES = 1_000_000
FRESH_S = 300.0
"""Seconds after which keys are fetched again."""
LATEST_S = 3600.0
"""Seconds for which keys are trusted if they cannot be fetched again."""
PAUSE_S = 20.0
"""Minimum seconds between two fetches."""
METADATA = ("/.well-known/oauth-authorization-server", "/.well-known/openid-configuration")
"""Where issuers say where their keys are."""

log = get_logger(__name__)


class AccessTokens:
    """The access tokens of one issuer for this server; a `Verifier`."""

    def __init__(self, issuer: str, audience: str, jwks: str | None = None) -> None:
        """`audience`: what a token must be for; `jwks`: where the keys are, if the issuer does not say it."""
        self._issuer = issuer
        self._audience = audience
        self._keys = Keys(issuer, jwks)

    async def identify(self, request: Request) -> Identity | None:
        """Whose token a request carries, by issuer and subject, and the scopes in it."""
        token = bearer(request)
        if token is None or token.count(".") != 2 or len(token) > MAX_TOKEN:
            return None
        try:
            key = await self._keys.find(jwt.get_unverified_header(token).get("kid"))
            return self._read(token, key)
        except (jwt.PyJWTError, OSError, ValueError) as error:
            # Its kind only: a message might quote the token.
            log.info("an access token is refused", reason=type(error).__name__)
            return None

    def _read(self, token: str, key: jwt.PyJWK) -> Identity:
        claims = jwt.decode(
            token, key, algorithms=ALGORITHMS, audience=self._audience, issuer=self._issuer, leeway=SKEW_S,
            options={"require": list(CLAIMS)},
        )  # fmt: skip
        subject = claims["sub"]
        if not (0 < len(subject) <= MAX_SUBJECT and subject.isprintable()):
            raise jwt.InvalidTokenError("subject")
        # An issuer has no fragment, and the name of a token no colon: no two bearers are the same principal.
        return Identity(f"{self._issuer}#{subject}", SCOPES & _scopes(claims))


class Keys:
    """The public keys of an issuer."""

    def __init__(self, issuer: str, jwks: str | None) -> None:
        self._issuer = issuer
        self._jwks = jwks
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched = self._tried = -LATEST_S
        self._fetching = anyio.Lock()

    async def find(self, name: str | None) -> jwt.PyJWK:
        """The key of that id. Raises InvalidKeyError if there is none."""
        if not self._known(name):
            async with self._fetching:
                if not self._known(name) and time.monotonic() - self._tried > PAUSE_S:
                    self._tried = time.monotonic()
                    await self._fetch()
        if name not in self._keys or time.monotonic() - self._fetched > LATEST_S:
            raise jwt.InvalidKeyError("key")
        return self._keys[name]

    def _known(self, name: str | None) -> bool:
        return name in self._keys and time.monotonic() - self._fetched < FRESH_S

    async def _fetch(self) -> None:
        """Fetch the keys; those that there are stay if that fails."""
        try:
            with anyio.fail_after(FETCH_S):
                async with httpx2.AsyncClient(timeout=FETCH_S, follow_redirects=False) as client:
                    found = jwt.PyJWKSet.from_dict(await _read_json(client, await self._where(client)))
        except Exception as error:  # whatever an authorization server may answer
            log.warning("the keys of the issuer cannot be fetched", reason=repr(error)[:200])
            return
        self._keys = {key.key_id: key for key in found.keys if key.public_key_use in ("sig", None)}
        self._fetched = time.monotonic()

    async def _where(self, client: httpx2.AsyncClient) -> str:
        """Address of the keys, as the issuer's metadata has it."""
        for address in _metadata_addresses(self._issuer) if self._jwks is None else ():
            try:
                metadata = await _read_json(client, address)
            except (httpx2.HTTPError, ValueError):
                continue
            if metadata.get("issuer") == self._issuer and is_secure(str(metadata.get("jwks_uri"))):
                self._jwks = str(metadata["jwks_uri"])
                break
        return self._jwks or _fail(f"{self._issuer} does not say where its keys are")


def _metadata_addresses(issuer: str) -> list[str]:
    """RFC 8414 puts its part before the path of the issuer, OpenID Connect Discovery behind it."""
    parts = urlsplit(issuer.rstrip("/"))
    host = f"{parts.scheme}://{parts.netloc}"
    return [f"{host}{METADATA[0]}{parts.path}", f"{host}{parts.path}{METADATA[1]}"]


async def _read_json(client: httpx2.AsyncClient, url: str) -> dict[str, Any]:
    """A JSON object. Raises HTTPError, or ValueError if it is anything else."""
    body = bytearray()
    async with client.stream("GET", url, headers={"Accept": "application/json"}) as answer:
        answer.raise_for_status()
        async for part in answer.aiter_bytes():
            body += part
            if len(body) > MAX_BYTES:
                _fail("too large")
    read = from_json(bytes(body))
    return cast("dict[str, Any]", read) if isinstance(read, dict) else _fail("not a JSON object")


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """The scopes of a token: `scope` is a text of words (RFC 8693); some issuers have `scp`, also a list."""
    given = claims.get("scope", claims.get("scp", ""))
    words = cast("list[Any]", given) if isinstance(given, list) else str(given).split()
    return frozenset(str(word) for word in words)


def _fail(words: str) -> NoReturn:
    raise ValueError(words)
