"""What a plugin brings, on every surface: tools with any content and progress of their own."""

import json
from collections.abc import Callable

import anyio
import mcp_types as types
import pytest
from anyio import to_thread

from server.app import App
from server.hookspecs import AnyTool, hookimpl
from tests.server.core.conftest import HeldEngine
from tests.server.surfaces.conftest import Connect
from tests.server.surfaces.test_http import rest
from tools.base import Audio, Block, Context, Embedded, Picture, Request, Result, Tool

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

    async def progress(step: float, steps: float | None, words: str | None) -> None:
        seen.append((step, steps, words))

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
