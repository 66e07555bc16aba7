"""Calls with an idempotency key: the same call under the same key is made once.

As of draft-ietf-httpapi-idempotency-key-header. What is kept for a key is in the journal: the job of its
call, or the result of a call without a job. A call that failed keeps nothing, and may be made again.
"""

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio
from anyio import to_thread

from server.journal import Journal, Keyed
from server.log import get_logger
from tools.base import Request, Result, ToolError

log = get_logger(__name__)

MAX_KEY = 255
"""Characters of a key."""

Names = tuple[str, str]
"""A principal and one of its keys."""


@dataclass(eq=False)
class Key:
    """The key of one call, from its beginning until the journal knows what it stands for."""

    principal: str
    text: str
    call: str
    """Digest of the tool and its arguments."""
    kept: anyio.Event = field(default_factory=anyio.Event)
    """The journal knows its job or its result, or the call has failed."""
    job_id: str | None = None

    @property
    def names(self) -> Names:
        return self.principal, self.text

    def check(self, call: str) -> None:
        """Raise ToolError if the key came before with another `call`."""
        if call != self.call:
            raise ToolError(
                "conflict",
                f"The Idempotency-Key {self.text!r} came before with other arguments.",
                "Send a new key with a new request; repeat a key only with the same one.",
            )


class Idempotency:
    """The keys of calls under way."""

    def __init__(self) -> None:
        self._under_way: dict[Names, Key] = {}

    async def once(
        self,
        key: Key,
        journal: Journal,
        make: Callable[[], Awaitable[Result]],
        join: Callable[[Keyed], Awaitable[Result | None]],
    ) -> Result:
        """What `make` gives; or, if the call was made before, what `join` gives for it.

        Raises:
            ToolError: the key came before with other arguments; what `make` and `join` raise.
        """
        while True:
            other = self._under_way.get(key.names)
            if other is not None:
                key.check(other.call)
                await other.kept.wait()
            before = await to_thread.run_sync(journal.find_key, key.principal, key.text)
            if before is not None:
                key.check(before.call)
                result = await join(before)
                if result is not None:
                    return result
            if key.names not in self._under_way:
                return await self._make(key, journal, make)
            await self._under_way[key.names].kept.wait()

    async def _make(self, key: Key, journal: Journal, make: Callable[[], Awaitable[Result]]) -> Result:
        self._under_way[key.names] = key
        try:
            result = await make()
            if key.job_id is None:
                await to_thread.run_sync(_keep, key, result, journal)
            return result
        finally:
            del self._under_way[key.names]
            key.kept.set()


def _keep(key: Key, result: Result, journal: Journal) -> None:
    """Journal the result of a call without a job."""
    try:
        journal.keep_key(*key.names, Keyed(key.call, None, result.to_journal()))
    # A full disk, or a plugin's result that is not JSON: the call was made all the same.
    except Exception as error:
        log.warning("the result of a call could not be kept for its key", reason=str(error))


def read_key(principal: str, text: str, tool: str, request: Request) -> Key:
    """The key of a call. Hashes the request: not for the event loop if that may be large.

    Raises:
        ToolError: `text` is empty, too long, or has characters that cannot be printed.
    """
    if not (0 < len(text) <= MAX_KEY and text.isprintable()):
        message = f"The Idempotency-Key must have 1 to {MAX_KEY} printable characters."
        raise ToolError("invalid_argument", message, "Send a UUID, for example.")
    call = f"{tool} {request.model_dump_json()}"
    return Key(principal, text, hashlib.sha256(call.encode()).hexdigest())
