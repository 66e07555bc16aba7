"""Which media types a route takes."""

from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.refusals import refusal
from tools.base import ToolError


class Takes:
    """Middleware of a route: a body of another type than the route takes is refused with what to send."""

    def __init__(self, app: ASGIApp, types: Collection[str]) -> None:
        """`types` as in OpenAPI: `application/json`, `image/*`."""
        self._app = app
        self._types = types

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] != "POST" or any(_fits(given, taken) for taken in self._types):
            await self._app(scope, receive, send)
            return
        said = f"a body of the type {given[:100]!r}" if given else "a body without a Content-Type"
        advice = f"Send the header Content-Type: {' or '.join(self._types)}."
        response = refusal(ToolError("invalid_argument", f"This address does not take {said}.", advice), 415)
        response.headers["Accept"] = ", ".join(self._types)
        await response(scope, receive, send)


def taking(*types: str) -> list[Middleware]:
    """The `middleware` of a route that takes these media types."""
    return [Middleware(Takes, types)]


def _fits(given: str, taken: str) -> bool:
    whole, _, rest = taken.partition("/")
    return given == taken or (rest == "*" and given.startswith(f"{whole}/"))
