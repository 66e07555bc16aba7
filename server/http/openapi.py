"""The OpenAPI document: every route, put together from what each module of routes says of its own.

A module of routes has `described(app)`, which gives the paths of its routes as OpenAPI has them, with
the answers that are particular to each, built with `operation`. What any request may be answered is added
here, once.
"""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any, get_args

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server import schema
from server.app import App
from tools.base import Code

Paths = dict[str, Any]
"""OpenAPI's path items, by the path of their route."""

DOCUMENT = "/openapi.json"
JSON = "application/json"
REFUSALS = {
    400: "Something in the request is not as it should be; the message says what.",
    401: "A bearer token is needed, or the one given is not accepted.",
    403: "The request comes from a foreign web page, or asks for what this caller may not do.",
    404: "There is nothing of this name.",
    408: "The body came too slowly.",
    409: "The work was cancelled.",
    413: "The body is too large.",
    415: "The body is of a type that this route does not take; the message says which it takes.",
    416: "The range of bytes begins after the end of the content.",
    421: "The Host header names another machine.",
    422: "The picture cannot be taken in, or the Idempotency-Key came before with other arguments.",
    429: "Too much waits already, or is asked for at once. `Retry-After` says when to come back.",
    500: "The server failed in a way that it did not foresee.",
    503: "No model is ready, there is no memory for it, or the server stops. See `Retry-After`.",
}
"""What a refusal means, by status. All have one form."""
ANY = (400, 403, 408, 413, 421, 429, 500, 503)
"""Statuses with which any request may be refused."""


def operation(
    name: str,
    summary: str,
    answers: Mapping[int, dict[str, Any]],
    *,
    about: str = "",
    body: Mapping[str, schema.Schema] | None = None,
    parameters: Sequence[dict[str, Any]] = (),
    refusals: Sequence[int] = (),
    is_open: bool = False,
) -> dict[str, Any]:
    """One operation of a route.

    `answers` are built with `answer`; `body` has a schema for each media type that is taken; `refusals`
    are the statuses of `REFUSALS` that not every route has; `is_open` says that no token is asked for.
    """
    made: dict[str, Any] = {"operationId": name, "summary": summary}
    made |= {"description": about} if about else {}
    made |= {"parameters": list(parameters)} if parameters else {}
    if body is not None:
        content = {kind: {"schema": one} for kind, one in body.items()}
        made["requestBody"] = {"required": True, "content": content}
    responses = {str(status): one for status, one in answers.items()}
    made["responses"] = responses | {str(status): _refusal(status) for status in refusals}
    return made | ({"security": []} if is_open else {})


def answer(words: str, content: Mapping[str, schema.Schema] | None = None) -> dict[str, Any]:
    """A response: its meaning, and a schema for each media type."""
    kinds = {kind: {"schema": one} for kind, one in (content or {}).items()}
    return {"description": words} | ({"content": kinds} if kinds else {})


def parameter(name: str, place: str, words: str, **described: Any) -> dict[str, Any]:
    """A parameter in the `path`, `query` or `header`, a string unless its schema says otherwise."""
    value = {"type": "string", **described}
    return {"name": name, "in": place, "required": place == "path", "description": words, "schema": value}


def document(app: App, parts: Iterable[Paths], *, secured: bool) -> dict[str, Any]:
    """OpenAPI 3.1 of everything; `secured` where a bearer token is needed."""
    paths: Paths = {path: item for part in (*parts, described(app)) for path, item in part.items()}
    for path, item in paths.items():
        for method, one in item.items():
            one["responses"] = _every_refusal(path, method, one, secured) | one["responses"]
    card = app.card()
    return {
        "openapi": "3.1.0",
        "info": {"title": "omnigen2-mcp", "version": version("omnigen2-mcp"), "description": card.about},
        "paths": paths,
        "components": {
            "schemas": {"error": _error()},
            "responses": {
                str(status): answer(words, {JSON: _ref("schemas/error")})
                for status, words in REFUSALS.items()
            },
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"token": []}] if secured else [],
    }


def routes(whole: dict[str, Any]) -> list[Route]:
    """The route of the document itself."""
    ready = JSONResponse(whole)

    async def read(_: Request) -> Response:  # a plain function would want a thread
        return ready

    return [Route(DOCUMENT, read)]


def described(_: App) -> Paths:
    """The document's own path."""
    return {
        DOCUMENT: {
            "get": operation(
                "openapi", "This document", {200: answer("OpenAPI 3.1.", {JSON: {"type": "object"}})}
            )
        }
    }


def _every_refusal(path: str, method: str, one: Mapping[str, Any], secured: bool) -> dict[str, Any]:
    """The refusals that an operation shares with all others of its kind."""
    statuses = {*ANY}
    statuses |= {401} if secured and one.get("security") != [] else set()
    statuses |= {404} if "{" in path else set()
    statuses |= {415} if "requestBody" in one else set()
    return {str(status): _refusal(status) for status in sorted(statuses)}


def _refusal(status: int) -> dict[str, Any]:
    return _ref(f"responses/{status}")


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/{name}"}


def _error() -> dict[str, Any]:
    fields = schema.ERROR["properties"]
    code = fields["code"] | {"enum": list(get_args(Code))}
    failure = schema.ERROR | {"properties": fields | {"code": code}}
    return {"type": "object", "properties": {"error": failure}, "required": ["error"]}
