"""The tools over plain HTTP: one POST route per tool.

A call answers with one JSON document, or, if the client accepts `text/event-stream`, with an event per step
and the result as the last one. A client that goes away cancels its call.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from omnigen2.checkpoints.card import ModelCard
from server import schema
from server.app import App, NewImages
from server.caller import Caller
from server.hookspecs import AnyTool
from server.http.media import taking
from server.http.openapi import JSON, Paths, answer, operation, parameter
from server.http.refusals import refusal
from server.http.streams import DESCRIBED, EVENTS, EventStream, while_connected
from server.idempotency import MAX_KEY
from server.status import progress_event
from tools.base import JobStatus, Result, ToolError

KEY = "Idempotency-Key"
KEYED = parameter(
    KEY,
    "header",
    "The same call under the same key is made once: sent again within a day, it has the same answer. It goes "
    "on when its client hangs up.",
    maxLength=MAX_KEY,
)


def routes(app: App, caller: Callable[[Request], Caller]) -> list[Route]:
    """A route per tool."""
    return [
        Route(
            path(tool),
            ToolEndpoint(app, tool, caller, json_object),
            methods=["POST"],
            middleware=taking(JSON),
        )
        for tool in app.tools.values()
    ]


def path(tool: AnyTool) -> str:
    """Where a tool is called."""
    return f"/v1/tools/{tool.name}"


class ToolEndpoint:
    """The ASGI application behind the route of one tool."""

    def __init__(
        self,
        app: App,
        tool: AnyTool,
        caller: Callable[[Request], Caller],
        read: Callable[[Request], Awaitable[dict[str, Any]]],
    ) -> None:
        """`read` gives the arguments that a request has for the tool."""
        self._app = app
        self._tool = tool
        self._caller = caller
        self._read = read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the arguments, run the tool, answer; stop when the client goes away."""
        request = Request(scope, receive)
        try:
            arguments = await self._read(request)
        except ToolError as error:
            await refusal(error)(scope, receive, send)
            return

        async def answer() -> None:
            if EVENTS in request.headers.get("accept", ""):
                await self._stream(arguments, self._caller(request), EventStream(send))
            else:
                response = await self._answer(arguments, self._caller(request))
                await response(scope, receive, send)

        await while_connected(receive, answer)

    async def _answer(self, arguments: dict[str, Any], caller: Caller) -> Response:
        try:
            return JSONResponse(await self._result(arguments, caller))
        except ToolError as error:
            return refusal(error)

    async def _result(self, arguments: dict[str, Any], caller: Caller) -> dict[str, Any]:
        def dumped(result: Result, _: NewImages) -> dict[str, Any]:
            return schema.dump(result, caller.address_of)

        return await self._app.answer(self._tool, arguments, caller, dumped, looks_up=False)

    async def _stream(self, arguments: dict[str, Any], caller: Caller, stream: EventStream) -> None:
        async def progress(status: JobStatus) -> None:
            await stream.event("progress", progress_event(status))

        await stream.begin()
        try:
            result = await self._result(arguments, replace(caller, on_progress=progress))
            await stream.event("result", result, more=False)
        except ToolError as error:
            await stream.event("error", schema.dump_error(error), more=False)


def described(app: App) -> Paths:
    """The paths of the tools, with the model's defaults."""
    card, offered = app.card(), app.offered()
    return {path(tool): {"post": _described(tool, card, offered)} for tool in app.tools.values()}


def _described(tool: AnyTool, card: ModelCard, offered: Mapping[str, str]) -> dict[str, Any]:
    asked = {"title": f"{tool.name}.request", **schema.input_schema(tool, card, offered)}
    answered = {"title": f"{tool.name}.result", **schema.output_schema(tool)}
    result = answer("The result; as events, progress comes first.", {JSON: answered, EVENTS: DESCRIBED})
    return operation(
        tool.name,
        tool.title,
        {200: result},
        about=schema.description(tool, card),
        body={JSON: asked},
        parameters=() if tool.read_only else [KEYED],
        refusals=(404, 409, 422),
    )


async def json_object(request: Request) -> dict[str, Any]:
    """The arguments in the body of a request; an empty body has none. Raises ToolError."""
    try:
        arguments = json.loads(await request.body() or b"{}")
    except (ValueError, RecursionError) as error:
        raise ToolError(
            "invalid_argument", f"The request body is not valid JSON: {error}.", "Send a JSON object."
        ) from error
    if not isinstance(arguments, dict):
        raise ToolError(
            "invalid_argument", "The request body is not a JSON object.", "Send the arguments as an object."
        )
    return cast("dict[str, Any]", arguments)
