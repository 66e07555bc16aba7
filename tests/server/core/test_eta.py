"""The time left of a text: most end long before the most that was asked for."""

import pytest

from omnigen2.params import Decoding
from omnigen2.task import Progress, TextTask
from server.jobs import Job
from server.lanes import Lane
from tools.base import Work

pytestmark = pytest.mark.anyio


def writing(lane: Lane) -> Job:
    """A job that writes at most 100 words, one a second, and has written two."""
    task = TextTask("What is it?", (), Decoding(max_tokens=100, temperature=0.0))
    work = Work("describe_image", None, task, (), lambda: None, lambda: task, lambda *_: None, lambda _: None)  # type: ignore[arg-type,return-value]
    job = Job(work, "tiny", "ann", "ann")
    job.change(status="running")
    for step in (1, 2):
        wrote(lane, job, step)
    return job


def wrote(lane: Lane, job: Job, step: int) -> None:
    lane.report(job, Progress("write", step, 100), float(step))
    lane.catch_up()


async def test_the_time_left_of_a_text_is_learnt_from_those_before_it() -> None:
    lane = Lane("tiny")
    first = writing(lane)
    assert lane.eta_s(first) == 98
    wrote(lane, first, 12)
    lane.learn_length(first)
    second = writing(lane)
    assert lane.eta_s(second) == 10
    wrote(lane, second, 50)
    assert lane.eta_s(second) == 1
