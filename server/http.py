"""One HTTP server for everything: MCP at /mcp, the tools at /v1/tools, images at /images, /healthz.

Every request passes one guard: it must name this host, come from no foreign web page, and, where there is a
token file, carry a token. Without one the server listens on this machine only.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from types import FrameType
from typing import Any

import anyio.to_thread
import structlog
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import rest
from server.app import App
from server.auth import Tokens, is_loopback, may_ask, names_this_machine
from server.caller import LOCAL, Caller
from server.connections import Connection, WholeBody
from server.dispatcher import stopping
from server.ending import leave_soon
from server.errors import answering
from server.mcp import Studio
from server.sessions import SessionMiddleware, Sessions
from storage import Digest, codec
from tools.base import Code, ToolError

log = structlog.get_logger()

HEALTH = "/healthz"
JSON = "application/json"
BACKLOG = 128
"""Listen backlog: connections that wait in the kernel until they are accepted."""
SHUTDOWN_S = 6
"""Seconds that requests under way may take to finish once the server is asked to stop: jobs, and answers."""
STALLED_S = 3600.0
"""Seconds without progress after which a model counts as hanging; a step of a large one may take minutes."""
ADVICE = {
    400: "Send JSON with the header Content-Type: application/json.",
    403: "Web pages may call this server only from its own address.",
    413: "Send a smaller picture.",
    421: "Ask for the server by the name it has: 127.0.0.1 or localhost.",
}
"""What to do about the refusals of the libraries below, by status."""


class Guard:
    """Middleware that lets a request through, with its principal, or answers why not."""

    def __init__(self, app: ASGIApp, tokens: Tokens | None, loopback: bool) -> None:
        """With tokens any Host header is accepted, such as a proxy's; without, only names of this machine."""
        self._app = app
        self._tokens = tokens
        self._any_host = tokens is not None or not loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            refused = self._check(request)
            if refused is not None:
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, request: Request) -> Response | None:
        headers = request.headers
        host, origin = headers.get("host", ""), headers.get("origin")
        if request.method == "POST" and not headers.get("content-type", "").lower().startswith(JSON):
            return PlainTextResponse("Invalid Content-Type header", 400)  # a form of any page could send it
        if not (self._any_host or names_this_machine(host)):
            return PlainTextResponse("Invalid Host header", 421)
        if origin is not None and not may_ask(origin, host):
            return PlainTextResponse("Invalid Origin header", 403)
        request.state.principal = LOCAL
        if self._tokens is not None and request.url.path != HEALTH:
            principal = self._tokens.principal(request.headers.get("authorization"))
            if principal is None:
                return _unauthorized()
            request.state.principal = principal
        return None


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
                await rest.refusal(stopping(), 503)(scope, receive, send)


def _in_json(start: Message, words: str) -> Response:
    status: int = start["status"]
    code: Code = "forbidden" if status in (401, 403, 421) else "invalid_argument"
    advice = ADVICE.get(status, "See /openapi.json for what can be asked.")
    response = rest.refusal(ToolError(code, f"{words or 'Refused'}.", advice), status)
    if allow := Headers(raw=start["headers"]).get("allow"):
        response.headers["Allow"] = allow
    return response


def http_app(app: App, tokens: Tokens | None = None, *, loopback: bool = True) -> Starlette:
    """The ASGI application; it enters `app` when it starts and leaves it when it stops."""

    def caller(request: Request) -> Caller:
        principal: str = request.state.principal
        address = request.client.host if request.client else ""
        # What a client says of itself does not count: it could say something else with every request.
        return Caller(principal, principal if tokens else address, app.settings.folders)

    def mcp_caller(ctx: ServerRequestContext[Any, Any]) -> Caller:
        assert ctx.request is not None  # it comes with every request over HTTP
        return caller(ctx.request)

    # One full-size image as base64, and the words around it.
    max_body = app.store.limits.bytes * 4 // 3 + 1_000_000
    sessions = Sessions()
    manager = StreamableHTTPSessionManager(
        Studio(app, mcp_caller, sessions).server(), stateless=True, max_request_body_size=max_body
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with app, manager.run():
            app.warm_up()
            yield

    async def image(request: Request) -> Response:
        preview = request.url.path.endswith("/preview")
        try:
            with answering("images", caller(request).client):
                return await anyio.to_thread.run_sync(_image, app, request, preview)
        except ToolError as error:
            return rest.refusal(error)

    async def health(_: Request) -> Response:
        """The health of the server, and the seconds since the last progress of its models."""
        try:
            seconds = app.manager.stalled_s()
        except Exception as error:  # a plugin's backend may fail in any way
            log.warning("the state of a model is unknown", reason=repr(error)[:200])
            seconds = 0.0
        stalled = seconds > STALLED_S
        body = {"status": "stalled" if stalled else "ok", "stalled_s": round(seconds, 1)}
        return JSONResponse(body, 503 if stalled else 200)

    return Starlette(
        routes=[
            Route("/mcp", SessionMiddleware(StreamableHTTPASGIApp(manager), sessions)),
            *rest.routes(app, caller),
            Route("/images/{digest}", image),
            Route("/images/{digest}/preview", image),
            Route(HEALTH, health),
        ],
        middleware=[
            Middleware(JsonRefusals),
            Middleware(Guard, tokens, loopback),
            Middleware(WholeBody, max_body),
        ],
        lifespan=lifespan,
    )


async def serve_http(app: App) -> None:
    """Serve until the process is asked to stop.

    Raises:
        ValueError: the address is open to others and there is no token file, or the file is not as it should.
        OSError: the address cannot be had.
    """
    settings = app.settings
    tokens = Tokens.read(settings.token_file) if settings.token_file else None
    loopback = is_loopback(settings.host)
    if tokens is None and not loopback:
        raise ValueError(f"{settings.host} is open to others; give a token file, or listen on 127.0.0.1")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG) as listener:
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        log.info("listening", url=f"http://{name}:{listener.getsockname()[1]}")
        await Server(uvicorn_config(http_app(app, tokens, loopback=loopback)), app).serve([listener])


class Server(uvicorn.Server):
    """A uvicorn server that answers every waiting caller before it shuts down."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop soon; at once when asked again."""
        leave_soon(128 + sig)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End jobs and calls, so that what waits for them is answered before connections are closed."""
        async with anyio.create_task_group() as group:
            group.start_soon(self._app.stop)
            await super().shutdown(sockets)


def uvicorn_config(asgi: ASGIApp) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        asgi,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        backlog=BACKLOG,
    )


def _image(app: App, request: Request, preview: bool) -> Response:
    """A stored image, or its preview. It never changes, so a client may keep it."""
    digest = Digest.parse(request.path_params["digest"])
    tag = f'"{digest.hex}{"-preview" if preview else ""}"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=31536000, immutable"}
    if request.headers.get("if-none-match") == tag and app.store.get(digest):
        return Response(status_code=304, headers=headers)
    data, kind = app.store.preview(digest) if preview else (app.store.read(digest), codec.MIME_TYPE)
    return Response(data, media_type=kind, headers=headers | {"X-Content-Type-Options": "nosniff"})


def _unauthorized() -> Response:
    error = ToolError(
        "forbidden", "A bearer token is needed.", "Send the header Authorization: Bearer TOKEN."
    )
    response = rest.refusal(error, 401)
    response.headers["WWW-Authenticate"] = "Bearer"
    return response
