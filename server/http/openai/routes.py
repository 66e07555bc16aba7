"""The routes of OpenAI's images API."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server.app import App
from server.caller import Caller
from server.errors import as_tool_error
from server.http.forms import MULTIPART
from server.http.media import taking
from server.http.openai.answered import answer, completed, failed, failure, partial
from server.http.openai.asked import Asked, edit, generation
from server.http.openapi import JSON
from server.http.refusals import STATUS
from server.http.streams import EventStream, while_connected
from tools.base import JobStatus, ToolError

GENERATIONS, EDITS, MODELS = "/v1/images/generations", "/v1/images/edits", "/v1/models"
STARTED = int(time.time())


def routes(app: App, caller: Callable[[Request], Caller]) -> list[Route]:
    """Routes to generate and edit pictures, and of the models."""

    async def models(_: Request) -> Response:
        try:
            return JSONResponse({"object": "list", "data": [_model(name) for name in app.models()]})
        except ToolError as error:
            return failed(error)

    async def model(request: Request) -> Response:
        name = request.path_params["model"]
        try:
            app.card(name)
        except ToolError as error:
            return _no_model(error)
        return JSONResponse(_model(name))

    return [
        Route(
            GENERATIONS,
            Endpoint(app, generation, "image_generation", caller),
            methods=["POST"],
            middleware=taking(JSON),
        ),
        Route(
            EDITS,
            Endpoint(app, edit, "image_edit", caller),
            methods=["POST"],
            middleware=taking(MULTIPART, JSON),
        ),
        Route(MODELS, models),
        Route(f"{MODELS}/{{model:path}}", model),
    ]


class Endpoint:
    """The ASGI application behind the route of one kind of request."""

    def __init__(
        self,
        app: App,
        read: Callable[[Request], Awaitable[Asked]],
        events: str,
        caller: Callable[[Request], Caller],
    ) -> None:
        """`read` makes a call of a request; `events` is what the names of events begin with."""
        self._app, self._read, self._events, self._caller = app, read, events, caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the request, call the tool, answer; stop when the client goes away."""
        request = Request(scope, receive)
        try:
            asked = await self._read(request)
        except ToolError as error:
            await failed(error)(scope, receive, send)
            return
        try:
            await to_thread.run_sync(self._app.card, asked.options.model or None)
        except ToolError as error:
            await _no_model(error)(scope, receive, send)
            return

        async def respond() -> None:
            if asked.options.stream:
                await self._stream(asked, request, EventStream(send))
                return
            try:
                document = await self._document(asked, self._caller(request))
                response: Response = JSONResponse(document, 200 if document["data"] else 202)
            except ToolError as error:
                response = failed(error)
            await response(scope, receive, send)

        await while_connected(receive, respond)

    async def _document(self, asked: Asked, caller: Caller) -> dict[str, Any]:
        """The answer to a request. Raises ToolError."""
        result = await self._app.call(self._app.tools[asked.tool], asked.arguments, caller)
        try:
            return await to_thread.run_sync(answer, result, asked, self._app, caller)
        except Exception as error:
            raise as_tool_error(error) from error

    async def _stream(self, asked: Asked, request: Request, stream: EventStream) -> None:
        sent = 0

        async def send(kind: str, fields: dict[str, Any]) -> None:
            kind = f"{self._events}.{kind}"
            await stream.event(kind, {"type": kind} | fields)

        async def progress(status: JobStatus) -> None:
            nonlocal sent
            if status.preview is None:
                await stream.sign_of_life()
            else:
                await send("partial_image", partial(status.preview, sent, asked))
                sent += 1

        caller = replace(
            self._caller(request), on_progress=progress, partial_images=asked.options.partial_images or 0
        )
        await stream.begin()
        try:
            document = await self._document(asked, caller)
            for image in document["data"]:
                await send("completed", completed(document, image, asked))
            await stream.end()
        except ToolError as error:
            await stream.event("error", {"type": "error"} | failure(error, STATUS[error.code]), more=False)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "omnigen2-mcp"}


def _no_model(error: ToolError) -> Response:
    wrong = error.code == "invalid_argument"
    return failed(error, 404 if wrong else None, "model_not_found" if wrong else None)
