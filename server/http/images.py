"""Stored images over HTTP, and their previews."""

from collections.abc import Callable
from typing import Any

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.app import App
from server.caller import Caller
from server.errors import answering
from server.http.openapi import Paths, answer, operation, parameter
from server.http.refusals import refusal
from storage import codec
from tools.base import ToolError


def routes(app: App, caller: Callable[[Request], Caller]) -> list[Route]:
    """A route for images, and one for their previews."""

    async def image(request: Request) -> Response:
        preview = request.url.path.endswith("/preview")
        try:
            with answering("images", caller(request).client):
                return await anyio.to_thread.run_sync(_image, app, request, preview)
        except ToolError as error:
            return refusal(error)

    return [Route("/images/{digest}", image), Route("/images/{digest}/preview", image)]


def described(_: App) -> Paths:
    """The paths of images."""
    return {
        "/images/{digest}": {"get": _described("read_image", "An image", codec.MIME_TYPE)},
        "/images/{digest}/preview": {
            "get": _described("read_preview", "Its preview", "image/jpeg", "image/webp")
        },
    }


def _described(name: str, summary: str, *kinds: str) -> dict[str, Any]:
    digest = parameter("digest", "path", "The id of the image, without `sha256:`.", pattern="^[0-9a-f]{64}$")
    answers = {
        200: answer("The picture. It never changes.", {kind: {} for kind in kinds}),
        304: answer("The client has it already, as `If-None-Match` says."),
    }
    return operation(name, summary, answers, parameters=[digest])


def _image(app: App, request: Request, preview: bool) -> Response:
    """A stored image, or its preview. It never changes, so a client may keep it."""
    digest = app.store.get(request.path_params["digest"]).id
    tag = f'"{digest.hex}{"-preview" if preview else ""}"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=31536000, immutable"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    data, kind = app.store.preview(digest) if preview else (app.store.read(digest), codec.MIME_TYPE)
    return Response(data, media_type=kind, headers=headers | {"X-Content-Type-Options": "nosniff"})
