"""Who may connect over HTTP: bearer tokens from a file, each with a name that owns its jobs and records.

Tokens are kept as SHA-256 and compared in constant time, so that neither a memory dump nor the time an
answer takes gives one away.
"""

import hashlib
import hmac
import os
import stat
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

import structlog

from storage.safe_files import open_file

log = structlog.get_logger()

SHORTEST = 16
"""Characters a token must have: fewer could be guessed."""


class Tokens:
    """The tokens that are accepted."""

    def __init__(self, lines: str) -> None:
        """Read `name:token` lines; empty ones and those that begin with # are passed over.

        Raises:
            ValueError: a line is not such a pair, a token is too short, or there is none. The message names
                the line, never the token.
        """
        self._names: dict[bytes, str] = {}
        for number, line in enumerate(lines.splitlines(), 1):
            if not line.strip() or line.startswith("#"):
                continue
            name, colon, token = (part.strip() for part in line.partition(":"))
            if not (name and colon):
                raise ValueError(f"line {number} is not `name:token`")
            if len(token) < SHORTEST:
                raise ValueError(f"line {number}: the token of {name} has fewer than {SHORTEST} characters")
            self._names[_hash(token)] = name
        if not self._names:
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

    def principal(self, authorization: str | None) -> str | None:
        """The name that an Authorization header stands for; None if it stands for none."""
        scheme, _, token = (authorization or "").partition(" ")
        given = _hash(token.strip())
        # All are compared, so that the time taken does not reveal which one came close.
        found = [name for known, name in self._names.items() if hmac.compare_digest(known, given)]
        return found[0] if found and scheme.lower() == "bearer" else None


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
    parts = _authority(f"//{host}")
    return parts is not None and is_loopback(parts.hostname or "")


def may_ask(origin: str, host: str) -> bool:
    """Whether a web page of `origin` may call the server at `host`: from there, or both on this machine."""
    page = _authority(origin)
    if page is None or page.scheme not in ("http", "https"):
        return False
    asked = _authority(f"{page.scheme}://{host}")
    if asked is None:
        return False
    usual = 443 if page.scheme == "https" else 80
    if (page.hostname, page.port or usual) == (asked.hostname, asked.port or usual):
        return True
    return is_loopback(page.hostname or "") and names_this_machine(host)


def _authority(url: str) -> SplitResult | None:
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
