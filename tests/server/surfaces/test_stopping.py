"""The server is asked to stop: every caller has an answer, and the process ends in time."""

import json
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
from anyio import to_thread

from server import dispatcher
from server.app import App
from server.http import health, serve
from server.http.app import http_app
from server.http.serve import Server, uvicorn_config
from tests.server.core.conftest import HeldEngine
from tests.server.surfaces.conftest import SMALL
from tests.server.surfaces.test_connections import connect, until_closed
from tests.server.surfaces.test_http import GENERATE, TOKENS, rest

pytestmark = pytest.mark.anyio
STREAM = {"Accept": "text/event-stream"}


@asynccontextmanager
async def serving(app: App) -> AsyncGenerator[tuple[str, Server]]:
    """Our own server of an app, on a free port; whoever asks it to stop may wait for the end of this."""
    config = uvicorn_config(http_app(app))
    config.port = 0
    server = Server(config, app)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(server._serve)
            while not server.started:
                await anyio.sleep(0.01)
            yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", server
            server.should_exit = True


async def test_waiting_callers_have_the_documented_refusal_when_the_server_stops(
    app: App, engine: HeldEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "GRACE_S", 0.5)
    monkeypatch.setattr(serve, "SHUTDOWN_S", 3)
    engine.hold_at = 1
    engine._pictures._room = 1
    answers: dict[str, httpx.Response] = {}
    halves: list[bytes] = []

    async def ask(name: str, url: str, tool: str = "generate_image", **more: Any) -> None:
        async with httpx.AsyncClient(timeout=60, trust_env=False, headers=more.pop("headers", {})) as client:
            body = more or {"prompt": name, **SMALL}
            answers[name] = await client.post(f"{url}/v1/tools/{tool}", json=body)

    async def upload_half(url: str) -> None:
        async with await connect(url) as stream:
            head = f"POST {GENERATE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            await stream.send(f"{head}Content-Length: 100\r\n\r\n{{".encode())
            halves.append(await until_closed(stream))

    async with anyio.create_task_group() as clients:
        async with serving(app) as (url, server):
            clients.start_soon(ask, "running", url)
            await engine.is_held()
            clients.start_soon(ask, "queued", url)
            clients.start_soon(lambda: ask("stream", url, headers=STREAM))
            clients.start_soon(upload_half, url)
            with anyio.fail_after(30):
                while len(app.dispatcher._jobs) < 3 or len(server.server_state.tasks) < 4:
                    await anyio.sleep(0.01)
            [running] = [job for job in app.dispatcher._jobs.values() if job.state == "running"]
            wait = {"job_id": running.id, "wait_seconds": 50}
            clients.start_soon(lambda: ask("poll", url, "get_job", **wait))
            with anyio.fail_after(30):
                while len(server.server_state.tasks) < 5:
                    await anyio.sleep(0.01)
            server.should_exit = True
            with anyio.fail_after(30):
                while len(answers) < 4 or not halves:
                    await anyio.sleep(0.01)
            engine.released.set()
    for name in ("running", "queued"):
        assert answers[name].status_code == 409, name
        assert answers[name].json()["error"]["code"] == "cancelled"
    last = answers["stream"].text.strip().split("\n\n")[-1]
    assert last.startswith("event: error\n")
    assert json.loads(last.partition("data: ")[2])["error"]["code"] == "cancelled"
    assert answers["poll"].json()["status"] == "interrupted"
    assert halves[0].startswith(b"HTTP/1.1 503 ") and b'"code":"not_ready"' in halves[0]


async def test_a_call_that_is_no_job_is_refused_when_the_server_stops(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = anyio.Event()

    async def resolve(*_: object) -> None:
        begun.set()
        await anyio.sleep_forever()

    monkeypatch.setattr(app.references, "resolve", resolve)
    answers: list[httpx.Response] = []

    async def ask(url: str) -> None:
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            answers.append(await client.post(f"{url}/v1/tools/import_image", json={"image": "x"}))

    async with anyio.create_task_group() as clients, serving(app) as (url, server):
        clients.start_soon(ask, url)
        await begun.wait()
        server.should_exit = True
    assert answers[0].status_code == 503 and answers[0].json()["error"]["code"] == "not_ready"


HANGING = """
import signal, sys, threading, time
from server import ending
ending.LATEST_S = float(sys.argv[1])
signal.signal(signal.SIGTERM, lambda number, _: ending.leave_soon(128 + number))
threading.Thread(target=time.sleep, args=(600,)).start()
print("ready", flush=True)
while True:
    time.sleep(1)
"""


@pytest.mark.parametrize(("latest", "signals"), [(0.2, 1), (600, 2)])
async def test_a_process_that_hangs_ends_in_time_and_at_once_when_asked_twice(
    latest: float, signals: int
) -> None:
    command = [sys.executable, "-c", HANGING, str(latest)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.terminate()
        if signals == 2:
            while True:  # the handler of the first may not have run yet: then they count as one
                try:
                    process.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    process.terminate()
        assert process.wait(60) == 128 + 15


async def test_health_does_not_wait_for_threads_that_work_keeps_busy(app: App) -> None:
    free = threading.Event()
    busy = anyio.to_thread.current_default_thread_limiter()
    async with rest(app) as client, anyio.create_task_group() as group:
        for _ in range(int(busy.total_tokens)):
            group.start_soon(to_thread.run_sync, free.wait)
        while busy.available_tokens:
            await anyio.sleep(0.01)
        try:
            with anyio.fail_after(20):
                for url in ("/healthz", "/openapi.json"):
                    assert (await client.get(url)).status_code == 200
        finally:
            free.set()


async def test_jobs_go_on_while_requests_keep_all_threads_busy(app: App) -> None:
    free = threading.Event()
    busy = anyio.to_thread.current_default_thread_limiter()
    async with rest(app) as client, anyio.create_task_group() as group:
        body = {"prompt": "x", "background": True, **SMALL}
        job_id = (await client.post(GENERATE, json=body)).json()["job_id"]
        for _ in range(int(busy.total_tokens)):
            group.start_soon(to_thread.run_sync, free.wait)
        try:
            job = app.dispatcher._jobs[job_id]
            with anyio.fail_after(30):
                await job.ended.wait()
            assert job.state == "done"
        finally:
            free.set()


@pytest.mark.parametrize("tokens", [None, TOKENS])
async def test_what_a_client_calls_itself_gives_it_no_further_place_in_the_queue(
    make_app: Callable[..., App], engine: HeldEngine, tokens: Any
) -> None:
    app = make_app(lambda: engine, queue_size=4)
    engine.hold_at = 1
    engine._pictures._room = 1
    ann = {"Authorization": "Bearer a-token-of-some-length"}
    async with rest(app, tokens=tokens, headers=ann) as client:
        body = {"prompt": "x", "background": True, **SMALL}
        assert (await client.post(GENERATE, json=body)).status_code == 200
        await engine.is_held()
        codes = [
            (await client.post(GENERATE, json=body, headers={"User-Agent": str(number)})).status_code
            for number in range(4)
        ]
        if tokens is not None:
            bob = {"Authorization": "Bearer another-long-token"}
            assert (await client.post(GENERATE, json=body, headers=bob)).status_code == 200
        engine.released.set()
    assert codes == [200, 200, 429, 429]


async def test_health_says_that_a_model_hangs(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rest(app) as client:
        monkeypatch.setattr(app.manager, "stalled_s", lambda: health.STALLED_S + 1)
        answer = await client.get("/healthz")
        assert answer.status_code == 503 and answer.json()["status"] == "stalled"

        def broken() -> float:
            raise RuntimeError("a plugin")

        monkeypatch.setattr(app.manager, "stalled_s", broken)
        assert (await client.get("/healthz")).json()["status"] == "ok"
