"""Limits on HTTP connections: their number, the time for a request, and the size of its body.

uvicorn waits for the rest of a request for ever. `Connection` ends connections that do not send one, and
`WholeBody` reads a body before anybody is called, within a size, a time and a budget of all bodies.
"""

import asyncio
from resource import RLIMIT_NOFILE, getrlimit
from typing import Any, cast

import anyio
import h11
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from server.http.refusals import refusal
from tools.base import ToolError

HEAD_S = 10.0
"""Seconds for the head of a request, from the connection or the last answer on."""
DRAIN_S = 30.0
"""Seconds for a client to read the rest of an answer after which the connection closes."""
BODY_S = 20.0
"""Seconds for the body of a request; every `BODY_RATE` bytes received add one."""
BODY_RATE = 100_000
"""Bytes of a body that extend its time by one second."""
CONNECTIONS = 512
"""Connections at once, if there are twice as many descriptors: files and the index want some, too."""
READ_S = 20.0
"""Seconds between two checks that a client reads its answer."""
READ_RATE = 10_000
"""Minimum rate at which a client must read its answer, in bytes per second."""
VALUES = 20_000
"""Maximum commas in a body: an upper bound on its JSON values that needs no parsing."""
BODIES = 400_000_000
"""Bytes of the bodies of all requests under way."""


class Connection(H11Protocol):
    """A connection with timeouts; when there are too many, the one that has waited longest is closed."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request; where too many wait, close the one that has waited longest.

        One address may have three quarters of all, so that there is room for others.
        """
        super().connection_made(transport)
        self._timer: asyncio.TimerHandle | None = None
        self._reader: asyncio.TimerHandle | None = None
        self._wait()
        most = min(CONNECTIONS, getrlimit(RLIMIT_NOFILE)[0] // 2)
        others: set[Any] = self.connections  # pyright: ignore[reportUnknownMemberType]
        everyone = [other for other in others if isinstance(other, Connection)]
        neighbours = [other for other in everyone if other.address == self.address]
        for group, limit in ((neighbours, most * 3 // 4), (everyone, most)):
            if len(group) > limit:
                waiting = [other for other in group if other.waits]
                min(waiting, key=lambda other: other.since, default=self).transport.abort()
                return

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the timers."""
        for timer in (self._timer, self._reader):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self._wait()
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP request, in the form of all refusals, and close the connection."""
        response = refusal(ToolError("invalid_argument", msg, "Send a request of HTTP/1.1."), 400)
        head = h11.Response(status_code=400, headers=[*response.raw_headers, (b"connection", b"close")])
        for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    @property
    def waits(self) -> bool:
        """Whether no request is under way, or not all of it is here."""
        return self._idle or self.cycle.more_body

    @property
    def _idle(self) -> bool:
        """Whether no request is under way."""
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        return cycle is None or cycle.response_complete

    @property
    def address(self) -> str:
        """IP address of the client."""
        return self.client[0] if self.client else ""

    def pause_writing(self) -> None:
        """Give the client some time to read what it has not read."""
        super().pause_writing()
        self._unread = self.transport.get_write_buffer_size()
        self._reader = self.loop.call_later(READ_S, self._check_reader)

    def resume_writing(self) -> None:
        """End the checks of `pause_writing`: the client has read its data."""
        if self._reader is not None:
            self._reader.cancel()
        super().resume_writing()

    def _check_reader(self) -> None:
        left = self.transport.get_write_buffer_size()
        if left > self._unread - READ_S * READ_RATE:
            self.transport.abort()
            return
        self._unread = left
        self._reader = self.loop.call_later(READ_S, self._check_reader)

    def _wait(self) -> None:
        self.since = self.loop.time()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(HEAD_S, self._end)

    def _end(self) -> None:
        if self._idle and not self.transport.is_closing():
            self.transport.close()
            self._timer = self.loop.call_later(DRAIN_S, self.transport.abort)


class WholeBody:
    """Middleware that reads the body first: one too large, too slow or cut short goes no further."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        """`most`: bytes of one body."""
        self._app, self._most = app, most
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body, headers = bytearray(), Headers(scope=scope)
        try:
            whole = await self._read(body, int(headers.get("content-length", 0)), receive)
            if "json" in headers.get("content-type", "").lower():
                _check_values(body)
            if whole:
                first: Message = {"type": "http.request", "body": bytes(body), "more_body": False}
                await self._app(scope, replayed(first, receive), send)
        except _Refused as refused:
            await refusal(refused.error, refused.status)(scope, receive, send)
        finally:
            self._held -= len(body)

    async def _read(self, body: bytearray, declared: int, receive: Receive) -> bool:
        """Fill `body`; False if the client went away before its end."""
        started = anyio.current_time()
        self._check(declared, declared)
        try:
            with anyio.fail_after(BODY_S) as timeout:
                while (message := await receive())["type"] == "http.request":
                    part = message.get("body", b"")
                    self._check(len(body) + len(part), len(part))
                    body += part
                    self._held += len(part)
                    timeout.deadline = started + BODY_S + len(body) / BODY_RATE
                    if not message.get("more_body"):
                        return True
        except TimeoutError:
            advice = "Send the request again, faster or with a smaller picture."
            raise _Refused(408, ToolError("invalid_argument", "The body came too slowly.", advice)) from None
        return False

    def _check(self, size: int, more: int) -> None:
        if size > self._most:
            message = f"The body has more than {self._most:,} bytes."
            raise _Refused(413, ToolError("invalid_argument", message, "Send a smaller picture."))
        if self._held + more > BODIES:
            message = "Too many large requests are under way."
            raise _Refused(429, ToolError("busy", message, "Send it again in a few seconds."))


def _check_values(body: bytearray) -> None:
    # Parsing JSON stops the event loop, for as long as it holds values: longer than any text.
    if body.count(b",") > VALUES:
        message = f"The body has more than {VALUES:,} commas."
        raise _Refused(400, ToolError("invalid_argument", message, "Send the arguments of one call."))


class _Refused(Exception):
    """A body that is not taken."""

    def __init__(self, status: int, error: ToolError) -> None:
        super().__init__(error)
        self.status, self.error = status, error


def replayed(first: Message, receive: Receive) -> Receive:
    """`first`, which was already received, then whatever else comes."""
    messages = [first]

    async def replay() -> Message:
        return messages.pop() if messages else await receive()

    return replay
