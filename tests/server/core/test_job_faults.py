"""What a backend of a plugin does wrong ends its own job only; what a job holds, and for how long."""

import gc
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from typing import Any

import anyio
import pytest
from anyio import to_thread
from PIL import Image

from omnigen2.model import OmniGen2
from omnigen2.task import Cancelled, Outcome, Progress, Task, Ticket
from server import decoded
from server.app import App
from server.caller import Caller
from storage import StoreView
from tests.server.core.conftest import ANN, BOB, SMALL, HeldEngine, call, settled
from tools.base import ToolError

pytestmark = pytest.mark.anyio
PROMPT = "the one that is done wrong"


class Faulty(HeldEngine):
    """An engine that does one task wrong, in the way that a test says."""

    def __init__(self, omnigen: OmniGen2, at: str, wrong: Callable[[], Any]) -> None:
        super().__init__(omnigen)
        self.at, self.wrong = at, wrong

    def has_room(self, task: Task) -> bool:
        if self.at == "has_room" and getattr(task, "prompt", "") == PROMPT:
            self.wrong()
        return super().has_room(task)

    def submit(self, task: Task, on_progress: Callable[[Progress], None] = lambda _: None) -> Ticket:
        if getattr(task, "prompt", "") != PROMPT or self.at == "has_room":
            return super().submit(task, on_progress)
        if self.at == "submit":
            return self.wrong()
        ticket = Ticket(task, on_progress)
        self.wrong_future(ticket.future, on_progress)
        return ticket

    def wrong_future(self, future: "Future[Outcome]", on_progress: Callable[[Progress], None]) -> None:
        if self.at == "progress":
            for progress in (None, Progress("denoise", "one", None)):  # type: ignore[arg-type]
                try:
                    on_progress(progress)  # type: ignore[arg-type]
                except AttributeError:
                    pass
        try:
            self.wrong()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)  # type: ignore[arg-type]


def fail(error: BaseException) -> Callable[[], Any]:
    def failing() -> Any:
        raise error

    return failing


@pytest.mark.parametrize(
    ("at", "wrong"),
    [
        ("has_room", fail(RuntimeError("secret"))),
        ("submit", fail(RuntimeError("secret"))),
        ("submit", fail(ValueError("secret"))),
        ("submit", lambda: None),
        ("the future", fail(ValueError("secret"))),
        ("the future", fail(CancelledError("secret"))),
        ("the future", fail(SystemExit("secret"))),
        ("the future", lambda: None),
        ("progress", fail(RuntimeError("secret"))),
    ],
)
async def test_what_a_backend_does_wrong_ends_that_job_alone(
    make_app: Callable[..., App],
    omnigen: OmniGen2,
    at: str,
    wrong: Callable[[], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = Faulty(omnigen, at, wrong)
    app = make_app(lambda: engine)
    engine.hold_at = 1
    async with app:
        running = await call(app, "generate_image", prompt="x", background=True, **SMALL)
        await engine.is_held()
        engine._pictures._room = 1  # the next ones have to wait until another job's end calls them
        jobs = [
            await call(app, "generate_image", who, prompt=prompt, background=True, **SMALL)
            for who, prompt in ((ANN, PROMPT), (BOB, "y"))
        ]
        engine.released.set()
        states = [
            await call(app, "get_job", who, job_id=job.job_id, wait_seconds=30)
            for who, job in ((ANN, running), (ANN, jobs[0]), (BOB, jobs[1]))
        ]
    assert [state.status for state in states] == ["done", "failed", "done"]
    assert states[1].error is not None and states[1].error.code == "internal"
    assert "secret" not in states[1].model_dump_json()
    assert any("unforeseen failure" in record.getMessage() for record in caplog.records)


async def test_a_backend_that_is_unloaded_again_and_again_is_given_up(
    make_app: Callable[..., App], omnigen: OmniGen2
) -> None:
    app = make_app(lambda: Faulty(omnigen, "submit", fail(Cancelled("unloaded"))))
    async with app:
        with pytest.raises(ToolError) as error:
            await call(app, "generate_image", prompt=PROMPT, **SMALL)
        assert error.value.code == "not_ready"


async def test_a_job_whose_backend_never_answers_is_cancelled_all_the_same(
    make_app: Callable[..., App], omnigen: OmniGen2
) -> None:
    app = make_app(lambda: Faulty(omnigen, "submit", lambda: Ticket(None, lambda _: None)))  # type: ignore[arg-type]
    async with app:
        job = await call(app, "generate_image", prompt=PROMPT, background=True, **SMALL)
        assert (await call(app, "cancel_job", job_id=job.job_id)).status == "cancelled"


class Opened:
    """Counts the pictures that stores decode."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.alive = 0
        self.most = 0
        lock, decode = threading.Lock(), StoreView.open

        def counting(view: StoreView, reference: Any) -> Image.Image:
            image = decode(view, reference)
            with lock:
                self.alive += 1
                self.most = max(self.most, self.alive)
            return image

        monkeypatch.setattr(StoreView, "open", counting)


async def test_pictures_are_decoded_when_the_model_takes_them_and_not_before(
    app: App, engine: HeldEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = app.store.put(Image.new("RGB", (64, 64), "red"))
    opened = Opened(monkeypatch)
    engine.hold_at = 1
    engine._pictures._room = 1
    async with app:
        await call(app, "generate_image", prompt="x", background=True, **SMALL)
        await engine.is_held()
        arguments = {"image": str(image.id), "instruction": "x", "steps": 2, "background": True}
        jobs = [await call(app, "edit_image", seed=seed, **arguments) for seed in range(5)]
        await settled()
        assert opened.alive == 0
        engine.released.set()
        for job in jobs:
            assert (await call(app, "get_job", job_id=job.job_id, wait_seconds=30)).status == "done"
    assert opened.alive == 5


async def test_models_have_no_more_decoded_pixels_at_once_than_are_allowed(
    app: App, engine: HeldEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoded, "DECODED_PIXELS", 2 * 64 * 64)
    monkeypatch.setattr(engine, "has_room", lambda task: True)
    image = app.store.put(Image.new("RGB", (64, 64), "red"))
    opened = Opened(monkeypatch)
    engine.hold_at = 1
    async with app:
        await call(app, "generate_image", prompt="x", background=True, **SMALL)
        await engine.is_held()
        arguments = {"image": str(image.id), "instruction": "x", "steps": 2, "background": True}
        jobs = [await call(app, "edit_image", seed=seed, **arguments) for seed in range(4)]
        await settled()
        with anyio.fail_after(30):
            while engine.submitted < 3:
                await anyio.sleep(0.01)
        await settled()
        assert opened.alive == 2
        engine.released.set()
        for job in jobs:
            assert (await call(app, "get_job", job_id=job.job_id, wait_seconds=30)).status == "done"
        assert app.dispatcher._pixels.count == 0


async def test_jobs_that_ended_keep_no_picture(app: App) -> None:
    image = app.store.put(Image.new("RGB", (300, 200), "red"))
    async with app:
        edit = {"image": str(image.id), "instruction": "x", "width": 32, "height": 32, "steps": 2}
        made = await call(app, "edit_image", **edit)
        with pytest.raises(ToolError):  # a failure's traceback must not keep them, either
            await call(app, "edit_image", **edit | {"instruction": "\n"})
        jobs = list(app.dispatcher._jobs.values())
        assert [job.state for job in jobs] == ["done", "failed"] and jobs[0].id == made.job_id
        app.manager._residents["tiny"].backend.result()._pipeline.forget()  # type: ignore[attr-defined]
        gc.collect()
        kept = [one for one in gc.get_objects() if type(one) is Image.Image and one.size == (300, 200)]
        assert not kept


async def test_one_client_leaves_room_in_the_queue_for_every_other(
    make_app: Callable[..., App], engine: HeldEngine
) -> None:
    app = make_app(lambda: engine, queue_size=8)
    engine.hold_at = 1
    engine._pictures._room = 1
    taken: dict[str, int] = {}
    async with app:
        await call(app, "generate_image", prompt="x", background=True, **SMALL)
        await engine.is_held()
        for name in ("a", "b", "c"):
            taken[name] = 0
            with pytest.raises(ToolError, match="requests of yours are waiting"):
                for _ in range(9):
                    who = Caller(name, name)
                    await call(app, "generate_image", who, prompt="x", background=True, **SMALL)
                    taken[name] += 1
        engine.released.set()
        await to_thread.run_sync(lambda: None)
    assert taken == {"a": 4, "b": 2, "c": 1}
