"""Stored images over HTTP, and their previews."""

from collections.abc import Callable

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.app import App
from server.caller import Caller
from server.errors import answering
from server.http.refusals import refusal
from storage import Digest, codec
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


def _image(app: App, request: Request, preview: bool) -> Response:
    """A stored image, or its preview. It never changes, so a client may keep it."""
    digest = Digest.parse(request.path_params["digest"])
    tag = f'"{digest.hex}{"-preview" if preview else ""}"'
    headers = {"ETag": tag, "Cache-Control": "private, max-age=31536000, immutable"}
    if request.headers.get("if-none-match") == tag and app.store.get(digest):
        return Response(status_code=304, headers=headers)
    data, kind = app.store.preview(digest) if preview else (app.store.read(digest), codec.MIME_TYPE)
    return Response(data, media_type=kind, headers=headers | {"X-Content-Type-Options": "nosniff"})
