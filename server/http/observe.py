"""Every request has an id, in its answer and in what is logged for it; answers are counted and logged."""

import re
import secrets
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from server.counts import Counts
from server.log import get_logger

HEADER = "X-Request-Id"
WELL_FORMED = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""Ids that are taken over from a client or a proxy; any other is replaced."""

log = get_logger(__name__)


class Observed:
    """Middleware that gives a request its id, and counts and logs its answer, without query and headers."""

    def __init__(self, app: ASGIApp, counts: Counts) -> None:
        self._app = app
        self._counts = counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        request = given if WELL_FORMED.fullmatch(given) else secrets.token_hex(8)
        started, status = time.monotonic(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request
            await send(message)

        with bound_contextvars(request=request):
            try:
                await self._app(scope, receive, sending)
            finally:
                route: str = getattr(scope.get("route"), "path", "")
                said = str(status) if status else "none"  # the client went away before its answer
                self._counts.add("http_answers", route, said)
                ms = round(1000 * (time.monotonic() - started), 1)
                (log.info if status >= 400 else log.debug)("http request", route=route, status=said, ms=ms)
