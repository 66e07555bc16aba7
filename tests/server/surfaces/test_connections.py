"""Half requests, cut ones and too many at once: nobody else notices, and the log stays quiet."""

import logging
from contextlib import AsyncExitStack

import anyio
import httpx
import pytest
import uvicorn
from anyio.abc import SocketStream
from starlette.types import Receive, Scope, Send

from server.app import App
from server.http import connections
from server.http.serve import uvicorn_config
from tests.server.surfaces.test_http import GENERATE, served

pytestmark = pytest.mark.anyio
HEAD = f"POST {GENERATE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
HALVES = {
    "nothing": b"",
    "half a head": HEAD[:30].encode(),
    "a head without its end": HEAD.encode(),
    "a head without a body": f"{HEAD}Content-Length: 100\r\n\r\n".encode(),
    "half a body": f'{HEAD}Content-Length: 100\r\n\r\n{{"prompt":'.encode(),
}


async def connect(url: str) -> SocketStream:
    host, _, port = url.removeprefix("http://").partition(":")
    return await anyio.connect_tcp(host, int(port))


async def healthy(url: str) -> bool:
    async with httpx.AsyncClient(trust_env=False) as client:
        return (await client.get(f"{url}/healthz")).status_code == 200


async def until_closed(stream: SocketStream) -> bytes:
    """All that comes before the server closes the connection."""
    received = b""
    try:
        while True:
            received += await stream.receive()
    except (anyio.EndOfStream, anyio.BrokenResourceError):
        return received


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEAD_S", 0.2)
    monkeypatch.setattr(connections, "BODY_S", 0.2)


@pytest.mark.parametrize("half", HALVES)
async def test_a_request_that_does_not_come_is_waited_for_only_so_long(
    app: App, impatient: None, half: str
) -> None:
    async with served(app) as url, await connect(url) as stream:
        if HALVES[half]:
            await stream.send(HALVES[half])
        with anyio.fail_after(20):
            answer = await until_closed(stream)
        assert (b"408" in answer.partition(b"\r\n")[0]) == ("body" in half)
        assert await healthy(url)


async def test_a_second_request_of_a_connection_is_waited_for_only_so_long(app: App, impatient: None) -> None:
    async with served(app) as url, await connect(url) as stream:
        await stream.send(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /heal")
        with anyio.fail_after(20):
            assert (await until_closed(stream)).count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize("path", [GENERATE, "/mcp"])
async def test_a_client_that_goes_away_during_its_body_leaves_no_traceback(
    app: App, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(app) as url:
        async with await connect(url) as stream:
            await stream.send(HALVES["half a body"].replace(GENERATE.encode(), path.encode()))
        assert await healthy(url)
    assert [entry for entry in caplog.records if entry.levelno >= logging.WARNING] == []


async def test_when_there_are_too_many_connections_those_that_wait_make_room(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS", 5)
    async with served(app) as url, AsyncExitStack() as stack:
        waiting = [await stack.enter_async_context(await connect(url)) for _ in range(12)]
        for _ in range(3):
            assert await healthy(url)
        with anyio.fail_after(20):
            assert await until_closed(waiting[0]) == b""


async def test_bodies_of_all_requests_together_are_bounded(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODIES", 1000)
    async with served(app) as url, await connect(url) as first:
        await first.send(f"{HEAD}Content-Length: 900\r\n\r\n".encode() + b" " * 800)
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            with anyio.fail_after(20):
                while (answer := await client.post(GENERATE, json={"wrong": "x" * 500})).status_code != 429:
                    pass
            assert answer.json()["error"]["code"] == "busy" and int(answer.headers["retry-after"]) > 0
            await first.aclose()
            with anyio.fail_after(20):
                while (answer := await client.post(GENERATE, json={"wrong": "x" * 500})).status_code != 400:
                    pass


@pytest.mark.parametrize("keys", [1000, 200_000])
@pytest.mark.parametrize("path", [GENERATE, "/mcp"])
async def test_however_many_arguments_are_unknown_the_answer_is_short(app: App, path: str, keys: int) -> None:
    body: dict[str, object] = {f"key {number}": number for number in range(keys)} | {"prompt": "x"}
    if path == "/mcp":
        params = {"name": "generate_image", "arguments": body}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    headers = {"Accept": "application/json, text/event-stream"}
    async with served(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        answer = await client.post(path, json=body, headers=headers)
    assert "invalid_argument" in answer.text and len(answer.text) < 2000


async def test_a_large_value_and_a_long_name_are_not_given_back(app: App) -> None:
    async with served(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        for body in ({"prompt": ["x" * 10**6]}, {"y" * 10**6: 1}, {"prompt": {"x": ["y" * 10**6] * 3}}):
            answer = await client.post(GENERATE, json=body)
            assert answer.status_code == 400 and len(answer.text) < 1000


async def test_half_bodies_of_one_address_leave_room_for_it_and_for_others(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS", 8)
    async with served(app) as url, AsyncExitStack() as stack:
        for _ in range(30):
            stream = await stack.enter_async_context(await connect(url))
            await stream.send(HALVES["half a body"])
        assert await healthy(url)
        other = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
        async with httpx.AsyncClient(transport=other) as client:
            assert (await client.get(f"{url}/healthz")).status_code == 200


async def test_a_client_that_does_not_read_its_answer_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "READ_S", 0.1)
    left = anyio.Event()

    async def large(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 50_000_000, "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    config = uvicorn_config(large)
    config.lifespan, config.port = "off", 0
    server = uvicorn.Server(config)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(server._serve)
            while not server.started:
                await anyio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            async with await connect(f"http://127.0.0.1:{port}") as stream:
                await stream.send(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                await left.wait()
            server.should_exit = True
