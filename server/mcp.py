"""The tools over the Model Context Protocol: tool values become MCP tools, results become content blocks.

Works without sessions (2026-07-28) and with the older handshake; the SDK finds out which one a client speaks.
Full-size pixels never travel inside a result: a picture is a small preview and a link.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property, partial
from importlib.metadata import version
from typing import Any, TypeVar

import mcp_types as types
from mcp.server.caching import CacheHint
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError

from omnigen2.checkpoints.card import ModelCard
from omnigen2.task import Cancelled
from server import schema
from server.app import App, NewImages
from server.blocks import content_block
from server.caller import LOCAL, Caller
from server.ending import leave, leave_soon
from server.errors import answering, as_tool_error
from server.hookspecs import AnyTool
from server.hosts import is_structured
from server.http.sessions import Sessions, client_name
from server.introduction import NAME, TITLE, icons, instructions, website
from server.offered import OfferedPrompts, OfferedResources
from server.resources import Resources, link
from server.status import progress_line
from tools.base import JobStatus, Picture, Result, ToolError

RequestContext = ServerRequestContext[Any, Any]
P = TypeVar("P")
R = TypeVar("R")
Handler = Callable[[RequestContext, P], Awaitable[R]]

SILENCE_S = 50.0
"""Timeout of a client that asked for no progress: most give up after 60 seconds of silence."""
WARM_UP_AFTER_S = 0.2
"""Pause between the list of tools and loading the model: the first answers must not compete with it."""
STABLE = CacheHint(ttl_ms=300_000, scope="public")
"""For lists that stay as they are while the server runs."""
OWN = CacheHint(ttl_ms=300_000, scope="private")
"""For lists that are not the same for every client."""


class Studio:
    """The handlers of an MCP server around an app."""

    def __init__(
        self, app: App, caller: Callable[[RequestContext], Caller], sessions: Sessions | None = None
    ) -> None:
        """`caller` says on whose behalf a request is made; `sessions` are those of clients over HTTP."""
        self.app = app
        self._sessions = sessions
        self._caller = caller
        self._resources = Resources(app.store_of, OfferedResources(app.plugins.resources()), caller)
        self._prompts = OfferedPrompts(app.plugins.prompts(), {"advice": app.card().advice.prompts})
        self._cold = True

    def server(self) -> Server:
        """A server with everything that the app offers."""
        return Server(
            NAME,
            version=version(NAME),
            title=TITLE,
            instructions=instructions(self.app.card()),
            icons=icons(),
            website_url=website(),
            cache_hints={"tools/list": OWN, "prompts/list": STABLE, "resources/templates/list": STABLE},
            get_tool_input_schema=self._input_schemas.get,
            on_list_tools=self._guarded("tools/list", self._list_tools),
            on_call_tool=self._call_tool,
            on_list_resources=self._guarded("resources/list", self._resources.list_recent),
            on_list_resource_templates=self._guarded(
                "resources/templates/list", self._resources.list_templates
            ),
            on_read_resource=self._guarded("resources/read", self._resources.read),
            on_list_prompts=self._guarded("prompts/list", self._prompts.list_all),
            on_get_prompt=self._guarded("prompts/get", self._prompts.get),
            on_completion=self._guarded("completion/complete", self._resources.complete),
        )

    def _guarded(self, method: str, handler: Handler[P, R]) -> Handler[P, R]:
        """A handler whose every failure is an error of the protocol, with our code beside the number."""

        async def handle(ctx: RequestContext, params: P) -> R:
            try:
                with answering(method, self._caller(ctx).client, self.app.counts):
                    return await handler(ctx, params)
            except ToolError as error:
                number = types.INTERNAL_ERROR if error.code == "internal" else types.INVALID_PARAMS
                uri = getattr(params, "uri", None)
                about = {"code": error.code} | ({"uri": str(uri)} if uri else {})
                raise MCPError(number, str(error), about) from error

        return handle

    @cached_property
    def _tools(self) -> dict[str, types.Tool]:
        card, offered, allow_fetch = self.app.card(), self.app.offered(), self.app.settings.allow_fetch
        return {name: describe(tool, card, offered, allow_fetch) for name, tool in self.app.tools.items()}

    @cached_property
    def _input_schemas(self) -> dict[str, dict[str, Any]]:
        return {name: tool.input_schema for name, tool in self._tools.items()}

    def _structured(self, tool: AnyTool, ctx: RequestContext) -> bool:
        return is_structured(tool, _client(ctx), self.app.settings.structured)

    async def _list_tools(self, ctx: RequestContext, params: Any) -> types.ListToolsResult:
        if self._cold:
            self._cold = False
            asyncio.get_running_loop().call_later(WARM_UP_AFTER_S, self.app.warm_up)
        tools = [
            self._tools[name] if self._structured(tool, ctx) else _without_schema(self._tools[name])
            for name, tool in self.app.tools.items()
        ]
        return types.ListToolsResult(tools=tools)

    async def _call_tool(
        self, ctx: RequestContext, params: types.CallToolRequestParams
    ) -> types.CallToolResult:
        tool = self.app.tools.get(params.name)
        if tool is None:
            known = ", ".join(self.app.tools)
            raise MCPError(
                types.INVALID_PARAMS, f"There is no tool {params.name[:100]!r}. The tools are: {known}."
            )
        result = await self._called(tool, params.arguments or {}, ctx)
        return (
            result if self._structured(tool, ctx) else result.model_copy(update={"structured_content": None})
        )

    async def _called(
        self, tool: AnyTool, arguments: dict[str, Any], ctx: RequestContext
    ) -> types.CallToolResult:
        try:
            with self._cancellable(ctx):
                caller = self._reporting(ctx)
                render = partial(self._answer, caller)
                return await self.app.answer(tool, arguments, caller, render)
            raise Cancelled  # by the client, which has stopped listening
        except Exception as error:
            return failure(as_tool_error(error))

    def _cancellable(self, ctx: RequestContext) -> AbstractContextManager[object]:
        if self._sessions is None or ctx.request is None:
            return nullcontext()
        return self._sessions.cancellable(ctx.request, ctx.request_id)

    def _reporting(self, ctx: RequestContext) -> Caller:
        """The caller of a request, who gets progress if the request asks for it."""
        silent = (ctx.meta or {}).get("progress_token") is None
        return replace(
            self._caller(ctx),
            on_progress=Reporter(ctx).report,
            timeout_s=SILENCE_S if silent else None,
            previews=True,
        )

    def _answer(self, caller: Caller, result: Result, shown: NewImages) -> types.CallToolResult:
        store, address_of = self.app.store_of(caller.principal), caller.address_of

        def preview(image: str) -> Picture:
            made = shown[image].preview if image in shown else None
            return made or Picture(*self.app.renditions.preview(store, image))

        def linked(image: str) -> types.ResourceLink:
            made = shown.get(image) or store.origin(image)
            return link(made.image, made.record, address_of)

        pictures = (*map(preview, result.previewed()), *result.pictures())
        links = [linked(image) for image in result.linked()]
        opened = [f"For the user to open: {one.uri}" for one in links] if address_of else []
        words = types.TextContent(text="\n".join([result.summary(), *opened]))
        return types.CallToolResult(
            content=[
                words,
                *map(content_block, pictures),
                *links,
                *map(content_block, result.blocks()),
            ],
            structured_content=schema.dump(result, address_of, lean=True),
        )


async def serve_stdio(app: App) -> None:
    """Serve the client that started this process, until it closes stdin or a signal says to stop."""
    caller = Caller(LOCAL, "stdio", app.settings.folders)
    server = Studio(app, lambda _: caller).server()

    async def serve() -> None:
        async with stdio_server() as (incoming, outgoing):
            await server.run(incoming, outgoing, server.create_initialization_options())

    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def asked(number: int) -> None:
        leave_soon(128 + number)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, asked, number)
    async with app:
        serving, stopped = asyncio.create_task(serve()), asyncio.create_task(stop.wait())
        await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            leave_soon(1)
        await app.stop()
    if not serving.done():
        leave(0)  # a thread waits for a line on stdin, and nothing wakes it
    stopped.cancel()
    serving.result()


class Reporter:
    """Progress notifications of one request; their value always grows, as the protocol demands."""

    def __init__(self, ctx: RequestContext) -> None:
        self._session = ctx.session
        self._last = 0.0

    async def report(self, status: JobStatus) -> None:
        """Send the client the status of its job."""
        self._last = max(status.step, self._last + 0.001)
        await self._session.report_progress(self._last, status.steps or None, progress_line(status))


def describe(tool: AnyTool, card: ModelCard, offered: Mapping[str, str], allow_fetch: bool) -> types.Tool:
    """A tool as MCP lists it, where the model of `card` is at work; `offered` as for `input_schema`."""
    return types.Tool(
        name=tool.name,
        title=tool.title,
        description=schema.description(tool, card),
        input_schema=schema.input_schema(tool, card, offered, lean=True),
        output_schema=schema.output_schema(tool, lean=True),
        annotations=types.ToolAnnotations(
            # What is left out is false, or without meaning for a tool that changes nothing.
            read_only_hint=tool.read_only or None,
            destructive_hint=None if tool.read_only else tool.destructive,
            idempotent_hint=(tool.idempotent and not tool.read_only) or None,
            open_world_hint=schema.is_open_world(tool, allow_fetch),
        ),
    )


def failure(error: ToolError) -> types.CallToolResult:
    """A failed call, for the model to read and for programs."""
    return types.CallToolResult(
        content=[types.TextContent(text=schema.error_line(error))],
        structured_content=schema.dump_error(error),
        is_error=True,
    )


def _without_schema(tool: types.Tool) -> types.Tool:
    return tool.model_copy(update={"output_schema": None})


def _client(ctx: RequestContext) -> str:
    """The name of the client; empty if it gave none."""
    if ctx.session.client_params is not None:
        return ctx.session.client_params.client_info.name
    return client_name(ctx.request) if ctx.request is not None else ""
