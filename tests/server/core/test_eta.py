"""The time left of a text: most end long before the most that was asked for."""

import pytest

from omnigen2.params import Decoding
from omnigen2.task import Progress, TextTask
from server.jobs import Job, Lane
from tools.base import Work

pytestmark = pytest.mark.anyio


def writing(lane: Lane) -> Job:
    """A job that writes at most 100 words, one a second, and has written two."""
    task = TextTask("What is it?", (), Decoding(max_tokens=100, temperature=0.0))
    job = Job(
        Work("describe_image", None, task, lambda: task, (), lambda *_: None, lambda _: None),
        "ann",
        "ann",
        lane,
    )  # type: ignore[arg-type]
    job.state = "running"
    for step in (1, 2):
        job.advance(Progress("write", step, 100), float(step))
    return job


async def test_the_time_left_of_a_text_is_learnt_from_those_before_it() -> None:
    lane = Lane("tiny")
    first = writing(lane)
    assert first.eta_s() == 98
    first.advance(Progress("write", 12, 100), 12.0)
    first.end("done")
    second = writing(lane)
    assert second.eta_s() == 10
    second.advance(Progress("write", 50, 100), 50.0)
    assert second.eta_s() == 1
