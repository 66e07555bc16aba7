"""Who may connect over HTTP: bearer tokens from a file, each with a name that owns its jobs and records.

Tokens are kept as SHA-256 and compared in constant time, so that neither a memory dump nor the time an
answer takes gives one away.
"""

import hashlib
import hmac
from pathlib import Path

SHORTEST = 16
"""Characters a token must have: fewer could be guessed."""


class Tokens:
    """The tokens that are accepted."""

    def __init__(self, lines: str) -> None:
        """Read `name:token` lines; empty ones and those that begin with # are passed over.

        Raises:
            ValueError: a line is no such pair, a token is too short, or there is no token at all. Names the
                line, never the token.
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
        """The tokens in a file.

        Raises:
            ValueError: it cannot be read, or is not as it should be.
        """
        try:
            return cls(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"token file {path}: {error.strerror}") from error
        except ValueError as error:
            raise ValueError(f"token file {path}: {error}") from error

    def principal(self, authorization: str | None) -> str | None:
        """The name that an Authorization header stands for; None if it stands for none."""
        scheme, _, token = (authorization or "").partition(" ")
        given = _hash(token.strip())
        # Every one is compared, so that the time does not tell which one came close.
        found = [name for known, name in self._names.items() if hmac.compare_digest(known, given)]
        return found[0] if found and scheme.lower() == "bearer" else None


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
