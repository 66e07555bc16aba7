"""A long generation is cancelled midway, each way a client has: nothing is stored, the next call works."""

from collections.abc import Awaitable, Callable

import anyio
import httpx
import pytest
from mcp import Client

from server.app import App
from tests.server.core.conftest import HeldEngine
from tests.server.surfaces.conftest import SMALL, Connect, succeeded
from tests.server.surfaces.test_http import GENERATE, served

pytestmark = pytest.mark.anyio
LONG = {"prompt": "x", **SMALL, "steps": 200}
HELD = 20


async def leave(call: Callable[[], Awaitable[object]], engine: HeldEngine) -> None:
    """Make a call, and let its caller give up while the engine stands at a step."""
    async with anyio.create_task_group() as group:

        async def ask() -> None:
            await call()
            raise AssertionError("a cancelled call was answered")

        group.start_soon(ask)
        await engine.is_held()
        group.cancel_scope.cancel()


async def ended(engine: HeldEngine, app: App) -> None:
    """The engine took no further step, and nothing is stored."""
    await anyio.sleep(0.2)  # for the server to hear of it: over a socket nothing says when
    engine.released.set()
    while engine.busy():
        await anyio.sleep(0.01)
    assert max(engine.steps) <= HELD + 1
    assert app.store.usage().images == 0


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_cancelled_by_mcp(app: App, engine: HeldEngine, connect: Connect, mode: str) -> None:
    engine.hold_at = HELD
    async with connect(app, mode) as client:
        await leave(lambda: client.call_tool("generate_image", LONG), engine)
        await ended(engine, app)
        assert (await succeeded(client, "generate_image", prompt="x", **SMALL))["images"]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_cancelled_by_leaving_mcp_over_http(app: App, engine: HeldEngine, mode: str) -> None:
    engine.hold_at = HELD
    async with served(app) as url:

        async def ask() -> None:
            async with Client(f"{url}/mcp", mode=mode) as client:  # type: ignore[arg-type]
                await client.call_tool("generate_image", LONG)

        await leave(ask, engine)
        await ended(engine, app)
        async with Client(f"{url}/mcp") as client:
            assert (await succeeded(client, "generate_image", prompt="x", **SMALL))["images"]


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_cancelled_over_http_by_a_client_that_stays(app: App, engine: HeldEngine, mode: str) -> None:
    engine.hold_at = HELD
    async with served(app) as url, Client(f"{url}/mcp", mode=mode) as client:  # type: ignore[arg-type]
        await leave(lambda: client.call_tool("generate_image", LONG), engine)
        await ended(engine, app)
        assert (await succeeded(client, "generate_image", prompt="x", **SMALL))["images"]


async def test_another_session_cancels_nothing(app: App, engine: HeldEngine) -> None:
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled"}
    headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}
    engine.hold_at = HELD
    async with (
        served(app) as url,
        Client(f"{url}/mcp", mode="legacy") as client,
        httpx.AsyncClient() as other,
    ):
        results: list[object] = []

        async def ask() -> None:
            results.append(await client.call_tool("generate_image", LONG))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await engine.is_held()
            for request_id in range(10):
                body = cancel | {"params": {"requestId": request_id}}
                session = headers | {"Mcp-Session-Id": "0" * 32}
                assert (await other.post(f"{url}/mcp", json=body, headers=session)).status_code == 202
            engine.released.set()
        assert not results[0].is_error  # type: ignore[attr-defined]


async def test_sessions_are_named_and_have_no_stream(app: App) -> None:
    headers = {"Accept": "application/json, text/event-stream"}
    params = {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "a b/ü", "version": "1"},
    }
    begin = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params}
    async with served(app) as url, httpx.AsyncClient(base_url=url, headers=headers) as client:
        ids = [(await client.post("/mcp", json=begin)).headers["Mcp-Session-Id"] for _ in range(2)]
        assert ids[0] != ids[1] and all(own.endswith(".a-b-") and own.isascii() for own in ids)
        refused = await client.get("/mcp", headers={"Mcp-Session-Id": ids[0]})
        assert refused.status_code == 405 and refused.json()["error"]["code"] == "invalid_argument"
        assert (await client.delete("/mcp", headers={"Mcp-Session-Id": ids[0]})).status_code == 204


@pytest.mark.parametrize("accept", ["application/json", "text/event-stream"])
async def test_cancelled_by_leaving_rest(app: App, engine: HeldEngine, accept: str) -> None:
    engine.hold_at = HELD
    async with served(app) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        await leave(lambda: client.post(GENERATE, json=LONG, headers={"Accept": accept}), engine)
        await ended(engine, app)
        assert (await client.post(GENERATE, json={"prompt": "x", **SMALL})).json()["images"]


async def test_cancelled_by_the_tool(app: App, engine: HeldEngine, connect: Connect) -> None:
    engine.hold_at = HELD
    async with connect(app) as client:
        queued = await succeeded(client, "generate_image", background=True, **LONG)
        await engine.is_held()
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: client.call_tool("cancel_job", {"job_id": queued["job_id"]}))
            await ended(engine, app)
        status = await succeeded(client, "get_job", job_id=queued["job_id"])
        assert status["status"] == "cancelled" and status["error"]["code"] == "cancelled"
        assert (await succeeded(client, "generate_image", prompt="x", **SMALL))["images"]
