"""Sessions of MCP clients with the older handshake, to the extent that cancelling needs.

The server keeps no state per client. But a client of the older handshake cancels a call by a POST of its own
(`notifications/cancelled`; MCP 2025-11-25, basic/utilities/cancellation), which must find the call. So
`initialize` is answered with an `Mcp-Session-Id`, which the client repeats with every request, and calls
under way are kept by principal, session and request id. Any session id is accepted, also one from
before a restart: it only identifies calls.
"""

import re
import secrets
from collections.abc import Generator
from contextlib import contextmanager

import anyio
from pydantic_core import from_json
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.http.connections import replayed

HEADER = "Mcp-Session-Id"
MAX_BODY = 10_000
"""Bytes of a body that is looked at: `initialize` and `notifications/cancelled` are short."""
MAX_NAME = 64
"""Characters of a client's name in a session id."""

Call = tuple[str, str, str]
"""Principal, session id and request id."""


class Sessions:
    """The calls under way of clients that have a session."""

    def __init__(self) -> None:
        self._calls: dict[Call, anyio.CancelScope] = {}

    @contextmanager
    def cancellable(self, request: Request, request_id: int | str | None) -> Generator[anyio.CancelScope]:
        """Run the body as the call of that `request_id`: `notifications/cancelled` cancels its scope."""
        call = _call(request, request_id)
        with anyio.CancelScope() as scope:
            if call is None:
                yield scope
                return
            self._calls[call] = scope
            try:
                yield scope
            finally:
                if self._calls.get(call) is scope:
                    del self._calls[call]

    def cancel(self, request: Request, params: object) -> None:
        """Cancel the call that the parameters of a `notifications/cancelled` name, if it is under way."""
        request_id = params.get("requestId") if isinstance(params, dict) else None  # pyright: ignore
        call = _call(request, request_id)  # pyright: ignore[reportUnknownArgumentType]
        scope = self._calls.get(call) if call else None
        if scope is not None:
            scope.cancel()


class SessionMiddleware:
    """Answers `initialize` with a session id, and applies `notifications/cancelled`."""

    def __init__(self, app: ASGIApp, sessions: Sessions) -> None:
        self._app = app
        self._sessions = sessions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        if request.method == "DELETE":  # there is no session to end
            await Response(status_code=204)(scope, receive, send)
            return
        first = await receive()
        message = _small_message(first)
        if message.get("method") == "notifications/cancelled":
            self._sessions.cancel(request, message.get("params"))
        elif message.get("method") == "initialize":
            send = _with_session(send, _new_session(message))
        await self._app(scope, replayed(first, receive), send)


def client_name(request: Request) -> str:
    """The name that a client gave when its session began; empty where it has none."""
    return request.headers.get(HEADER, "").partition(".")[2][:MAX_NAME]


def _call(request: Request, request_id: object) -> Call | None:
    session = request.headers.get(HEADER)
    if not session or not isinstance(request_id, int | str):
        return None
    return request.state.identity.principal, session, repr(request_id)


def _small_message(message: Message) -> dict[str, object]:
    """The JSON-RPC message in a body that is short enough to be one of those looked for."""
    body: bytes = message.get("body", b"")
    if len(body) > MAX_BODY or message.get("more_body"):
        return {}
    try:
        decoded = from_json(body)
    except ValueError:
        return {}
    return decoded if isinstance(decoded, dict) else {}  # pyright: ignore[reportUnknownVariableType]


def _new_session(initialize: dict[str, object]) -> str:
    """A random id that no other client can guess, and the client's name."""
    params = initialize.get("params")
    info = params.get("clientInfo") if isinstance(params, dict) else None  # pyright: ignore
    name = info.get("name") if isinstance(info, dict) else None  # pyright: ignore
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:MAX_NAME] if isinstance(name, str) else ""
    return f"{secrets.token_hex(16)}.{plain}"


def _with_session(send: Send, session: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            MutableHeaders(raw=message["headers"])[HEADER] = session
        await send(message)

    return sending
