"""Jobs on the real engine: progress, cancellation, company, background, overload, loading, shutdown."""

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import anyio
import pytest
from anyio import to_thread
from PIL import Image

from omnigen2.model import OmniGen2
from omnigen2.task import ImageTask
from server.app import App
from server.jobs import Job
from server.lanes import Lane
from storage import errors
from tests.server.core.conftest import ANN, BOB, SMALL, HeldEngine, call, settled
from tools.base import JobStatus, ToolError

pytestmark = pytest.mark.anyio
LONG: dict[str, Any] = SMALL | {"steps": 200}


def stored(app: App) -> int:
    return app.store.usage().images


async def test_progress_tells_every_stage_and_the_time_left(app: App) -> None:
    seen: list[JobStatus] = []

    async def listen(status: JobStatus) -> None:
        seen.append(status)

    async with app:
        result = await call(app, "generate_image", replace(ANN, on_progress=listen), prompt="x", **SMALL)
    assert [status.job_id for status in seen] == [result.job_id] * len(seen)
    assert {"denoise", "decode"} <= {status.stage for status in seen}
    assert seen[-1].steps == 2
    assert seen[-1].eta_seconds == 0


async def test_the_loop_sleeps_while_a_job_runs_that_nobody_listens_to(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken: list[Lane] = []
    listen = app.dispatcher._on_progress

    def counted(lane: Lane) -> None:
        woken.append(lane)
        listen(lane)

    async def listener(status: JobStatus) -> None:
        pass

    monkeypatch.setattr(app.dispatcher, "_on_progress", counted)
    async with app:
        await call(app, "generate_image", prompt="x", **SMALL)
        assert not woken
        [lane] = app.dispatcher._lanes.values()
        assert lane.pace is not None and not lane.pending_events  # all the same, it was measured
        await call(app, "generate_image", replace(ANN, on_progress=listener), prompt="y", **SMALL)
        assert woken


async def test_a_job_that_cannot_be_written_down_is_refused_and_stores_nothing(
    app: App, engine: HeldEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise errors.StoreFull("The disk is full.")

    async with app:
        with monkeypatch.context() as patch:
            patch.setattr(app.dispatcher.journal, "begin", full)
            with pytest.raises(ToolError, match="disk is full"):
                await call(app, "generate_image", prompt="x", **LONG)
        await settled()
        assert len((await call(app, "generate_image", prompt="y", **SMALL)).images) == 1
    assert stored(app) == 1 and len(engine.steps) < 100


@pytest.mark.parametrize("way", ["the client cancels", "the client is gone", "cancel_job"])
async def test_a_job_cancelled_in_the_middle_takes_no_further_step_and_stores_nothing(
    app: App, engine: HeldEngine, way: str
) -> None:
    engine.hold_at = 100
    async with app:
        if way == "cancel_job":
            answer = await call(app, "generate_image", prompt="x", background=True, **LONG)
            await engine.is_held()
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: call(app, "cancel_job", job_id=answer.job_id))
                await settled()
                engine.released.set()
            assert (await call(app, "get_job", job_id=answer.job_id)).status == "cancelled"
        else:
            async with anyio.create_task_group() as connection:
                scope = anyio.CancelScope()

                async def ask() -> None:
                    with scope:
                        await call(app, "generate_image", prompt="x", **LONG)

                connection.start_soon(ask)
                await engine.is_held()
                (scope if way == "the client cancels" else connection.cancel_scope).cancel()
                with anyio.CancelScope(shield=True):
                    await settled()
                engine.released.set()
        result = await call(app, "generate_image", prompt="y", **SMALL)
        assert len(result.images) == 1
    assert engine.steps == [*range(101), 0, 1, 2, 0]
    assert stored(app) == 1
    assert not engine.busy()


async def test_a_job_cancelled_while_it_waits_never_begins(app: App, engine: HeldEngine) -> None:
    engine.hold_at = 1
    engine._pictures._room = 1  # one at a time
    async with app:
        first = await call(app, "generate_image", prompt="x", background=True, **SMALL)
        await engine.is_held()
        second = await call(app, "generate_image", prompt="y", background=True, **SMALL)
        assert (await call(app, "get_job", job_id=second.job_id)).status == "queued"
        assert (await call(app, "cancel_job", job_id=second.job_id)).status == "cancelled"
        engine.released.set()
        assert (await call(app, "get_job", job_id=first.job_id, wait_seconds=30)).status == "done"
    assert len(engine.started) == 1


async def test_a_background_job_outlives_its_caller_and_shows_itself(app: App, engine: HeldEngine) -> None:
    engine.hold_at = 3
    async with app:
        with anyio.CancelScope() as connection:
            answer = await call(app, "generate_image", prompt="x", background=True, **LONG)
            connection.cancel()
        await engine.is_held()
        assert 1 <= (await call(app, "get_job", job_id=answer.job_id)).step <= 3  # not every step is told
        engine.hold_at = 5
        engine.reached.clear()
        engine.released.set()
        await engine.is_held()
        status = await app_status(app, answer.job_id)
        assert status.preview is not None and status.preview.data
        assert status.status == "running"
        assert (await call(app, "get_job", job_id=answer.job_id, wait_seconds=30)).result.images


async def app_status(app: App, job_id: str) -> JobStatus:
    from server.context import CallContext

    return await CallContext(app, ANN).job(job_id)


async def test_a_job_is_its_principals_alone(app: App, engine: HeldEngine) -> None:
    async with app:
        answer = await call(app, "generate_image", prompt="x", background=True, **SMALL)
        for tool in ("get_job", "cancel_job"):
            with pytest.raises(ToolError) as error:
                await call(app, tool, BOB, job_id=answer.job_id)
            assert error.value.code == "invalid_argument"
            with pytest.raises(ToolError) as unknown:
                await call(app, tool, BOB, job_id="job_none")
            assert str(error.value).replace(answer.job_id, "job_none") == str(unknown.value)
        assert (await call(app, "get_job", job_id=answer.job_id, wait_seconds=30)).status == "done"


async def test_clients_take_turns_and_the_short_overtakes(app: App, engine: HeldEngine) -> None:
    engine.hold_at = 1
    engine._pictures._room = 1  # one at a time
    async with app:
        first = await call(app, "generate_image", prompt="first", background=True, **SMALL)
        await engine.is_held()
        waiting = [
            await call(app, "generate_image", caller, prompt=prompt, background=True, **SMALL | {"steps": n})
            for caller, prompt, n in [
                (ANN, "ann long", 6), (ANN, "ann 1", 2), (ANN, "ann 2", 2),
                (BOB, "bob 1", 2), (BOB, "bob 2", 2),
            ]
        ]  # fmt: skip
        places = [(await call(app, "get_job", job_id=job.job_id)).position for job in waiting[:3]]
        assert places == [4, 0, 2]
        engine.released.set()
        for job, caller in zip([first, *waiting], [ANN] * 4 + [BOB] * 2, strict=True):
            assert (await call(app, "get_job", caller, job_id=job.job_id, wait_seconds=30)).status == "done"
    prompts = [task.prompt for task in engine.started if isinstance(task, ImageTask)]
    assert prompts == ["first", "ann 1", "bob 1", "ann 2", "bob 2", "ann long"]


async def test_more_than_can_wait_is_refused_with_when_to_come_back(
    make_app: Callable[..., App], engine: HeldEngine
) -> None:
    app = make_app(lambda: engine, queue_size=4)
    engine.hold_at = 1
    engine._pictures._room = 1
    async with app:
        running = await call(app, "generate_image", prompt="x", background=True, **SMALL)
        await engine.is_held()
        jobs = [await call(app, "generate_image", prompt="x", background=True, **SMALL) for _ in range(2)]
        with pytest.raises(ToolError) as own:
            await call(app, "generate_image", prompt="x", **SMALL)
        assert own.value.code == "busy" and "2 requests of yours" in str(own.value)
        assert f"about {own.value.retry_after_s} seconds" in own.value.advice
        for client in ("bob", "third"):
            other = replace(BOB, client=client)
            await call(app, "generate_image", other, prompt="x", background=True, **SMALL)
        with pytest.raises(ToolError) as all_of_it:
            await call(app, "generate_image", replace(ANN, client="fourth"), prompt="x", **SMALL)
        assert "4 requests are waiting" in str(all_of_it.value) and "seconds" in str(all_of_it.value)
        engine.released.set()
        for job in [running, *jobs]:
            assert (await call(app, "get_job", job_id=job.job_id, wait_seconds=30)).status == "done"


class SlowLoad:
    """A model that is loaded when a test says so."""

    def __init__(self, omnigen: OmniGen2, error: Exception | None = None) -> None:
        self.omnigen, self.error = omnigen, error
        self.allowed = threading.Event()

    def __call__(self) -> HeldEngine:
        assert self.allowed.wait(60)
        if self.error is not None:
            raise self.error
        return HeldEngine(self.omnigen)


async def test_who_cannot_wait_for_the_model_gets_a_job_and_who_can_gets_an_answer(
    make_app: Callable[..., App], omnigen: OmniGen2
) -> None:
    load = SlowLoad(omnigen)
    app = make_app(load)
    async with app:
        assert app.card().id == "tiny"
        answer = await call(app, "generate_image", prompt="x", background=True, **SMALL)
        assert (await call(app, "get_job", job_id=answer.job_id)).stage == "load"
        handed = await call(app, "generate_image", replace(ANN, timeout_s=0.01), prompt="y", **SMALL)
        assert handed.status == "queued" and "in the background" in handed.summary()
        async with anyio.create_task_group() as group:
            group.start_soon(
                lambda: call(app, "generate_image", replace(BOB, timeout_s=50), prompt="z", **SMALL)
            )
            await settled()
            load.allowed.set()
        status = await call(app, "get_job", job_id=answer.job_id, wait_seconds=30)
        assert status.result.timings.load_ms > 0
        status = await call(app, "get_job", job_id=handed.job_id, wait_seconds=30)
        assert status.status == "done" and status.result.images
    assert stored(app) == 3


async def test_a_caller_without_progress_is_given_a_job_before_its_timeout(
    make_app: Callable[..., App], engine: HeldEngine
) -> None:
    engine.hold_at = 5
    async with make_app(lambda: engine) as app:
        handed = await call(
            app, "generate_image", replace(ANN, timeout_s=2), prompt="x", **(SMALL | {"steps": 20})
        )
        assert handed.status == "queued" and handed.images == []
        assert (await call(app, "get_job", job_id=handed.job_id)).status == "running"
        engine.released.set()
        status = await call(app, "get_job", job_id=handed.job_id, wait_seconds=30)
        assert status.status == "done" and status.result.parameters["steps"] == 20
    assert stored(app) == 1


async def test_a_model_that_cannot_be_loaded_fails_its_jobs_and_is_tried_again(
    make_app: Callable[..., App], omnigen: OmniGen2
) -> None:
    load = SlowLoad(omnigen, ValueError("a weight is missing"))
    load.allowed.set()
    app = make_app(load)
    async with app:
        with pytest.raises(ToolError) as error:
            await call(app, "generate_image", prompt="x", **SMALL)
        assert error.value.code == "not_ready" and "a weight is missing" in str(error.value)
        load.error = None
        assert (await call(app, "generate_image", prompt="x", **SMALL)).images


async def test_a_model_that_left_meanwhile_is_loaded_again(
    make_app: Callable[..., App], omnigen: OmniGen2
) -> None:
    loaded: list[HeldEngine] = []

    def load() -> HeldEngine:
        loaded.append(HeldEngine(omnigen))
        return loaded[-1]

    app = make_app(load)
    async with app:
        await call(app, "generate_image", prompt="x", **SMALL)
        resident = app.manager._residents.pop("tiny")
        await to_thread.run_sync(resident.backend.result().close)
        assert (await call(app, "generate_image", prompt="y", **SMALL)).images
    assert len(loaded) == 2


async def test_images_of_a_running_job_are_not_collected(app: App, engine: HeldEngine) -> None:
    engine.hold_at = 1
    async with app:
        image = app.store.put(Image.new("RGB", (32, 32), "red"))
        answer = await call(app, "edit_image", image=str(image.id), instruction="x", steps=2, background=True)
        await engine.is_held()
        gone = await to_thread.run_sync(
            lambda: app.store.collect(grace=timedelta(0), keep_accessed=timedelta(0))
        )
        assert stored(app) == 1, gone
        engine.released.set()
        status = await call(app, "get_job", job_id=answer.job_id, wait_seconds=30)
        assert status.status == "done"


async def test_stopping_the_server_lets_the_running_finish_and_hands_back_the_waiting(
    make_app: Callable[..., App], engine: HeldEngine, omnigen: OmniGen2
) -> None:
    app = make_app(lambda: engine)
    engine.hold_at = 1
    engine._pictures._room = 1

    async def release_after(job: Job) -> None:
        await job.ended.wait()
        engine.released.set()

    async with anyio.create_task_group() as tasks, app:
        running = await call(app, "generate_image", prompt="x", background=True, **SMALL)
        await engine.is_held()
        waiting = await call(app, "generate_image", prompt="y", background=True, **SMALL)
        job = app.dispatcher.find(waiting.job_id, "ann")
        assert job is not None and job.state == "queued"
        tasks.start_soon(release_after, job)
    assert stored(app) == 1
    async with make_app(lambda: HeldEngine(omnigen)) as again:
        done = await call(again, "get_job", job_id=running.job_id)
        assert done.status == "done" and done.result.images
        handed_back = await call(again, "get_job", job_id=waiting.job_id)
        assert handed_back.status == "interrupted"
        assert "Send the request again" in handed_back.line()


async def test_finished_jobs_leave_the_memory_and_stay_in_the_journal(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.dispatcher.KEPT_JOBS", 1)
    async with app:
        made = [await call(app, "generate_image", prompt=str(n), **SMALL) for n in range(3)]
        assert app.dispatcher.find(made[0].job_id, "ann") is None
        status = await call(app, "get_job", job_id=made[0].job_id)
        assert status.status == "done" and status.result == made[0]
