"""One HTTP application for everything: MCP at /mcp, the tools at /v1/tools, images at /images, /healthz.

Every request passes the guard (`server.http.guard`) first.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.routing import Route

from server.app import App
from server.caller import Caller
from server.http import health, images, rest
from server.http.auth import Tokens
from server.http.connections import WholeBody
from server.http.guard import Guard
from server.http.refusals import JsonRefusals
from server.http.sessions import SessionMiddleware, Sessions
from server.mcp import Studio


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

    return Starlette(
        routes=[
            Route("/mcp", SessionMiddleware(StreamableHTTPASGIApp(manager), sessions)),
            *rest.routes(app, caller),
            *images.routes(app, caller),
            *health.routes(app),
        ],
        middleware=[
            Middleware(JsonRefusals),
            Middleware(Guard, tokens, loopback),
            Middleware(WholeBody, max_body),
        ],
        lifespan=lifespan,
    )
