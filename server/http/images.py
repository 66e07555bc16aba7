"""Stored images over HTTP: the images themselves, smaller copies of them, and a way to bring one."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server import schema
from server.app import App
from server.caller import Caller
from server.errors import answering
from server.http.addresses import BY_ADDRESS, PATH, SIGNATURE, WIDTH, expiry
from server.http.auth import Identity
from server.http.content import content, is_known
from server.http.forms import MULTIPART, data_uri, form_fields
from server.http.media import taking
from server.http.openapi import JSON, Paths, answer, operation, parameter
from server.http.refusals import refusal
from server.http.rest import ToolEndpoint
from server.http.streams import while_connected
from server.renditions import PREVIEW, Rendition
from storage import StoredImage, StoreView, codec
from tools.base import ToolError
from tools.fields import ImageIn
from tools.library import IMPORT_IMAGE

UPLOADS = "/v1/images"
IMAGE, PREVIEW_OF = f"{PATH}{{digest}}", f"{PATH}{{digest}}{PREVIEW}"
OCTETS = "application/octet-stream"
PICTURES = "image/*"
MAX_WIDTH = 2048
"""Pixels of the widest copy; wider is the image itself."""
AT_ONCE = 4
"""Copies that are made at once, in threads of their own."""
YEAR_S = 31_536_000
SUFFIXES = {codec.MIME_TYPE: "png", "image/jpeg": "jpg", "image/webp": "webp"}
(PICTURE,) = ImageIn.model_fields
"""The parameter that takes a picture."""


def routes(app: App, caller: Callable[[Request], Caller]) -> list[Route]:
    """Routes for images, for their previews, and for new ones."""
    tool, endpoint = app.tools[IMPORT_IMAGE.name], ImageEndpoint(app, caller)
    upload = ToolEndpoint(app, tool, caller, _arguments)
    return [
        Route(IMAGE, endpoint, methods=["GET"]),
        Route(PREVIEW_OF, endpoint, methods=["GET"]),
        Route(UPLOADS, upload, methods=["POST"], middleware=taking(MULTIPART, PICTURES, OCTETS)),
    ]


class ImageEndpoint:
    """The ASGI application behind the addresses of images."""

    def __init__(self, app: App, caller: Callable[[Request], Caller]) -> None:
        self._app = app
        self._caller = caller
        self._making = CapacityLimiter(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the image, or a copy; stop when the client goes away."""
        request = Request(scope, receive)

        async def respond() -> None:
            try:
                with answering("images", self._caller(request).client, self._app.counts):
                    response = await self._response(request)
            except ToolError as error:
                response = refusal(error)
            await response(scope, receive, send)

        await while_connected(receive, respond)

    async def _response(self, request: Request) -> Response:
        store, name = self._store(request), request.path_params["digest"]
        image = await to_thread.run_sync(store.get, name)
        form = _form(request, image)
        headers = _headers(request, image, form)
        if is_known(request, headers["ETag"]):
            return Response(status_code=304, headers=headers)
        if form:
            make = partial(_made, store, image, form)
            copy = partial(self._app.renditions.get, image.id, form, make)
            data, kind = await to_thread.run_sync(copy, limiter=self._making)
        elif request.method == "HEAD":
            size = {"Content-Length": str(image.bytes), "Accept-Ranges": "bytes"}
            return Response(media_type=image.mime_type, headers=headers | size)
        else:
            data, kind = await to_thread.run_sync(store.read, image.id), image.mime_type
        named = f'inline; filename="{image.id.hex[:12]}.{SUFFIXES[kind]}"'
        return content(request, data, kind, headers | {"Content-Disposition": named})

    def _store(self, request: Request) -> StoreView:
        """What the caller sees. A signed address was given to somebody who sees its image; it shows it."""
        identity: Identity = request.state.identity
        return self._app.store if identity == BY_ADDRESS else self._app.store_of(identity.principal)


def _made(store: StoreView, image: StoredImage, form: str) -> Rendition:
    return store.preview(image.id) if form == PREVIEW else store.resized(image.id, int(form))


def _form(request: Request, image: StoredImage) -> str:
    """Which copy is asked for: `PREVIEW`, a width in pixels, or nothing for the image itself.

    Raises:
        ToolError: `invalid_argument`: the width is no number from 1 to `MAX_WIDTH`.
    """
    if request.scope["path"].endswith(PREVIEW):
        return PREVIEW
    text = request.query_params.get(WIDTH)
    if text is None:
        return ""
    wanted = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    if not 1 <= wanted <= MAX_WIDTH:
        raise ToolError(
            "invalid_argument",
            f"{WIDTH}: {text[:100]!r} is no width.",
            f"Give a number of pixels from 1 to {MAX_WIDTH:,}; leave it out for the full image.",
        )
    return "" if wanted >= image.width else str(wanted)


def _headers(request: Request, image: StoredImage, form: str) -> dict[str, str]:
    """What an answer says of its content: what an address names never changes, so a client may keep it."""
    seconds = YEAR_S
    if SIGNATURE in request.query_params:
        seconds = max(0, min(seconds, expiry(request.query_params) - int(time.time())))
    whole = request.path_params["digest"].removeprefix("sha256:") == image.id.hex
    kept = f"max-age={seconds}, immutable" if whole else "no-cache"  # fewer digits may name two some day
    tag = "-".join(filter(None, [image.id.hex, form.strip("/")]))
    return {
        "ETag": f'"{tag}"',
        "Cache-Control": f"private, {kept}",
        "X-Content-Type-Options": "nosniff",
    }


async def _arguments(request: Request) -> dict[str, Any]:
    """The arguments of a call that brings a picture: a file and its fields, or a body and its query."""
    arguments: dict[str, Any] = dict(request.query_params)
    if request.headers["content-type"].lower().startswith(MULTIPART):
        for field in await form_fields(request, max_files=1):
            arguments[PICTURE if field.is_file else field.name] = field.text
    else:
        arguments[PICTURE] = await data_uri(await request.body())
    return arguments


def described(app: App) -> Paths:
    """The paths of images."""
    wide = parameter(
        WIDTH,
        "query",
        "Width in pixels of a smaller copy; never enlarged.",
        type="integer",
        minimum=1,
        maximum=MAX_WIDTH,
    )
    return {
        IMAGE: {
            method: _described(f"{name}_image", summary, (codec.MIME_TYPE, "image/jpeg", "image/webp"), wide)
            for method, name, summary in (("get", "read", "An image"), ("head", "head", "About an image"))
        },
        PREVIEW_OF: {"get": _described("read_preview", "Its preview", ("image/jpeg", "image/webp"))},
        UPLOADS: {"post": _upload_described(app)},
    }


def _described(name: str, summary: str, kinds: tuple[str, ...], *more: dict[str, Any]) -> dict[str, Any]:
    digest = parameter(
        "digest", "path", "The id of the image, or its first 8 digits or more.",
        pattern="^(sha256:)?[0-9a-fA-F]{8,64}$",
    )  # fmt: skip
    part = parameter("Range", "header", "One range of bytes: `bytes=0-999`.")
    picture = {kind: {"type": "string", "format": "binary"} for kind in kinds}
    answers = {
        200: answer("The picture. It never changes.", picture),
        206: answer("A part of it.", picture),
        304: answer("The client has it already, as `If-None-Match` says."),
    }
    return operation(name, summary, answers, parameters=[digest, part, *more], refusals=(416,))


def _upload_described(app: App) -> dict[str, Any]:
    tool, file = app.tools[IMPORT_IMAGE.name], {"type": "string", "format": "binary"}
    asked = schema.input_schema(tool, app.card())
    fields = asked["properties"]
    query = [
        parameter(name, "query", field.get("description", ""), **field)
        for name, field in fields.items()
        if name != PICTURE
    ]
    form = asked | {"properties": fields | {PICTURE: file}}
    return operation(
        "upload_image",
        tool.title,
        {200: answer("As the tool answers.", {JSON: schema.output_schema(tool)})},
        about="The file of a picture, in a form or as the body. The fields of the form may be in the query.",
        body={MULTIPART: form, PICTURES: file, OCTETS: file},
        parameters=query,
        refusals=(404, 422),
    )
