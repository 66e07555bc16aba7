"""MCP over HTTP: its one route."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from mcp.server.context import ServerRequestContext
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from starlette.requests import Request
from starlette.routing import Route

from server.app import App
from server.caller import Caller
from server.http.media import taking
from server.http.openapi import JSON, Paths, answer, operation
from server.http.sessions import SessionMiddleware, Sessions
from server.http.streams import DESCRIBED, EVENTS
from server.mcp import Studio

MCP = "/mcp"
ABOUT = """\
The Model Context Protocol, streamable HTTP transport: JSON-RPC messages in both directions, and the tools \
of /v1/tools. Protocol versions without sessions (2026-07-28) and with the older handshake are spoken. Use a \
client of MCP; this is no interface to be called by hand."""


class McpEndpoint:
    """What serves MCP while it is entered."""

    def __init__(self, app: App, caller: Callable[[Request], Caller], max_body: int) -> None:
        def mcp_caller(ctx: ServerRequestContext[Any, Any]) -> Caller:
            assert ctx.request is not None  # it comes with every request over HTTP
            return caller(ctx.request)

        self._sessions = Sessions()
        self._manager = StreamableHTTPSessionManager(
            Studio(app, mcp_caller, self._sessions).server(), stateless=True, max_request_body_size=max_body
        )

    def running(self) -> AbstractAsyncContextManager[None]:
        """Serve while entered."""
        return self._manager.run()

    def routes(self) -> list[Route]:
        """The route of MCP."""
        endpoint = SessionMiddleware(StreamableHTTPASGIApp(self._manager), self._sessions)
        return [Route(MCP, endpoint, methods=["POST", "DELETE"], middleware=taking(JSON))]


def described(_: App) -> Paths:
    """The path of MCP, in words: its messages have a specification of their own."""
    message = {"type": "object", "description": "A JSON-RPC message of MCP."}
    failed = answer("A JSON-RPC error, or a refusal as everywhere.", {JSON: {"type": "object"}})
    answers = {
        200: answer("JSON-RPC, as one document or as events.", {JSON: message, EVENTS: DESCRIBED}),
        202: answer("A notification was taken."),
        **dict.fromkeys((400, 404, 406, 500), failed),
    }
    ended = {204: answer("There is nothing to end: no session is kept.")}
    return {
        MCP: {
            "post": operation("mcp", "Model Context Protocol", answers, about=ABOUT, body={JSON: message}),
            "delete": operation("mcp_end", "End a session of MCP", ended),
        }
    }
