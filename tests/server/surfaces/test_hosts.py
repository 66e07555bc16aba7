"""What hosts get that show their model only a part of a result: text that says everything, and pictures."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, get_args

import pytest
from mcp import Client
from mcp_types import Implementation

from server.app import App
from server.hosts import DROP_PICTURES, Structured, is_structured
from tests.server.surfaces.conftest import SMALL, Connect, succeeded
from tests.server.surfaces.test_http import served
from tools.base import short_id

pytestmark = pytest.mark.anyio
PICTURELESS = {"describe_image", "list_images", "image_history"}


@asynccontextmanager
async def connected(app: App, connect: Connect, where: str, name: str) -> AsyncGenerator[Client]:
    """A client of that name, in process or over HTTP, with the newer or the older handshake."""
    transport, _, mode = where.partition(" ")
    more: Any = {"mode": mode, "client_info": Implementation(name=name, version="1")}
    if transport == "pipe":
        async with connect(app, **more) as client:
            yield client
    else:
        async with served(app) as url, Client(f"{url}/mcp", **more) as client:
            yield client


@pytest.mark.parametrize("where", ["pipe auto", "pipe legacy", "http auto", "http legacy"])
@pytest.mark.parametrize("name", ["claude-code", "codex-mcp-client (via mcp-remote 0.1.30)", "inspector"])
async def test_a_host_that_drops_pictures_gets_no_structured_content_beside_them(
    app: App, connect: Connect, where: str, name: str
) -> None:
    async with connected(app, connect, where, name) as client:
        tools = (await client.list_tools()).tools
        made = await client.call_tool("generate_image", {"prompt": "x", **SMALL})
        images = await client.call_tool("list_images", {})
        failed = await client.call_tool("generate_image", {"steps": 0})
    assert [block.type for block in made.content] == ["text", "image", "resource_link"]
    schemas = {tool.name for tool in tools if tool.output_schema is not None}
    drops = name != "inspector"
    assert (set(app.tools) - schemas != set()) is drops and schemas >= PICTURELESS
    assert (made.structured_content is None, failed.structured_content is None) == (drops, drops)
    assert failed.is_error and images.structured_content


def test_always_and_never_hold_for_every_client(app: App) -> None:
    assert set(get_args(Structured)) == {"auto", "always", "never"}
    for tool in app.tools.values():
        for client in (*DROP_PICTURES, "", "other"):
            assert is_structured(tool, client, "always") and not is_structured(tool, client, "never")
    assert all(report.startswith("https://github.com/") for report in DROP_PICTURES.values())


async def test_the_text_of_a_result_has_every_fact_that_a_model_needs(app: App, connect: Connect) -> None:
    async with connect(app) as client:

        async def text(tool: str, **arguments: Any) -> str:
            return (await client.call_tool(tool, arguments)).content[0].text  # type: ignore[union-attr]

        asked = {"prompt": "a", "num_images": 3, "seed": 5, "_meta": 1, **SMALL}
        made = await succeeded(client, "generate_image", **asked)
        said = await text("generate_image", **asked)
        ids = [short_id(image["id"]) for image in made["images"]]
        assert [len(own) for own in ids] == [12, 12, 12]
        assert "; ".join(f"id {own}, seed {5 + place}" for place, own in enumerate(ids)) in said
        assert "3 images, 32x32" in said and "from the store" in said and made["notes"][0] in said
        edit = await succeeded(client, "edit_image", image=ids[0], instruction="b", seed=1, **SMALL)
        edited = short_id(edit["images"][0]["id"])
        told = await text("describe_image", images=ids, question="c", temperature=1.0, seed=9, max_tokens=2)
        assert told.endswith("(seed 9)")
        shown = await text("image_history", image=edited)
        assert 'by edit_image {"instruction": "b"' in shown and f'"image": "{ids[0]}"' in shown
        assert '"seed": 1' in shown and "32x32" in shown
        listed = await text("list_images")
        assert all(own in listed for own in (*ids, edited)) and "32x32" in listed
        queued = await text("generate_image", prompt="d", background=True, **SMALL)
        job = queued.split()[2].rstrip(".")
        assert f"Job {job} is done. 1 image" in await text("get_job", job_id=job, wait_seconds=50)


async def test_an_agent_is_spared_what_only_programs_use(app: App, connect: Connect) -> None:
    details = {"uri", "mime_type", "bytes", "record", "timings", "parameters"}
    async with connect(app) as client:
        made = await succeeded(client, "generate_image", prompt="x", seed=3, **SMALL)
        history = await succeeded(client, "image_history", image=made["images"][0]["id"])
        listed = {tool.name: tool.output_schema or {} for tool in (await client.list_tools()).tools}
    assert not details & (made.keys() | made["images"][0].keys())
    assert not details & listed["generate_image"]["properties"].keys()
    assert {"uri", "mime_type", "bytes"} <= history["steps"][0]["image"].keys()
    assert history["steps"][0]["record"] and history["steps"][0]["replay"]["arguments"]["steps"] == 2
