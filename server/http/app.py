"""One HTTP application for everything: MCP at /mcp, the tools at /v1/tools, images at /images, and the rest.

A module for each kind of route has `routes`, which makes them, and `described`, which says in OpenAPI what
they are. Every request passes the guard (`server.http.guard`) first.
"""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request

from server.app import App
from server.caller import Caller
from server.http import health, images, jobs, mcp, metrics, oauth, openai, openapi, rest, status
from server.http.addresses import Addresses, signing_key
from server.http.auth import Identity, Tokens, Verifier
from server.http.connections import WholeBody
from server.http.guard import Guard
from server.http.mcp import MCP, McpEndpoint
from server.http.observe import Observed
from server.http.refusals import JsonRefusals, refused
from storage.errors import StoreError
from tools.base import ToolError

ROUTED = (
    rest,
    images,
    openai,
    jobs,
    health,
    metrics,
    status,
    oauth,
)
"""The modules of routes, beside that of MCP."""
EXPOSED = (
    "Mcp-Session-Id",
    "X-Request-Id",
    "Retry-After",
    "ETag",
    "WWW-Authenticate",
    "Accept-Ranges",
    "Content-Range",
)
"""Headers of answers that scripts of other origins may read."""


def http_app(app: App, tokens: Tokens | None = None, *, loopback: bool = True) -> Starlette:
    """The ASGI application; it enters `app` when it starts and leaves it when it stops."""
    verifiers = _verifiers(app, tokens)
    addresses = Addresses(app.settings.public_url, signing_key(app.store.path) if verifiers else None)
    if verifiers:
        verifiers.append(addresses)

    def caller(request: Request) -> Caller:
        identity: Identity = request.state.identity
        address = request.client.host if request.client else ""
        # What a client says of itself does not count: it could say something else with every request.
        return Caller(
            identity.principal,
            identity.principal if verifiers else address,
            app.settings.folders,
            scopes=identity.scopes,
            address_of=partial(addresses.url, addresses.base(request)),
            own_addresses=addresses.own(request),
            idempotency_key=request.headers.get(rest.KEY),
        )

    def mcp_caller(request: Request) -> Caller:  # MCP has no such header: there, it stands for no call
        return replace(caller(request), idempotency_key=None)

    # One full-size image as base64, and the words around it.
    max_body = app.store.limits.bytes * 4 // 3 + 1_000_000
    endpoint = McpEndpoint(app, mcp_caller, max_body)
    parts = [module.described(app) for module in (mcp, *ROUTED)]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with app, endpoint.running():
            app.warm_up()
            yield

    own = [
        *endpoint.routes(),
        *(route for module in ROUTED for route in module.routes(app, caller)),
        *openapi.routes(openapi.document(app, parts, secured=bool(verifiers))),
    ]
    return Starlette(
        routes=[*own, *app.plugins.routes(app, caller, own)],
        middleware=[
            Middleware(Observed, app.counts),
            Middleware(JsonRefusals),
            *_cors(app.settings.allow_origin),
            Middleware(
                Guard,
                verifiers,
                any_host=bool(verifiers) or not loopback,
                origins=app.settings.allow_origin,
                is_open={health.HEALTH, health.READY, *oauth.described(app)},
                reads={MCP, *(rest.path(tool) for tool in app.tools.values() if tool.read_only)},
                metadata_url=oauth.metadata_url(app),
            ),
            Middleware(WholeBody, max_body),
        ],
        exception_handlers={ToolError: refused, StoreError: refused, Exception: refused},
        lifespan=lifespan,
    )


def _verifiers(app: App, tokens: Tokens | None) -> list[Verifier]:
    """The credentials that are accepted: tokens of the file, and those of an authorization server."""
    verifiers: list[Verifier] = [tokens] if tokens else []
    settings = app.settings
    if settings.oauth_issuer and settings.oauth_audience:
        from server.http.access_tokens import AccessTokens  # slow to import, and rarely needed

        verifiers.append(AccessTokens(settings.oauth_issuer, settings.oauth_audience, settings.oauth_jwks))
    return verifiers


def _cors(origins: tuple[str, ...]) -> list[Middleware]:
    """What lets scripts of these origins read answers. Browsers ask for it first, without a token."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=EXPOSED,
        )
    ]
