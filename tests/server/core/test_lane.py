"""What a model says on its own thread: who is woken for it, and what is known of it later."""

from concurrent.futures import Future
from typing import Any

import pytest
from PIL import Image

from omnigen2.params import ReferenceSampling
from omnigen2.task import ImageTask, Progress
from server.jobs import Job
from server.lanes import MAX_PENDING, Lane
from server.status import progress_line
from tools.base import Work

UNGUIDED: dict[str, Any] = {"cfg_range": (0.0, 1.0), "speed": "exact"}
pytestmark = pytest.mark.anyio


def running(lane: Lane) -> Job:
    task = ImageTask("x", (), ReferenceSampling(width=32, height=32, steps=4, num_images=1, **UNGUIDED))
    work = Work("generate_image", None, task, (), lambda: None, lambda: task, lambda *_: None, lambda _: None)  # type: ignore[arg-type,return-value]
    job = Job(work, "tiny", "ann", "ann")
    job.change(status="running")
    lane.running.add(job)
    return job


def step(number: int, preview: Image.Image | None = None) -> Progress:
    return Progress("denoise", number, 4, preview)


async def test_nobody_is_woken_who_does_not_listen() -> None:
    lane = Lane("tiny")
    job, other = running(lane), running(lane)
    assert not lane.report(job, step(1), 1.0)
    with lane.listening(job):
        assert lane.report(job, step(2), 2.0)
        assert not lane.report(other, step(1), 2.0)
    assert not lane.report(job, step(3), 3.0)


async def test_a_preview_or_a_job_that_waits_wakes_the_loop() -> None:
    lane = Lane("tiny")
    job = running(lane)
    assert lane.report(job, step(1, Image.new("RGB", (1, 1))), 1.0)
    lane.queue.push(job, "ann", 1.0)
    assert lane.report(job, step(2), 2.0)


async def test_news_do_not_pile_up() -> None:
    lane = Lane("tiny")
    job = running(lane)
    told = [lane.report(job, step(1), float(number)) for number in range(MAX_PENDING)]
    assert told == [False] * (MAX_PENDING - 1) + [True]


async def test_whoever_asks_hears_all_that_was_said() -> None:
    lane = Lane("tiny")
    job, other = running(lane), running(lane)
    for number in (1, 2, 3):
        lane.report(job, step(number), float(number))
        lane.report(other, step(number), float(number))
    assert lane.status(job).step == 3
    assert (
        other.status.step == 3 and lane.eta_s(other) == 1
    )  # in the order in which it was reported: a step took a second
    assert lane.pace == pytest.approx(1 / (job.cost / 4 + other.cost / 4))


async def test_who_listens_late_misses_nothing() -> None:
    lane = Lane("tiny")
    job = running(lane)
    lane.report(job, step(1), 1.0)
    with lane.listening(job):
        assert [status.step for _, status in job.history(-1)] == [1]
        version = job.version
        lane.report(job, step(2), 2.0)
        lane.catch_up()
        assert [status.step for _, status in job.history(version)] == [2]


async def test_a_job_that_waits_for_memory_says_for_which_model_and_for_how_long() -> None:
    lane = Lane("tiny", lambda: "/models/large")
    job = running(lane)
    job.change(status="queued")
    job.created -= 100
    lane.load(Future())
    assert lane.status(job).stage == "wait for memory: the model large is in use"
    assert "next in line, wait for memory" in progress_line(lane.status(job))
    assert 0 <= lane.loaded_s(job) < 50


async def test_standing_still_is_no_slow_step() -> None:
    lane = Lane("tiny")
    job = running(lane)
    for progress, when in ((step(1), 1.0), (step(2), 2.0), (Progress("paused"), 2.5), (step(3), 60.0)):
        lane.report(job, progress, when)
        assert lane.status(job).line().endswith("s left.") == (when >= 2.0)
    assert job.step_s == 1.0
