"""What an operator sees: /readyz, /metrics, request ids in answers and logs, and a server that drains."""

import json
import logging
from collections.abc import Callable
from typing import Any

import anyio
import httpx
import pytest
from anyio import to_thread
from mcp import Client
from prometheus_client.parser import text_string_to_metric_families

from server import dispatcher, log
from server.app import App
from server.http import health
from tests.server.core.conftest import HeldEngine
from tests.server.surfaces.conftest import SMALL
from tests.server.surfaces.test_http import ANN, GENERATE, TOKENS, rest, served
from tests.server.surfaces.test_stopping import serving

pytestmark = pytest.mark.anyio
READY = {"ready": True, "server": "ok", "model": "ok", "store": "ok", "queue": "ok"}


async def ready(client: httpx.AsyncClient) -> dict[str, Any]:
    answer = await client.get("/readyz")
    assert answer.status_code == (200 if answer.json()["ready"] else 503)
    return answer.json()


async def numbers(client: httpx.AsyncClient, **headers: str) -> dict[tuple[str, ...], float]:
    """The samples of /metrics, by name and values of labels in the order of their names."""
    text = (await client.get("/metrics", headers=headers)).text
    families = text_string_to_metric_families(text)
    return {(one.name, *one.labels.values()): one.value for family in families for one in family.samples}


async def test_ready_says_what_is_missing(
    make_app: Callable[..., App], engine: HeldEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PROBE_S", 0)
    engine.hold_at = 1
    engine._pictures._room = 1
    app = make_app(lambda: engine, queue_size=1)
    async with rest(app, tokens=TOKENS) as client:
        with anyio.fail_after(30):
            while (state := await ready(client)) != READY:
                assert state == READY | {"ready": False, "model": "not loaded"}
        body = {"prompt": "x", "background": True, **SMALL}
        await client.post(GENERATE, json=body, headers=ANN)
        await engine.is_held()
        await client.post(GENERATE, json=body, headers=ANN)
        assert await ready(client) == READY | {"ready": False, "queue": "full"}
        engine.released.set()

        def no_room(**_: object) -> None:
            raise OSError(28, "No space left on device", "/secret/place")

        monkeypatch.setattr(health.tempfile, "TemporaryFile", no_room)
        with anyio.fail_after(30):
            while (state := await ready(client))["queue"] != "ok":
                pass
        assert state == READY | {"ready": False, "store": "not writable"}


async def test_a_model_that_cannot_be_loaded_is_never_ready(make_app: Callable[..., App]) -> None:
    def fail() -> Any:
        raise ValueError("a broken checkpoint")

    app = make_app(fail)
    async with rest(app) as client:
        await client.post(GENERATE, json={"prompt": "x", **SMALL})
        assert (await ready(client))["model"] == "not loaded"


async def test_metrics_add_up_with_what_clients_counted(app: App) -> None:
    async with rest(app, tokens=TOKENS) as client:
        body = {"prompt": "CANARY", "seed": 1, **SMALL}
        for sent in (body, body, body | {"steps": 0}):
            await client.post(GENERATE, json=sent, headers=ANN)
        await client.post(GENERATE, json=body)
        await client.get("/nothing/CANARY", headers=ANN)
        assert (await client.get("/metrics")).status_code == 401
        seen = await numbers(client, **ANN)
        text = (await client.get("/metrics", headers=ANN)).text
    assert seen["omnigen2_calls_total", "generate_image", "ok"] == 2
    assert seen["omnigen2_calls_total", "generate_image", "invalid_argument"] == 1
    assert seen["omnigen2_jobs_total", "done", "generate_image"] == 1
    assert seen["omnigen2_equal_results_total",] == 1
    assert seen["omnigen2_job_steps_total",] == SMALL["steps"]
    phases = {key[1] for key in seen if key[0] == "omnigen2_job_seconds_total"}
    assert phases == {"queued", "load", "encode", "denoise", "decode", "store"}
    assert seen["omnigen2_http_answers_total", GENERATE, "200"] == 2
    assert seen["omnigen2_http_answers_total", GENERATE, "400"] == 1
    assert seen["omnigen2_http_answers_total", "", "401"] == 2
    assert seen["omnigen2_http_answers_total", "", "404"] == 1
    assert seen["omnigen2_store_images",] == 1 and seen["omnigen2_store_bytes",] > 100
    assert seen["omnigen2_device_bytes",] > 1000
    assert seen["omnigen2_jobs_queued",] == seen["omnigen2_jobs_running",] == 0
    assert "CANARY" not in text and "sha256" not in text and "ann" not in text


async def test_a_request_has_one_id_in_answers_and_logs(
    app: App, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log.configure("debug")
    wanted = {"X-Request-Id": "trace-1.a"}
    async with served(app) as url, httpx.AsyncClient(base_url=url) as client:
        answer = await client.post("/v1/tools/list_images", json={}, headers=wanted)
        assert answer.headers["x-request-id"] == "trace-1.a"
        refused = await client.get("/nothing", headers={"X-Request-Id": 'x" {bad}'})
        made = refused.headers["x-request-id"]
        assert len(made) == 16 and made != (await client.get("/nothing")).headers["x-request-id"]
        async with Client(f"{url}/mcp") as agent:
            await agent.list_tools()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    of_one = [line["event"] for line in lines if line.get("request") == "trace-1.a"]
    assert of_one == ["answered", "http request"]
    by_id = {line.get("request"): line for line in lines if line["event"] == "http request"}
    assert (by_id[made]["route"], by_id[made]["status"]) == ("", "404")
    (listed,) = [line for line in lines if line.get("tool") == "tools/list"]
    assert by_id[listed["request"]]["route"] == "/mcp"
    assert not any("bad" in json.dumps(line) for line in lines)


async def test_a_server_that_stops_says_so_at_once_and_finishes_what_runs(
    app: App, engine: HeldEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "GRACE_S", 20)
    engine.hold_at = 1
    body = {"prompt": "x", **SMALL}
    answers: list[httpx.Response] = []

    async def ask(url: str) -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            answers.append(await client.post(f"{url}{GENERATE}", json=body))

    async with anyio.create_task_group() as clients:
        async with serving(app) as (url, server), httpx.AsyncClient(base_url=url) as client:
            clients.start_soon(ask, url)
            await engine.is_held()
            server.should_exit = True
            with anyio.fail_after(10):
                while (await ready(client))["server"] == "ok":
                    await anyio.sleep(0.01)
            refused = await client.post(GENERATE, json=body | {"seed": 7})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
            assert refused.headers["retry-after"] == "60"
            await to_thread.run_sync(engine.released.set)
    assert answers[0].status_code == 200
