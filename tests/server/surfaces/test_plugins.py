"""What a plugin brings, on every surface: tools with any content and progress, prompts, resources, routes."""

import json
from collections.abc import Callable, Mapping

import anyio
import httpx
import mcp_types as types
import pytest
from anyio import to_thread
from mcp.shared.exceptions import MCPError
from PIL import Image
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route

from server.app import App
from server.caller import Caller
from server.hookspecs import AnyTool, hookimpl
from server.http.app import http_app
from server.offers import Argument, Prompt, Resource
from server.prompts import PROMPTS
from tests.server.core.conftest import HeldEngine
from tests.server.surfaces.conftest import Connect
from tests.server.surfaces.test_http import BOB, TOKENS, rest
from tools.base import Audio, Block, Context, Embedded, Picture, Request, Result, Tool, ToolError

pytestmark = pytest.mark.anyio


class Spoken(Result):
    """Some words, spoken."""

    words: str

    def line(self) -> str:
        return f"Said: {self.words}"

    def blocks(self) -> tuple[Block, ...]:
        return (
            "as text",
            Picture(b"png", "image/png"),
            Audio(b"wav", "audio/wav"),
            Embedded("say://text", "text/plain", self.words),
            Embedded("say://bytes", "application/octet-stream", b"\0\1"),
        )


class Say(Request):
    """What to say."""

    words: str = "hello"


async def say(request: Say, context: Context) -> Spoken:
    await context.progress(1, 3, "listen")
    await to_thread.run_sync(lambda: anyio.from_thread.run(context.progress, 2, 3, "think"))
    await context.progress(3, 3)
    return Spoken(words=request.words)


class Speaker:
    """A plugin with a bit of everything."""

    @hookimpl
    def register_tools(self, register: Callable[[AnyTool], None]) -> None:
        register(Tool("say", "say", "Say", "Says something.", Say, Spoken, say, read_only=True))

    @hookimpl
    def register_prompts(self, register: Callable[[Prompt], None]) -> None:
        def messages(given: Mapping[str, str]) -> list[Block]:
            return [Embedded("say://text", "text/plain", given["words"]), "Say it."]

        arguments = (Argument("words", "What to say"), Argument("tone", "How", "soft"))
        register(Prompt("recite", "Recite", "Recites something.", arguments, messages))
        register(Prompt("shout", "Shout", "Shouts something.", arguments, "$words! In a $tone tone."))

    @hookimpl
    def register_resources(self, register: Callable[[Resource], None]) -> None:
        async def fixed(values: Mapping[str, str]) -> str:
            assert values == {}
            return "hello"

        async def spoken(values: Mapping[str, str]) -> bytes:
            if values["words"] == "nothing":
                raise ToolError("invalid_argument", "Nothing cannot be said.")
            return values["words"].encode()

        register(Resource("say://hello", "hello", "Hello", "A greeting.", "text/plain", fixed))
        register(Resource("say://{words}/wav", "spoken", "Spoken", "Words, spoken.", "audio/wav", spoken))

    @hookimpl
    def register_routes(
        self, register: Callable[[Route], None], app: App, caller: Callable[[HttpRequest], Caller]
    ) -> None:
        async def spoken(request: HttpRequest) -> JSONResponse:
            words = request.path_params["words"]
            if words == "trouble":
                raise RuntimeError("the host's business")
            if words == "unknown":
                app.store.get("0" * 64)
            result = await app.call(app.tools["say"], {"words": words}, caller(request))
            return JSONResponse([caller(request).principal, result.summary()])

        register(Route("/say/{words}", spoken))


@pytest.fixture
def app(make_app: Callable[..., App], engine: HeldEngine) -> App:
    return make_app(lambda: engine, [Speaker()])


async def test_a_result_holds_any_content(app: App, connect: Connect) -> None:
    async with connect(app) as client:
        result = await client.call_tool("say", {"words": "hi"})
    line, text, picture, audio, embedded, blob = result.content
    assert (line, text) == (types.TextContent(text="Said: hi"), types.TextContent(text="as text"))
    assert picture == types.ImageContent(data="cG5n", mime_type="image/png")
    assert audio == types.AudioContent(data="d2F2", mime_type="audio/wav")
    assert isinstance(embedded, types.EmbeddedResource) and isinstance(blob, types.EmbeddedResource)
    assert embedded.resource == types.TextResourceContents(
        uri="say://text", mime_type="text/plain", text="hi"
    )
    assert isinstance(blob.resource, types.BlobResourceContents) and blob.resource.blob == "AAE="
    assert result.structured_content == {"notes": [], "words": "hi"}


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_progress_without_a_job_reaches_mcp(app: App, connect: Connect, mode: str) -> None:
    seen: list[tuple[float, float | None, str | None]] = []

    async def progress(step: float, total: float | None, message: str | None) -> None:
        seen.append((step, total, message))

    async with connect(app, mode) as client:
        await client.call_tool("say", {}, progress_callback=progress)
    assert seen == [(1, 3, "listen 1 of 3"), (2, 3, "think 2 of 3"), (3, 3, "3 of 3")]


async def test_progress_without_a_job_reaches_rest(app: App) -> None:
    async with rest(app, headers={"Accept": "text/event-stream"}) as client:
        events = (await client.post("/v1/tools/say", json={})).text.strip().split("\n\n")
    data = [json.loads(event.partition("data: ")[2]) for event in events]
    assert [event["step"] for event in data[:-1]] == [1, 2, 3]
    assert data[0] == {"state": "running", "position": 0, "stage": "listen", "step": 1, "steps": 3,
                       "eta_seconds": None}  # fmt: skip
    assert data[-1] == {"notes": [], "words": "hello"}


async def test_prompts_of_a_plugin_stand_beside_ours(app: App, connect: Connect) -> None:
    async with connect(app) as client:
        names = [prompt.name for prompt in (await client.list_prompts()).prompts]
        assert names == [*PROMPTS, "recite", "shout"]
        recited = await client.get_prompt("recite", {"words": "hi"})
        shouted = await client.get_prompt("shout", {"words": "hi", "tone": ""})
        with pytest.raises(MCPError, match="The prompt recite needs: words"):
            await client.get_prompt("recite", {"tone": "loud"})
    first, second = (message.content for message in recited.messages)
    assert isinstance(first, types.EmbeddedResource) and first.resource.model_dump()["text"] == "hi"
    assert second == types.TextContent(text="Say it.")
    assert shouted.messages[0].content == types.TextContent(text="hi! In a soft tone.")


async def test_resources_of_a_plugin_stand_beside_images(app: App, connect: Connect) -> None:
    image = app.store.put(Image.new("RGB", (8, 8), "red")).id
    async with connect(app) as client:
        resources = (await client.list_resources()).resources
        assert [resource.uri for resource in resources] == ["say://hello", image.uri]
        templates = (await client.list_resource_templates()).resource_templates
        assert templates[-1].uri_template == "say://{words}/wav" and len(templates) == 3
        assert (await client.read_resource(image.uri)).contents[0].mime_type == "image/png"
        text = (await client.read_resource("say://hello")).contents[0]
        assert text == types.TextResourceContents(uri="say://hello", mime_type="text/plain", text="hello")
        blob = (await client.read_resource("say://hi%20you/wav")).contents[0]
        assert isinstance(blob, types.BlobResourceContents)
        assert (blob.uri, blob.mime_type, blob.blob) == ("say://hi%20you/wav", "audio/wav", "aGkgeW91")
        with pytest.raises(MCPError, match="Nothing cannot be said"):
            await client.read_resource("say://nothing/wav")
        for uri in (
            "say://",
            "say://..%2F..%2Fetc/wav",
            "say://%2Fetc/wav",
            "say://a/b/wav",
            "other://hello",
        ):
            with pytest.raises(MCPError) as refused:
                await client.read_resource(uri)
            assert refused.value.error.code == types.INVALID_PARAMS


async def test_routes_of_a_plugin_are_guarded_and_refuse_as_ours_do(app: App) -> None:
    async with rest(app, tokens=TOKENS) as client:
        assert (await client.get("/say/hi")).status_code == 401
        assert (await client.get("/say/hi", headers=BOB)).json() == ["bob", "Said: hi"]
        foreign = await client.get("/say/hi", headers=BOB | {"Origin": "https://evil.example"})
        assert (foreign.status_code, foreign.json()["error"]["code"]) == (403, "forbidden")
        assert (await client.post("/say/hi", headers=BOB, json={})).status_code == 405
        unknown = await client.get("/say/unknown", headers=BOB)
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "image_not_found")


async def test_what_a_route_of_a_plugin_fails_of_is_for_the_host_only(app: App) -> None:
    transport = httpx.ASGITransport(http_app(app), raise_app_exceptions=False)
    async with app, httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        failed = await client.get("/say/trouble")
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "internal")
    assert "business" not in failed.text
