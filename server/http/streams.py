"""Answers over HTTP that take their time: event streams, and calls that end when the client goes away."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from starlette.types import Receive, Send

EVENTS = "text/event-stream"
DESCRIBED: dict[str, Any] = {"description": "Server-sent events: `event` says of which kind, `data` is JSON."}
"""The schema of a stream, without a type: some readers of OpenAPI take it for text, others for events."""


class EventStream:
    """A stream of server-sent events (WHATWG HTML, section 9.2), as the answer to one request."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def begin(self) -> None:
        """Send the head of the answer."""
        headers = [(b"content-type", EVENTS.encode()), (b"cache-control", b"no-cache, no-transform")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})

    async def event(self, kind: str, data: dict[str, Any], *, id: str = "", more: bool = True) -> None:
        """Send an event; `more` is False for the last one. A client that comes back names the last `id`."""
        named = f"id: {id}\n" if id else ""
        text = f"{named}event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"
        await self._write(text, more)

    async def end(self) -> None:
        """End the answer, after an event that was not the last for certain."""
        await self._write("", False)

    async def sign_of_life(self) -> None:
        """Send a comment, which clients ignore and which keeps proxies from closing the connection."""
        await self._write(":\n\n", True)

    async def _write(self, text: str, more: bool) -> None:
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": more})


async def while_connected(receive: Receive, answer: Callable[[], Awaitable[None]]) -> None:
    """Carry out `answer`, which is cancelled when the client goes away."""

    async def watch(scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(watch, group.cancel_scope)
        await answer()
        group.cancel_scope.cancel()
