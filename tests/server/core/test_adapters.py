"""Adapters by name, through the app: who may use them, together with whom, and never under a wrong name."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from safetensors.torch import save_file

from omnigen2.model import OmniGen2
from server.app import App
from server.schema import input_schema
from tests.server.core.conftest import SMALL, HeldEngine, call
from tools.base import ToolError

pytestmark = pytest.mark.anyio
ASKED: dict[str, Any] = {"prompt": "a circle", "seed": 3, **SMALL}
LAYER = "layers.0.attn.to_q"


def put_adapter(path: Path, seed: int, **said: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn((4, 96), generator=generator), torch.randn((96, 4), generator=generator)
    save_file({f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}, path, said or None)


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    folder = tmp_path / "loras"
    folder.mkdir()
    for seed, name in enumerate(("pink", "style_v1.0", "style_v1_0", "sketch")):
        put_adapter(folder / f"{name}.safetensors", seed, title=f"Number {seed}")
    return folder


@pytest.fixture
def app(make_app: Callable[..., App], engine: HeldEngine, loras: Path) -> App:
    return make_app(lambda: engine, lora_dir=loras)


async def test_a_caller_who_may_read_no_file_names_adapters_with_weights(app: App, loras: Path) -> None:
    async with app:
        bare = await call(app, "generate_image", **ASKED)
        asked: list[Any] = [
            "pink", {"name": "pink", "weight": 0.5}, ["pink:0.5", {"name": "sketch"}], "pink.safetensors",
        ]  # fmt: skip
        one, half, two, same = [await call(app, "generate_image", **ASKED, lora=own) for own in asked]
        assert len({own.images[0].id for own in (bare, one, half, two)}) == 4
        assert same.images[0].id == one.images[0].id
        digests = {entry["name"]: entry["digest"] for entry in two.parameters["lora"]}
        assert two.parameters["lora"] == [
            {"name": "pink", "weight": 0.5, "digest": digests["pink"]},
            {"name": "sketch", "weight": 1.0, "digest": digests["sketch"]},
        ]
        record = app.store.get_record(two.record)
        assert record.parameters["lora"] == two.parameters["lora"], "the record names each"
        assert (await call(app, "generate_image", **two.parameters)).cached, "and is a request again"
        with pytest.raises(ToolError, match="may not be used"):
            await call(app, "generate_image", **ASKED, lora=str(loras / "pink.safetensors"))


async def test_a_misspelt_name_is_answered_with_those_there_are(app: App) -> None:
    async with app:
        for name, near in (("pnk", "pink"), ("style-v1.0", "style_v1.0")):
            words = rf"lora: there is no adapter .*did you mean {near}.*There are: pink"
            with pytest.raises(ToolError, match=words) as error:
                await call(app, "generate_image", **ASKED, lora=name)
            assert error.value.code == "invalid_argument"
        with pytest.raises(ToolError) as error:
            await call(app, "generate_image", **ASKED, lora="../loras/pink")
        assert error.value.code == "forbidden"


async def test_names_stand_in_the_schema_of_every_tool_that_takes_them(app: App) -> None:
    described = [input_schema(tool, app.card(), app.offered()) for tool in app.tools.values()]
    taking = [own["properties"]["lora"] for own in described if "lora" in own["properties"]]
    assert len(taking) == 3
    names = 'There are: pink ("Number 0"), sketch ("Number 3"), style_v1.0'
    assert all(names in own["description"] for own in taking)
    assert all("offered" not in own for own in taking)


async def test_twenty_requests_in_flight_with_four_adapters_and_none_equal_each_alone(
    make_app: Callable[..., App], engine: HeldEngine, omnigen: OmniGen2, loras: Path
) -> None:
    names: list[Any] = [None, "pink", "style_v1.0", "style_v1_0", "sketch"]
    asked = [{**ASKED, "seed": seed, "lora": name} for seed in range(4) for name in names]
    made: dict[int, str] = {}

    async def make(app: App, number: int) -> None:
        made[number] = (await call(app, "generate_image", **asked[number])).images[0].id

    async with make_app(lambda: engine, lora_dir=loras, store="memory://") as app:
        async with anyio.create_task_group() as group:
            for number in range(len(asked)):
                group.start_soon(make, app, number)
    together, made = made, {}
    assert len(set(together.values())) == 20, "each adapter changes each picture"
    async with make_app(lambda: HeldEngine(omnigen), lora_dir=loras, store="memory://") as app:
        for number in range(len(asked)):
            await make(app, number)
    assert made == together


async def test_an_adapter_that_is_rewritten_is_used_anew_and_its_old_picture_is_not_given(
    app: App, loras: Path
) -> None:
    file = loras / "pink.safetensors"
    async with app:
        first = await call(app, "generate_image", **ASKED, lora="pink")
        assert (await call(app, "generate_image", **ASKED, lora="pink")).cached
        was = file.stat()
        put_adapter(file, 9, title="Number 0")
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
        anew = await call(app, "generate_image", **ASKED, lora="pink")
        assert not anew.cached and anew.images[0].id != first.images[0].id
        with pytest.raises(ToolError, match="is not the file with the SHA-256"):
            await call(app, "generate_image", **first.parameters)
        put_adapter(file, 0, title="Number 0")
        back = await call(app, "generate_image", **ASKED, lora="pink")
        assert back.cached and back.images == first.images


async def test_a_request_with_an_adapter_does_not_wait_for_others_to_end(
    app: App, engine: HeldEngine
) -> None:
    engine.hold_at = 1
    async with app, anyio.create_task_group() as group:
        group.start_soon(lambda: call(app, "generate_image", **ASKED | {"steps": 500}, lora="pink"))
        await engine.is_held()
        engine.released.set()
        await call(app, "generate_image", **ASKED, lora="sketch")
        assert engine.busy(), "the first one is still being made"
        group.cancel_scope.cancel()
