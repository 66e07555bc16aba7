"""Who calls over HTTP: what a credential says, and bearer tokens from a file, each with a name.

Tokens are kept as SHA-256 and compared in constant time, so that neither a memory dump nor the time an
answer takes gives one away.
"""

import hashlib
import hmac
import os
import stat
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol
from urllib.parse import SplitResult, urlsplit

import structlog
from starlette.requests import Request

from server.caller import LOCAL, SCOPES
from storage.safe_files import open_file

log = structlog.get_logger()

SHORTEST = 16
"""Characters a token must have: fewer could be guessed."""


@dataclass(frozen=True)
class Identity:
    """What a credential says of its bearer."""

    principal: str
    """Owner of jobs and records. The name of a token has no colon; every other principal has one."""
    scopes: frozenset[str] = SCOPES


HOST = Identity(LOCAL)
"""Whoever calls where there are no credentials."""


class Verifier(Protocol):
    """One kind of credential."""

    async def identify(self, request: Request) -> Identity | None:
        """Who sent a request, judged by its head alone; None if it holds no valid credential of this kind.

        Raises:
            ToolError: it holds one that was valid once or elsewhere, with what to do.
        """
        ...


def bearer(request: Request) -> str | None:
    """The bearer token that a request carries."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


class Tokens:
    """The tokens of a file; a `Verifier`."""

    def __init__(self, lines: str) -> None:
        """Read `name:token` lines; empty ones and those that begin with # are passed over.

        Scopes may follow a token, with spaces between; without any it has all. `ann:TOKEN studio:read`.

        Raises:
            ValueError: a line is not such a pair, a token is too short, or there is none. The message names
                the line, never the token.
        """
        self._known: dict[bytes, Identity] = {}
        for number, line in enumerate(lines.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            name, colon, rest = (part.strip() for part in line.partition(":"))
            if not (name and colon):
                raise ValueError(f"line {number} is not `name:token`")
            if name == LOCAL:
                raise ValueError(f"line {number}: {LOCAL} is whoever runs the server; choose another name")
            token, scopes = _scopes(rest)
            if scopes - SCOPES:
                raise ValueError(f"line {number}: a scope of {name} is none of {', '.join(sorted(SCOPES))}")
            if len(token) < SHORTEST:
                raise ValueError(f"line {number}: the token of {name} has fewer than {SHORTEST} characters")
            self._known[_hash(token)] = Identity(name, scopes or SCOPES)
        if not self._known:
            raise ValueError("it holds no `name:token` line")

    @classmethod
    def read(cls, path: Path) -> "Tokens":
        """The tokens in a file that no other user can change.

        Raises:
            ValueError: it cannot be read, others may write it, or it is not as it should be.
        """
        try:
            real = path.resolve(strict=True)
            with open_file(real) as file:
                _check_rights(os.fstat(file.fileno()), "the file")
                _check_rights(real.parent.stat(), "its folder")
                return cls(file.read().decode("utf-8"))
        except OSError as error:
            raise ValueError(f"token file {path}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"token file {path}: {error}") from error

    async def identify(self, request: Request) -> Identity | None:
        """Whose token a request carries."""
        token = bearer(request)
        return None if token is None else self.find(token)

    def find(self, token: str) -> Identity | None:
        """Whose token it is."""
        given = _hash(token)
        # All are compared, so that the time taken does not reveal which one came close.
        found = [identity for known, identity in self._known.items() if hmac.compare_digest(known, given)]
        return found[0] if found else None


def _scopes(rest: str) -> tuple[str, frozenset[str]]:
    """The token and its scopes, from what follows a name: scopes are words that begin with `studio:`."""
    token, *words = rest.split()
    if words and all(word.startswith("studio:") for word in words):
        return token, frozenset(words)
    return rest, frozenset()


def _check_rights(state: os.stat_result, what: str) -> None:
    """Raises ValueError if another user could put other tokens in the place of these."""
    if state.st_uid not in (0, os.geteuid()):
        raise ValueError(f"{what} belongs to another user; it must belong to the one who runs the server")
    # In a sticky folder, such as /tmp, nobody can replace what belongs to somebody else.
    sticky = stat.S_ISDIR(state.st_mode) and state.st_mode & stat.S_ISVTX
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not sticky:
        raise ValueError(f"others may write {what}, and let themselves in; run chmod go-w on it")
    if stat.S_ISREG(state.st_mode) and state.st_mode & stat.S_IROTH:
        log.warning("every user of this machine can read the token file; run chmod go-r on it")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def names_this_machine(host: str) -> bool:
    """Whether a Host header, with any port, is `localhost` or a loopback address."""
    parts = split_authority(f"//{host}")
    return parts is not None and is_loopback(parts.hostname or "")


def may_ask(origin: str, host: str) -> bool:
    """Whether a web page of `origin` may call the server at `host`: from there, or both on this machine."""
    page = split_authority(origin)
    if page is None or page.scheme not in ("http", "https"):
        return False
    asked = split_authority(f"{page.scheme}://{host}")
    if asked is None:
        return False
    usual = 443 if page.scheme == "https" else 80
    if (page.hostname, page.port or usual) == (asked.hostname, asked.port or usual):
        return True
    return is_loopback(page.hostname or "") and names_this_machine(host)


def split_authority(url: str) -> SplitResult | None:
    """The parts of a URL that has a host, perhaps a port, and nothing else; None for any other text."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises ValueError if it is not a number
    except ValueError:
        return None
    plain = not any(sign in url.partition("//")[2] for sign in "/\\?#@ ")
    return parts if plain and parts.hostname else None


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
