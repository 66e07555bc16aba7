"""Who gets in: every HTTP request passes one guard.

A request must name this host, come from no foreign web page, and, where there is a token file, carry a token.
"""

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.caller import LOCAL
from server.http.auth import Tokens, may_ask, names_this_machine
from server.http.health import HEALTH
from server.http.refusals import refusal
from tools.base import ToolError

JSON = "application/json"


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


def _unauthorized() -> Response:
    error = ToolError(
        "forbidden", "A bearer token is needed.", "Send the header Authorization: Bearer TOKEN."
    )
    response = refusal(error, 401)
    response.headers["WWW-Authenticate"] = "Bearer"
    return response
