"""Calls: what is wrong with them is said in one way, whatever it is; torch stays out until it is needed."""

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from omnigen2.factory import BackendFactory, OneModel
from omnigen2.model import OmniGen2
from omnigen2.task import Cancelled, OutOfMemory
from server.app import App
from server.errors import without_folders
from server.hookspecs import AnyTool, hookimpl
from storage import StoreView, errors
from tests.server.core.conftest import ANN, CHECKPOINT, SMALL, HeldEngine, call
from tests.server.core.test_plugins import Greeted, Greeting
from tools.base import Context, Tool, ToolError

pytestmark = pytest.mark.anyio


def failing(error: Exception) -> ModuleType:
    """A plugin with a tool that raises `error`."""

    async def run(request: Greeting, context: Context) -> Greeted:
        raise error

    plugin = ModuleType("failing")

    @hookimpl
    def register_tools(register: Callable[[AnyTool], None]) -> None:
        register(Tool("fail", "fail", "Fail", "Fails.", Greeting, Greeted, run))

    vars(plugin)["register_tools"] = register_tools
    return plugin


async def failure(app: App, tool: str, **arguments: object) -> ToolError:
    async with app:
        with pytest.raises(ToolError) as error:
            await call(app, tool, **arguments)
    return error.value


async def test_wrong_arguments_are_named_all_at_once(app: App) -> None:
    error = await failure(app, "generate_image", steps="many", width=3, colour="red")
    assert error.code == "invalid_argument"
    assert all(
        word in str(error) for word in ("prompt:", "steps:", "'many'", "width:", "16", "colour: not known")
    )
    assert "pydantic" not in str(error)


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (ToolError("forbidden", "No."), "forbidden"),
        (errors.ImageNotFound("Gone.", "List them."), "image_not_found"),
        (errors.StoreFull("Full."), "busy"),
        (OutOfMemory("too large"), "out_of_memory"),
        (Cancelled("unloaded"), "cancelled"),
        (RuntimeError("password is 1234"), "internal"),
        (ValueError("password is 1234"), "internal"),
    ],
)
async def test_every_failure_has_a_code_and_what_was_not_foreseen_gives_nothing_away(
    make_app: Callable[..., App],
    engine: HeldEngine,
    caplog: pytest.LogCaptureFixture,
    raised: Exception,
    code: str,
) -> None:
    error = await failure(make_app(lambda: engine, [failing(raised)]), "fail", name="x")
    assert error.code == code
    if code == "internal":
        assert "1234" not in str(error)
        logged = next(record for record in caplog.records if record.levelname == "ERROR")
        assert logged.msg["request"] in str(error)  # type: ignore[index]
        assert logged.msg["exc_info"] is raised  # type: ignore[index]


async def test_a_failure_to_store_the_result_is_told_and_the_next_call_works(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise errors.StoreFull("The quota is used up.")

    async with app:
        with monkeypatch.context() as patch:
            patch.setattr(StoreView, "put_made", full)
            with pytest.raises(ToolError, match="quota") as error:
                await call(app, "generate_image", prompt="x", **SMALL)
        assert error.value.code == "busy"
        assert (await call(app, "generate_image", prompt="x", **SMALL)).images


async def test_a_store_that_fails_is_not_said_to_be_in_a_folder_of_the_host(
    make_app: Callable[..., App], engine: HeldEngine
) -> None:
    raised = errors.from_os_error(
        PermissionError(13, "Permission denied", "/home/ann/pictures/tmp/1"), "/home/ann/pictures"
    )
    error = await failure(make_app(lambda: engine, [failing(raised)]), "fail", name="x")
    assert error.code == "forbidden" and "Permission denied" in str(error)
    assert "/home/ann" not in str(error) and "/home/ann/pictures" in str(raised)


async def test_only_models_that_the_host_has_can_be_named(app: App, tmp_path: Path) -> None:
    error = await failure(app, "generate_image", prompt="x", model=str(tmp_path), **SMALL)
    assert error.code == "invalid_argument" and "tiny" in error.advice


async def test_a_model_that_is_not_here_is_not_ready(make_app: Callable[..., App]) -> None:
    app = make_app(lambda: None, model="Some/Where")  # type: ignore[arg-type]
    error = await failure(app, "generate_image", prompt="x", **SMALL)
    assert error.code == "not_ready" and "models pull Some/Where" in str(error)


async def test_an_error_of_the_caller_passes_through_the_app_as_it_is(app: App) -> None:
    with pytest.raises(KeyError):
        async with app:
            raise KeyError("mine")


def test_offering_tools_imports_no_torch_and_writes_nothing_to_stdout(tmp_path: Path) -> None:
    program = """
import anyio, json, sys
from server.app import build_app
from server.caller import Caller
from server.settings import Settings

async def main():
    app = build_app(Settings(store=sys.argv[1], model=sys.argv[2]))
    async with app:
        await app.call(app.tools["list_images"], {}, Caller("local", "test"))
        app.card()
        sys.stderr.write(json.dumps([name for name in ("torch", "httpx2") if name in sys.modules]))
        app.manager.acquire = lambda model=None: None

anyio.run(main)
"""
    checkpoint = Path(__file__).parents[2] / "data" / "golden" / "pipeline" / "checkpoint"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(checkpoint)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout == ""
    assert json.loads(done.stderr) == []


def test_callers_are_who_they_say() -> None:
    assert (ANN.principal, ANN.folders, ANN.timeout_s) == ("ann", (), None)


@pytest.mark.parametrize("more", [{}, {"background": True}, {"seed": 1}])
async def test_models_are_looked_for_beside_the_event_loop(
    make_app: Callable[..., App], engine: HeldEngine, omnigen: OmniGen2, more: dict[str, object]
) -> None:
    """Other requests must not wait for a disk with many models."""
    looking: list[threading.Thread] = []

    class Folder(OneModel):
        def models(self) -> Sequence[str]:
            looking.append(threading.current_thread())
            return super().models()

    plugin = ModuleType("folder")

    @hookimpl
    def register_backends(register: Callable[[str, BackendFactory], None]) -> None:
        register("folder", Folder("other", omnigen.card, lambda device, dtype: engine))

    vars(plugin)["register_backends"] = register_backends
    async with make_app(lambda: engine, [plugin]) as app:
        looking.clear()
        result = await call(app, "generate_image", prompt="x", model="other", **SMALL, **more)
        if result.job_id and not result.images:
            await call(app, "get_job", job_id=result.job_id, wait_seconds=50)
    assert looking and threading.current_thread() not in looking


async def test_a_model_in_a_folder_is_known_by_its_name_and_nobody_learns_where_it_is(
    make_app: Callable[..., App], engine: HeldEngine, tmp_path: Path
) -> None:
    shutil.copytree(CHECKPOINT, tmp_path / "house")
    asked = {"prompt": "x", "seed": 1, **SMALL}
    async with make_app(lambda: engine, model=str(tmp_path / "house"), device="cpu") as app:
        made = await call(app, "generate_image", **asked)
        assert made.model == "house" and str(tmp_path) not in made.model_dump_json()
        assert (await call(app, "generate_image", model="house", **asked)).cached
        fresh = await call(app, "generate_image", model="house", **asked | {"seed": 2})
        assert fresh.model == "house" and not fresh.cached
        with pytest.raises(ToolError, match=r"no 'x'.*There are: house, "):
            await call(app, "generate_image", model="x", **asked)
    weights = next((tmp_path / "house" / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    error = await failure(
        make_app(lambda: engine, model=str(tmp_path / "house")), "generate_image", prompt="x"
    )
    assert error.code == "not_ready" and str(tmp_path) not in str(error) and "house" in str(error)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[Errno 2] No such file: '/home/ann/m/x.bin'", "[Errno 2] No such file: 'x.bin'"),
        ("weights: /a/b.safetensors is damaged (/c)", "weights: b.safetensors is damaged (c)"),
        ("see https://example.com/a/b, 1/2 and 3 / 4, models pull a/b", None),
    ],
)
def test_of_a_path_only_the_last_part_is_told(text: str, told: str | None) -> None:
    assert without_folders(text) == (told or text)
