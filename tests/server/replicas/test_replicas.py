"""Replicas on a real Ray: what they make, how they are cancelled and lost, and what is left of them."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from omnigen2.engine.engine import Engine
from omnigen2.factory import Checkpoints
from omnigen2.params import Decoding, InvalidTask
from omnigen2.task import Cancelled, ImageTask, Outcome, Progress, Task, TextTask
from server.replicas.backend import RemoteBackend
from server.replicas.cluster import Cluster
from server.replicas.factory import RemoteFactory
from server.replicas.replica import POLL_S
from tests.server.core.conftest import CHECKPOINT
from tests.server.replicas.conftest import PLACEMENT
from tests.server.replicas.tasks import image_task


def picture(seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


TASKS: dict[str, Task] = {
    "generate": image_task(),
    "edit": image_task(2, images=(picture(),)),
    "compose": image_task(3, images=(picture(), picture(1))),
    "describe": TextTask("what?", (picture(),), Decoding(max_tokens=4, temperature=0.0, seed=0)),
}


def pixels(outcome: Outcome) -> list[bytes]:
    return [own.tobytes() for own in outcome.pictures]


def until(holds: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not come true in time"
        time.sleep(0.02)


@pytest.mark.parametrize("name", TASKS)
def test_outcomes_are_those_of_the_engine(name: str, remote: RemoteBackend, local: Engine) -> None:
    heard: list[Progress] = []
    there = remote.submit(TASKS[name], heard.append).future.result(120)
    here = local.submit(TASKS[name]).future.result(120)
    assert (pixels(there), there.text, there.notes) == (pixels(here), here.text, here.notes)
    assert there.card == here.card and set(there.timings) == set(here.timings)
    assert heard


def test_wrong_tasks_fail_as_they_do_in_the_engine(remote: RemoteBackend) -> None:
    task = ImageTask("", (), image_task().sampling)
    with pytest.raises(InvalidTask, match="prompt"):
        remote.submit(task, lambda _: None).future.result(60)
    assert not remote.busy()


def test_a_picture_is_sent_to_each_replica_once(remote: RemoteBackend) -> None:
    def fetched() -> int:
        ray = remote._cluster.ray
        return sum(ray.get(member.actor.state.remote("test"))["fetched"] for member in remote._members)

    before, own = fetched(), (picture(9),)
    for seed in range(6):
        remote.submit(image_task(seed, images=own), lambda _: None).future.result(60)
    assert 1 <= fetched() - before <= 2


def test_a_preview_comes_when_it_is_wanted(remote: RemoteBackend) -> None:
    heard: list[Progress] = []
    ticket = remote.submit(image_task(5, steps=40), heard.append)
    ticket.wants_preview.set()
    ticket.future.result(60)
    assert any(progress.preview for progress in heard) and not ticket.wants_preview.is_set()


def test_a_cancelled_task_takes_no_further_step(remote: RemoteBackend) -> None:
    heard: list[Progress] = []
    ticket = remote.submit(image_task(6, steps=1000), heard.append)
    until(lambda: len(heard) > 3)
    ticket.cancel()
    with pytest.raises(Cancelled):
        ticket.future.result(10)
    ray = remote._cluster.ray
    until(lambda: not any(ray.get(each.actor.state.remote("test"))["tasks"] for each in remote._members), 10)
    steps = len(heard)
    time.sleep(0.5)
    assert len(heard) == steps


def test_a_task_that_is_cancelled_at_once_is_answered(remote: RemoteBackend) -> None:
    for seed in range(20):
        ticket = remote.submit(image_task(seed, steps=1000), lambda _: None)
        ticket.cancel()
        with pytest.raises(Cancelled):
            ticket.future.result(10)
    assert not remote.busy()


STARTS = """
import signal
from server.replicas.cluster import Cluster
signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
Cluster(None, 1).ray
print("started", flush=True)
input()
"""


def test_ray_leaves_signals_alone_and_ends_with_a_server_that_is_killed(with_ray: None) -> None:
    """Without a model: what is started is Ray alone."""
    pipe = subprocess.PIPE
    server = subprocess.Popen([sys.executable, "-c", STARTS], stdin=pipe, stdout=pipe, stderr=pipe)
    assert server.stdout and server.stdout.readline() == b"started\n"
    server.terminate()
    assert server.stdout.readline() == b"asked\n"
    own = {process.pid for process in psutil.Process(server.pid).children(recursive=True)}
    assert len(own) > 3
    server.kill()
    _, said = server.communicate()
    assert b"SIGTERM" not in said
    until(lambda: not any(map(psutil.pid_exists, own)), 20)


ENDS = """
import subprocess, sys, time
from pathlib import Path
from server.replicas import cluster
folder = Path(sys.argv[1])
log = (folder / "log").open("w")
cluster._start_reaper(folder)
time.sleep(0.5)
class Slow:
    def __del__(self, sleep=time.sleep): sleep(2)
slow = Slow()
subprocess._active.append(slow)  # is freed after what Python keeps of the reaper
del slow
sys.exit(7)
"""


def test_a_server_that_takes_long_to_end_is_not_killed_by_its_reaper(tmp_path: Path) -> None:
    ended = subprocess.run([sys.executable, "-c", ENDS, str(tmp_path)], check=False)
    assert ended.returncode == 7
    until(lambda: not tmp_path.exists(), 20)


def test_a_server_that_unloads_a_model_leaves_it_to_the_others(remote: RemoteBackend) -> None:
    other = Cluster("a cluster of both", 2)
    other._started, other.loop = remote._cluster._started, remote._cluster.loop
    pids = {each["pid"] for each in remote.replicas()}
    second = RemoteFactory(Checkpoints(), other, 2).load(str(CHECKPOINT), PLACEMENT, lambda: False)
    assert isinstance(second, RemoteBackend)
    until(lambda: len(second._members.ready()) == 2)
    second.submit(image_task(30), lambda _: None).future.result(60)
    told = (
        r"2 replicas; checkpoint-\w+-0: checkpoint on \S+, cpu, [\d.]+ \wB, 0 tasks of 0 tokens; checkpoint-"
    )
    assert re.search(told, other.seen()), "what `doctor --ray` says"
    second.close()
    time.sleep(2 * POLL_S)
    assert remote.submit(image_task(31), lambda _: None).future.result(60).pictures
    assert {each["pid"] for each in remote.replicas()} == pids


def test_a_killed_replica_loses_no_task(remote: RemoteBackend, local: Engine) -> None:
    tasks = [image_task(seed, steps=60) for seed in range(10, 14)]
    heard: dict[int, list[Progress]] = {index: [] for index in range(4)}
    tickets = [remote.submit(task, heard[index].append) for index, task in enumerate(tasks)]
    until(lambda: all(len(news) > 2 for news in heard.values()))
    assert {len(member.attempts) for member in remote._members} == {2}  # by outstanding tokens
    os.kill(remote._members.all[0].seen["pid"], signal.SIGKILL)
    there = [pixels(ticket.future.result(120)) for ticket in tickets]
    here = [pixels(local.submit(task).future.result(120)) for task in tasks]
    assert there == here
    moved = [index for index, news in heard.items() if Progress("moved") in news]
    assert len(moved) == 2
    until(lambda: len(remote._members.ready()) == 2)  # Ray started it again
    states = {each["state"] for each in remote.replicas()}
    assert states == {"ready"}
