"""The Python SDK's client: in process, over stdio, over HTTP."""

import os
import signal
import subprocess
import time
from pathlib import Path

import anyio
import pytest
from mcp import Client, StdioServerParameters

from server.app import build_app
from server.caller import LOCAL, Caller
from server.mcp import Studio
from server.settings import Settings
from storage import ImageStore
from tests.clients.conftest import COMMAND, listening
from tests.clients.conversation import SMALL, check, talk

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_in_process(environment: dict[str, str]) -> None:
    app = build_app(Settings(store=environment["OMNIGEN2_STORE"], model=environment["OMNIGEN2_MODEL"]))
    async with app, Client(Studio(app, lambda _: Caller(LOCAL, "test")).server()) as client:
        check(await talk(client))


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_over_stdio(environment: dict[str, str], mode: str) -> None:
    server = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=environment)
    async with Client(server, mode=mode) as client:  # type: ignore[arg-type]
        check(await talk(client))


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_over_http(environment: dict[str, str], mode: str) -> None:
    with listening(environment) as url:
        async with Client(f"{url}/mcp", mode=mode) as client:  # type: ignore[arg-type]
            check(await talk(client))


async def test_call_made_at_once_waits_for_the_model(environment: dict[str, str]) -> None:
    server = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=environment)
    async with Client(server) as client:
        made = await client.call_tool("generate_image", {"prompt": "x", **SMALL})
        assert not made.is_error
    store = ImageStore(environment["OMNIGEN2_STORE"])
    (image,) = store.list().images
    record = store.origin(image.id).record
    assert record and record.timings and record.timings["load_ms"] > 0
    store.close()


async def test_cancelled_over_stdio_frees_the_server(environment: dict[str, str]) -> None:
    server = StdioServerParameters(command=COMMAND[0], args=COMMAND[1:], env=environment)
    long = {"prompt": "long", **SMALL, "steps": 1000}
    async with Client(server) as client:
        await client.call_tool("generate_image", {"prompt": "warm", **SMALL})
        async with anyio.create_task_group() as group:

            async def begun(done: float, total: float | None, message: str | None) -> None:
                if message and message.startswith("denoise"):
                    group.cancel_scope.cancel()

            await client.call_tool("generate_image", long, progress_callback=begun)
            raise AssertionError("it was answered")
        made = await client.call_tool("generate_image", {"prompt": "next", **SMALL})
        listed = await client.call_tool("list_images", {})
    assert not made.is_error
    assert [image["words"] for image in listed.structured_content["images"]] == ["next", "warm"]


@pytest.mark.parametrize("transport", ["stdio", "http"])
def test_signal_ends_the_server_in_good_order(
    environment: dict[str, str], transport: str, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [*COMMAND, "--transport", transport, "--port", "0"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    with server:
        assert server.stdin is not None and server.stdout is not None
        if transport == "stdio":
            server.stdin.write(b'{"jsonrpc":"2.0","id":1,"method":"ping"}\n')
            server.stdin.flush()
            assert server.stdout.readline()
        else:
            while "listening" not in (tmp_path / "log").read_text(encoding="utf-8"):
                assert server.poll() is None
                time.sleep(0.05)
        os.kill(server.pid, signal.SIGTERM)
        rest = server.stdout.read()
    assert server.returncode in (0, -signal.SIGTERM)
    assert rest == b""
    assert "Traceback" not in (tmp_path / "log").read_text(encoding="utf-8")
