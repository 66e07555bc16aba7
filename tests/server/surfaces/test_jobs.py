"""Jobs over HTTP: listed, read, followed from where a client stopped, ended; keys in a header."""

import json
from typing import Any

import anyio
import httpx
import pytest

from server.app import App
from tests.server.core.conftest import SMALL, HeldEngine
from tests.server.surfaces.test_http import ANN, BOB, GENERATE, TOKENS, rest

pytestmark = pytest.mark.anyio
QUEUED: dict[str, Any] = {"prompt": "x", "background": True, **SMALL}


def parsed(text: str) -> list[dict[str, Any]]:
    """The events in a stream."""
    events = []
    for block in text.strip().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append(fields | {"data": json.loads(fields["data"])})
    return events


async def queue(client: httpx.AsyncClient, **more: Any) -> str:
    answer = await client.post(GENERATE, json=QUEUED | more)
    assert answer.status_code == 200, answer.text
    return answer.json()["job_id"]


async def test_jobs_are_listed_newest_first_to_whom_they_belong(app: App) -> None:
    async with rest(app, tokens=TOKENS, headers=ANN) as client:
        jobs = [await queue(client) for _ in range(3)]
        listed = (await client.get("/v1/jobs")).json()["jobs"]
        assert [job["job_id"] for job in listed] == jobs[::-1]
        assert {(job["tool"], job["created"] > 1e9) for job in listed} == {("generate_image", True)}
        page = (await client.get("/v1/jobs", params={"limit": 1, "before": jobs[2]})).json()["jobs"]
        assert [job["job_id"] for job in page] == [jobs[1]]
        assert (await client.get("/v1/jobs", params={"limit": "many"})).status_code == 400
        assert (await client.get("/v1/jobs", headers=BOB)).json() == {"jobs": []}
        for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
            answer = await client.request(method, f"/v1/jobs/{jobs[0]}{path}", headers=BOB)
            assert answer.status_code == 404 and "there is no job" in answer.json()["error"]["message"]


async def test_a_job_is_read_with_a_preview_and_ended(app: App, engine: HeldEngine) -> None:
    engine.hold_at = 1
    async with rest(app) as client:
        job = await queue(client, steps=50)
        await engine.is_held()
        assert (await client.get(f"/v1/jobs/{job}")).json()["status"] == "running"
        engine.hold_at = 3
        engine.reached.clear()
        engine.released.set()
        await engine.is_held()
        read = (await client.get(f"/v1/jobs/{job}")).json()
        assert read["preview"].startswith("data:image/jpeg;base64,")
        assert (await client.delete(f"/v1/jobs/{job}")).json()["status"] == "cancelled"
        assert (await client.get(f"/v1/jobs/{job}")).json()["error"]["code"] == "cancelled"
        (event,) = parsed((await client.get(f"/v1/jobs/{job}/events")).text)
        assert (event["event"], event["data"]["error"]["code"]) == ("error", "cancelled")


async def test_events_have_steps_and_previews_and_end_with_the_result(app: App) -> None:
    async with rest(app) as client:
        job = await queue(client, steps=40, width=64, height=64)
        answer = await client.get(f"/v1/jobs/{job}/events")
        assert answer.headers["content-type"] == "text/event-stream"
        *progress, last = parsed(answer.text)
        assert {event["event"] for event in progress} == {"progress"}
        steps = [event["data"]["step"] for event in progress]
        assert steps == sorted(steps) and {"eta_seconds", "position"} <= progress[-1]["data"].keys()
        assert last["event"] == "result" and last["data"]["images"] and last["id"] == "end"
        gone = await client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "end"})
        assert gone.status_code == 204
        assert (await client.get(f"/v1/jobs/{job}")).json()["result"]["job_id"] == job


async def test_a_client_that_comes_back_is_told_only_what_is_new(app: App, engine: HeldEngine) -> None:
    engine.hold_at = 2
    async with rest(app) as client:
        job = await queue(client, steps=6)
        await engine.is_held()
        seen = ""
        async with client.stream("GET", f"/v1/jobs/{job}/events") as stream:
            async for part in stream.aiter_text():
                seen += part
                if '"running"' in seen:
                    break
        last = parsed(seen)[-1]
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                rest_of_it: list[dict[str, Any]] = []

                async def come_back() -> None:
                    headers = {"Last-Event-ID": last["id"]}
                    answer = await client.get(f"/v1/jobs/{job}/events", headers=headers)
                    rest_of_it.extend(parsed(answer.text))

                group.start_soon(come_back)
                await anyio.sleep(0.1)
                engine.released.set()
        ids = [int(event["id"]) for event in rest_of_it[:-1]]
        assert ids == sorted(set(ids)) and all(id > int(last["id"]) for id in ids)
        assert rest_of_it[-1]["event"] == "result"
        assert (await client.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": "999999"})).text


async def test_a_call_with_a_key_outlives_its_connection(app: App, engine: HeldEngine) -> None:
    engine.hold_at = 1
    headers, body = {"Idempotency-Key": "a-key"}, {"prompt": "x", **SMALL}
    async with rest(app) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(GENERATE, json=body, headers=headers, timeout=0.5)
        await engine.is_held()
        engine.released.set()
        made = await client.post(GENERATE, json=body, headers=headers)
        assert made.status_code == 200 and engine.submitted == 1
        other = await client.post(GENERATE, json=body | {"prompt": "y"}, headers=headers)
        assert (other.status_code, other.json()["error"]["code"]) == (422, "conflict")
        drawn = {"prompt": "x", "size": "32x32", "steps": 2}
        headers = {"Idempotency-Key": "another"}
        pictures = [
            (await client.post("/v1/images/generations", json=drawn, headers=headers)).json()["data"]
            for _ in range(2)
        ]
        assert pictures[0] == pictures[1] and engine.submitted == 2
