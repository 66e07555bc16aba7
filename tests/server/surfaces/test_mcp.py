"""The tools, images and prompts as an MCP client sees them, in process, old protocol and new."""

import base64
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from anyio import to_thread
from mcp.shared.exceptions import MCPError
from PIL import Image

from omnigen2.checkpoints.card import Advice
from omnigen2.model import OmniGen2
from server import log
from server.app import App
from server.introduction import instructions
from server.prompts import PROMPTS
from tests.server.core.conftest import HeldEngine
from tests.server.surfaces.conftest import SMALL, Connect, succeeded

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_a_conversation_from_words_to_lineage_and_back(app: App, connect: Connect, mode: str) -> None:
    async with connect(app, mode) as client:
        assert {tool.name for tool in (await client.list_tools()).tools} == set(app.tools)
        made = await succeeded(client, "generate_image", prompt="a red circle", **SMALL)
        first = made["images"][0]["id"]
        edited = await succeeded(client, "edit_image", image=first, instruction="make it blue", **SMALL)
        both = [first, f"image://sha256/{edited['images'][0]['id'].removeprefix('sha256:')}"]
        composed = await succeeded(
            client, "compose_from_references", images=both, instruction="side by side", **SMALL
        )
        last = composed["images"][0]["id"]
        told = await succeeded(client, "describe_image", images=[last], question="What?", max_tokens=4)
        assert isinstance(told["text"], str)
        steps = (await succeeded(client, "image_history", image=last))["steps"]
        assert [step["image"]["id"] for step in steps] == [first, edited["images"][0]["id"], last]
        for step in steps:
            again = await succeeded(client, step["replay"]["tool"], **step["replay"]["arguments"])
            assert again["cached"]
            assert again["images"][0]["id"] == step["image"]["id"]


async def test_result_has_a_line_a_small_preview_and_a_link_and_no_full_picture(
    app: App, connect: Connect, tmp_path: Path
) -> None:
    noise = Image.effect_noise((1400, 900), 90).convert("RGB")
    noise.save(tmp_path / "big.png")
    async with connect(app) as client:
        result = await client.call_tool("import_image", {"image": str(tmp_path / "big.png")})
        assert not result.is_error, result.content
        line, preview, link = result.content
        assert isinstance(line, types.TextContent) and isinstance(preview, types.ImageContent)
        assert isinstance(link, types.ResourceLink)
        shown = base64.b64decode(preview.data)
        assert len(shown) <= 150_000
        assert max(Image.open(io.BytesIO(shown)).size) <= 512
        full = (await client.read_resource(link.uri)).contents[0]
        small = (await client.read_resource(f"{link.uri}/preview")).contents[0]
    assert isinstance(full, types.BlobResourceContents) and isinstance(small, types.BlobResourceContents)
    assert full.mime_type == "image/png" and len(base64.b64decode(full.blob)) == link.size
    assert Image.open(io.BytesIO(base64.b64decode(full.blob))).size == (1400, 900)
    assert base64.b64decode(small.blob) == shown
    assert full.blob not in result.model_dump_json()


async def test_progress_only_grows_and_tells_the_step(app: App, connect: Connect) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def listen(done: float, total: float | None, message: str | None) -> None:
        heard.append((done, total, message))

    async with connect(app) as client:
        arguments = {"prompt": "x", **SMALL}
        await client.call_tool("generate_image", arguments, progress_callback=listen)
    values = [done for done, _, _ in heard]
    assert values == sorted(set(values))
    assert any(message and message.startswith("denoise 2 of 2") for _, _, message in heard)


async def test_error_is_told_in_words_and_as_fields(app: App, connect: Connect) -> None:
    async with connect(app) as client:
        result = await client.call_tool("generate_image", {"prompt": "x", "steps": 0, "stepz": 3})
    assert result.is_error
    error = result.structured_content["error"]
    assert error["code"] == "invalid_argument"
    assert "steps" in error["message"] and "stepz" in error["message"] and error["advice"]
    (text,) = result.content
    assert isinstance(text, types.TextContent)
    assert all(part in text.text for part in error.values())


async def test_unknown_tool_is_a_protocol_error_that_names_those_there_are(
    app: App, connect: Connect
) -> None:
    async with connect(app) as client:
        with pytest.raises(MCPError, match="generate_image") as caught:
            await client.call_tool("paint", {})
    assert caught.value.code == types.INVALID_PARAMS


async def test_recent_images_are_resources_page_by_page(
    app: App, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.resources.RECENT", 2)
    ids = [app.store.put(Image.new("RGB", (8, 8), (n, 0, 0))).id for n in range(3)]
    async with connect(app) as client:
        first = await client.list_resources()
        second = await client.list_resources(cursor=first.next_cursor)
        with pytest.raises(MCPError):
            await client.list_resources(cursor="nonsense")
    assert [one.uri for one in (*first.resources, *second.resources)] == [id.uri for id in reversed(ids)]
    assert second.next_cursor is None


@pytest.mark.parametrize("uri", ["image://sha256/" + "0" * 64, "image://sha256/xyz", "file:///etc/passwd"])
async def test_what_is_no_stored_image_cannot_be_read(app: App, connect: Connect, uri: str) -> None:
    async with connect(app) as client:
        with pytest.raises(MCPError) as caught:
            await client.read_resource(uri)
    assert caught.value.code == types.INVALID_PARAMS


async def test_ids_are_completed_in_templates_and_prompts(app: App, connect: Connect) -> None:
    image = app.store.put(Image.new("RGB", (8, 8), "red")).id
    async with connect(app) as client:
        for template in (await client.list_resource_templates()).resource_templates:
            ref = types.ResourceTemplateReference(uri=template.uri_template)
            found = await client.complete(ref, {"name": "digest", "value": image.hex[:3]})
            assert found.completion.values == [image.hex]
        ref = types.PromptReference(name="before_after")
        assert (await client.complete(ref, {"name": "image", "value": ""})).completion.values == [str(image)]
        assert (await client.complete(ref, {"name": "change", "value": ""})).completion.values == []


async def test_prompts_are_filled_in_and_name_only_tools_and_parameters_there_are(
    app: App, connect: Connect
) -> None:
    words = set(app.tools) | {name for tool in app.tools.values() for name in tool.request.model_fields}
    async with connect(app) as client:
        prompts = (await client.list_prompts()).prompts
        assert [prompt.name for prompt in prompts] == list(PROMPTS)
        for prompt in prompts:
            given = {one.name: f"<{one.name}>" for one in prompt.arguments or [] if one.required}
            filled = await client.get_prompt(prompt.name, given)
            content = filled.messages[0].content
            assert isinstance(content, types.TextContent)
            assert all(value in content.text for value in given.values())
            assert "$" not in content.text
            named = {word.strip(".,;:()") for word in content.text.split() if "_" in word}
            assert named <= words
            with pytest.raises(MCPError, match="needs"):
                await client.get_prompt(prompt.name, {})


async def test_instructions_claim_what_the_card_says(
    make_app: Callable[..., App], engine: HeldEngine, omnigen: OmniGen2, connect: Connect
) -> None:
    app = make_app(lambda: engine)
    advice = Advice(prompts="Say please.", edit="Thank it.")
    card = app.card().model_copy(update={"vocabulary": ("zebra",), "advice": advice})
    app.__dict__["_default_card"] = card
    async with connect(app) as client:
        said = client.instructions
        assert said == instructions(card) and card.about in said and "Say please." in said
        assert "zebra" not in said, "a list of words is no help: a result says which are unknown"
        tools = {tool.name: tool.description or "" for tool in (await client.list_tools()).tools}
        assert tools["edit_image"].endswith(" Thank it.")
        assert tools["generate_image"] == app.tools["generate_image"].description
        prompt = await client.get_prompt("product_shot", {"product": "a cup"})
        assert "Say please." in prompt.messages[0].content.text  # type: ignore[union-attr]
        info = client.server_info
        assert info.icons and info.icons[0].src.startswith("data:image/svg+xml;base64,")


async def test_no_level_of_logging_shows_what_a_conversation_is_about(
    app: App, connect: Connect, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log.configure("debug")
    async with connect(app) as client:
        await client.call_tool("generate_image", {"prompt": "CANARY", **SMALL})
        await client.call_tool("generate_image", {"prompt": "CANARY", "steps": "CANARY", "CANARY": 1})
        await client.call_tool(
            "edit_image", {"image": "data:image/png;base64,CANARY", "instruction": "CANARY"}
        )
    shown = capsys.readouterr()
    assert "answered" in shown.err and "CANARY" not in shown.err + shown.out


async def test_tools_are_annotated_as_they_are_declared(app: App, connect: Connect) -> None:
    async with connect(app) as client:
        tools = (await client.list_tools()).tools
    for tool in tools:
        declared, hints = app.tools[tool.name], tool.annotations
        assert hints is not None and tool.title == declared.title
        assert bool(hints.read_only_hint) == declared.read_only
        if not declared.read_only:
            assert hints.destructive_hint == declared.destructive
            assert bool(hints.idempotent_hint) == declared.idempotent


@pytest.mark.parametrize("allowed", [False, True])
async def test_tools_reach_outside_as_far_as_the_host_lets_them_fetch(
    make_app: Callable[..., App], engine: HeldEngine, connect: Connect, allowed: bool
) -> None:
    async with connect(make_app(lambda: engine, allow_fetch=allowed)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    hints = {name for name, tool in tools.items() if tool.annotations and tool.annotations.open_world_hint}
    assert ({"view_image", "compose_from_references"} <= hints) is allowed
    assert "generate_image" not in hints and "get_job" not in hints


async def test_an_edit_by_id_uses_four_threads_and_shows_the_preview_that_the_store_would(
    app: App, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[Any] = []
    run_sync = to_thread.run_sync

    async def counted(work: Any, *given: Any, **more: Any) -> Any:
        used.append(work)
        return await run_sync(work, *given, **more)

    async with connect(app) as client:
        first = await succeeded(client, "generate_image", prompt="x", **SMALL)
        asked = {"image": first["images"][0]["id"], "instruction": "make it blue", "seed": 7, "steps": 2}
        monkeypatch.setattr(to_thread, "run_sync", counted)
        edited = await client.call_tool("edit_image", asked)
        assert not edited.is_error and len(used) == 4, used
        again = await client.call_tool("edit_image", asked)
    assert again.structured_content["cached"] and again.content[1:] == edited.content[1:]


async def test_background_job_shows_a_preview_and_ends_with_the_result(
    app: App, engine: HeldEngine, connect: Connect
) -> None:
    engine.hold_at = 1
    async with connect(app) as client:
        queued = await succeeded(client, "generate_image", prompt="x", background=True, **SMALL)
        await engine.is_held()
        assert (await succeeded(client, "get_job", job_id=queued["job_id"]))["status"] == "running"
        engine.released.set()
        arguments: dict[str, Any] = {"job_id": queued["job_id"], "wait_seconds": 50}
        done = await client.call_tool("get_job", arguments)
    assert done.structured_content["status"] == "done"
    assert any(isinstance(block, types.ImageContent) for block in done.content)
    assert json.dumps(done.structured_content["result"]["images"][0]["id"])
