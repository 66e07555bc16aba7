"""Who gets in: every HTTP request passes one guard.

A request must name this host, come from no foreign web page, and, where there are credentials, bring one that
allows what it asks for. Requests that change nothing need the scope to read, all others the scope to write.
"""

from collections.abc import Collection, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.caller import READ, SCOPES, WRITE, insufficient
from server.http.auth import HOST, Identity, Verifier, may_ask, names_this_machine
from server.http.refusals import refusal
from tools.base import ToolError

SAFE = ("GET", "HEAD", "OPTIONS")
"""Methods that change nothing."""


class Guard:
    """Middleware that lets a request through, with the identity of its caller, or answers why not."""

    def __init__(
        self,
        app: ASGIApp,
        verifiers: Sequence[Verifier],
        *,
        any_host: bool,
        origins: Collection[str],
        is_open: Collection[str],
        reads: Collection[str],
        metadata_url: str | None = None,
    ) -> None:
        """A guard in front of `app`.

        Without `verifiers` every caller is the host itself. `any_host` accepts any Host header, such as a
        proxy's; otherwise it must name this machine. `origins` are those of web pages that may call from
        elsewhere. The paths in `is_open` need no credential; those in `reads` need the scope to read for
        every method. Refusals name `metadata_url`, where it says who issues tokens (RFC 9728).
        """
        self._app = app
        self._verifiers = verifiers
        self._any_host = any_host
        self._origins = origins
        self._open = is_open
        self._reads = reads
        scopes = " ".join(sorted(SCOPES))
        self._metadata = {"scope": scopes, "resource_metadata": metadata_url} if metadata_url else {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope)
            refused = self._foreign(request) or await self._stranger(request)
            if refused is not None:
                await refused(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _foreign(self, request: Request) -> Response | None:
        """Refuse what a foreign web page may have sent, or was sent to another host.

        A browser says where a page comes from: in `Origin` with everything that a script or a form posts, and
        in `Sec-Fetch-Site`, should the first be missing. Programs that are not browsers send neither.
        """
        headers = request.headers
        host, origin = headers.get("host", ""), headers.get("origin")
        if not (self._any_host or names_this_machine(host)):
            advice = "Ask for the server by the name it has: 127.0.0.1 or localhost."
            return refusal(ToolError("forbidden", "The Host header names another machine.", advice), 421)
        if origin is None:
            site = headers.get("sec-fetch-site", "none")
            allowed = request.method in SAFE or site in ("none", "same-origin")
        else:
            allowed = origin in self._origins or may_ask(origin, host)
        if allowed:
            return None
        advice = "Ask the host to allow its origin with --allow-origin."
        return refusal(
            ToolError("forbidden", "A web page of another origin may not call this server.", advice)
        )

    async def _stranger(self, request: Request) -> Response | None:
        """Find out who calls; refuse whoever is not known, or may not do what is asked for."""
        request.state.identity = HOST
        if not self._verifiers or request.url.path in self._open:
            return None
        try:
            identity = await self._identify(request)
        except ToolError as error:
            return refusal(error)
        if identity is None:
            return self._unauthorized("invalid_token" if "authorization" in request.headers else None)
        request.state.identity = identity
        needed = READ if request.method in SAFE or request.url.path in self._reads else WRITE
        if needed in identity.scopes:
            return None
        return self._challenge(refusal(insufficient(needed)), error="insufficient_scope", scope=needed)

    async def _identify(self, request: Request) -> Identity | None:
        for verifier in self._verifiers:
            identity = await verifier.identify(request)
            if identity is not None:
                return identity
        return None

    def _unauthorized(self, error: str | None) -> Response:
        message = "The bearer token is not accepted." if error else "A bearer token is needed."
        refused = ToolError("forbidden", message, "Send the header Authorization: Bearer TOKEN.")
        return self._challenge(refusal(refused, 401), **({"error": error} if error else {}))

    def _challenge(self, response: Response, **parts: str) -> Response:
        """Say in WWW-Authenticate what kind of credential is wanted (RFC 6750, section 3)."""
        said = ", ".join(f'{name}="{value}"' for name, value in (self._metadata | parts).items())
        response.headers["WWW-Authenticate"] = f"Bearer {said}".rstrip()
        return response
