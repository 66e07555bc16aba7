"""Errors as HTTP responses: one JSON form for every refusal, whoever refuses."""

import asyncio

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import schema
from server.dispatcher import stopping
from server.errors import as_tool_error
from tools.base import Code, ToolError

STATUS: dict[Code, int] = {
    "invalid_argument": 400,
    "forbidden": 403,
    "image_not_found": 404,
    "cancelled": 409,
    "image_rejected": 422,
    "conflict": 422,
    "busy": 429,
    "internal": 500,
    "not_ready": 503,
    "out_of_memory": 503,
}
RETRY_AFTER_S = 5
"""Seconds a client should wait where nothing more precise is known."""
ADVICE = {
    404: "See /openapi.json for what can be asked.",
    405: "The header Allow says which methods there are.",
    413: "Send a smaller picture.",
}
"""What to do about the refusals of the libraries below, by status."""


def refusal(error: ToolError, status: int | None = None) -> JSONResponse:
    """An error as a response; `status` overrides the status of its code."""
    status = status or STATUS[error.code]
    seconds = error.retry_after_s or RETRY_AFTER_S
    headers = {"Retry-After": str(seconds)} if status in (429, 503) else None
    return JSONResponse(schema.dump_error(error), status, headers)


async def refused(request: Request, error: Exception) -> Response:
    """What a route raises, as a response."""
    return refusal(as_tool_error(error))


class JsonRefusals:
    """Middleware that converts plain-text errors of Starlette and the MCP SDK to the JSON of all others."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        start: Message | None = None
        """The beginning of a plain-text refusal, held back until its words are known."""

        async def sending(message: Message) -> None:
            nonlocal begun, start
            if message["type"] == "http.response.start" and message["status"] >= 400:
                kind = Headers(raw=message["headers"]).get("content-type", "text/plain")
                if kind.startswith("text/plain"):
                    start = message
                    return
            begun = True
            if start is None:
                await send(message)
                return
            response = _in_json(start, message.get("body", b"").decode(errors="replace"))
            start = None
            await response(scope, receive, send)

        try:
            await self._app(scope, receive, sending)
        except asyncio.CancelledError:  # the server stops, and cannot wait any longer
            if begun:
                raise
            with anyio.CancelScope(shield=True):
                await refusal(stopping())(scope, receive, send)


def _in_json(start: Message, words: str) -> Response:
    status: int = start["status"]
    code: Code = "forbidden" if status in (401, 403, 421) else "invalid_argument"
    advice = ADVICE.get(status, "See /openapi.json for what can be asked.")
    response = refusal(ToolError(code, f"{words or 'Refused'}.", advice), status)
    kept = MutableHeaders(raw=list(start["headers"]))
    for name in ("content-type", "content-length"):
        del kept[name]
    response.headers.update(kept)
    return response
