"""Weights are known by what they are: other ones under the same name are never answered with old pictures."""

import os
import shutil
import threading
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import pytest
from anyio import to_thread
from safetensors.torch import load_file, save_file

from omnigen2.checkpoints import hashes, locate
from server.app import App, build_app
from server.caller import Caller
from server.plugins import core_plugins
from server.settings import Settings
from storage import Model
from tests.server.core.conftest import CHECKPOINT, SMALL, call

pytestmark = pytest.mark.anyio
ASKED: dict[str, Any] = {"prompt": "a circle", "seed": 3, **SMALL}
NAME = "someone/theirs"


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMNIGEN2_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def put_model(folder: Path, scale: float) -> str:
    """Make `folder` hold the tiny checkpoint with its weights scaled; the digest."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(CHECKPOINT, folder, copy_function=shutil.copyfile)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * scale for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    return locate.weights_digest(folder)


def app_for(tmp_path: Path, model: str) -> App:
    settings = Settings(store=str(tmp_path / "store"), model=model, device="cpu")
    return build_app(settings, core_plugins())


@pytest.mark.parametrize("by_path", [True, False])
async def test_another_model_under_the_same_name_is_never_answered_from_the_store(
    tmp_path: Path, models: Path, by_path: bool
) -> None:
    name = str(models / NAME) if by_path else NAME
    first = put_model(models / NAME, 1.0)
    async with app_for(tmp_path, name) as app:
        made = await call(app, "generate_image", **ASKED)
        assert (await call(app, "generate_image", **ASKED)).cached
        second = put_model(models / NAME, 0.5)
        other = await call(app, "generate_image", **ASKED)
        assert not other.cached and other.images[0].id != made.images[0].id
        digests = [app.store.get_record(result.record).model.digest for result in (made, other)]
        assert digests == [first, second]
    third = put_model(models / NAME, 2.0)
    async with app_for(tmp_path, name) as app:
        again = await call(app, "generate_image", **ASKED)
        assert not again.cached and app.store.get_record(again.record).model.digest == third
        put_model(models / NAME, 1.0)
        back = await call(app, "generate_image", **ASKED)
        assert back.cached and back.images == made.images


async def test_a_record_names_the_weights_that_drew_not_those_that_were_there_when_it_was_asked(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model(models / NAME, 1.0)
    app = app_for(tmp_path, NAME)
    real, second = app.manager.identify, ""

    def identify(model: str | None = None) -> Any:
        nonlocal second
        card = real(model)
        second = second or put_model(models / NAME, 0.5)  # between asking and loading
        return card

    monkeypatch.setattr(app.manager, "identify", identify)
    async with app:
        made = await call(app, "generate_image", **ASKED)
        assert app.store.get_record(made.record).model.digest == second


async def test_what_was_made_when_records_had_no_digest_is_made_anew(tmp_path: Path, models: Path) -> None:
    put_model(models / NAME, 1.0)
    async with app_for(tmp_path, NAME) as app:
        made = await call(app, "generate_image", **ASKED)
        record = app.store.get_record(made.record)
    (tmp_path / "store").rename(tmp_path / "new")
    async with app_for(tmp_path, NAME) as app:
        app.store.put_made(
            (),
            tool=record.tool,
            parameters=record.parameters,
            model=Model(id=NAME),
            seed=record.seed,
            numerics=record.numerics,
        )
        assert not (await call(app, "generate_image", **ASKED)).cached


async def test_slow_hashing_delays_neither_tools_nor_others_nor_background_calls(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_model(models / NAME, 1.0)
    monkeypatch.setattr(hashes, "_known", {})
    monkeypatch.setattr(hashes, "LARGE_BYTES", 1000)
    hashing, go_on, real = threading.Event(), threading.Event(), hashes._hash

    def slow(file: BinaryIO) -> str:
        if os.fstat(file.fileno()).st_size >= hashes.LARGE_BYTES:
            hashing.set()
            assert go_on.wait(60)
        return real(file)

    monkeypatch.setattr(hashes, "_hash", slow)
    async with app_for(tmp_path, NAME) as app, anyio.create_task_group() as tasks:
        results: list[Any] = []

        async def ask(client: str) -> None:
            results.append(await call(app, "generate_image", Caller("ann", client), **ASKED))

        for number in range(44):  # more than there are threads to wait on
            tasks.start_soon(ask, f"client {number % 4}")
        assert await to_thread.run_sync(hashing.wait, 60)
        assert app.card().id == NAME
        assert (await call(app, "list_images")).images == []
        accepted = await call(app, "generate_image", background=True, **ASKED)
        assert accepted.status == "queued"
        handed = await call(app, "generate_image", Caller("ann", "ann", timeout_s=0.01), **ASKED)
        assert handed.status == "queued" and handed.job_id
        go_on.set()
    assert len({result.images[0].id for result in results}) == 1
