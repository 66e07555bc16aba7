"""How long users wait: GPUs, users, their mix of requests, and what comes out; simulated with simpy.

    python -m benchmarks.capacity [--users 50] [--per-hour 12] [--gpus 2] [--mix generate=6,edit=3,compose=1]
    python -m benchmarks.capacity --table
    python -m benchmarks.capacity --check

A replica steps all pictures that it holds together, at most ROOM; a step takes as long as their costs in sum.
A request goes to the replica with the least work left. Users ask at random times (a Poisson process). Costs
of the full size are computed, not measured: see docs/capacity.md. `--check` measures nano through a real
server with one and two clients, which gives the costs of a step, and then more clients beside the simulation.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import httpx
import simpy

from benchmarks.patience import listening

ROOM = 16
"""Pictures that a replica steps at once."""
STEPS = 50
STEP_S = {"generate": 0.169, "edit": 0.473, "compose": 0.756}
"""Seconds of a step on an H100, bfloat16, 1024 x 1024: computed by `benchmarks.plan`, code of 2026-11-27."""
MIX = {"generate": 6.0, "edit": 3.0, "compose": 1.0}
"""Requests of each kind, as shares."""
HOURS = 6
TABLE = [(gpus, busy) for gpus in (1, 2, 4, 8) for busy in (0.3, 0.6, 0.8, 0.9)]
"""Rows of `--table`: as many users as make so many GPUs busy for so much of the time."""
CHECKED = (2, 4, 8)
"""Clients of `--check`, each of which asks again as soon as it is answered."""
CHECK_S = 20.0


@dataclass(eq=False)
class Request:
    """One picture: seconds of a step, steps left, and when it was asked for and answered."""

    step_s: float
    left: int
    asked: float
    done: simpy.Event

    @property
    def work_s(self) -> float:
        """Seconds of work left."""
        return self.step_s * self.left


@dataclass(eq=False)
class Replica:
    """One model on one device. `base_s` is what a step costs whoever takes part."""

    env: simpy.Environment
    base_s: float = 0.0
    held: list[Request] = field(default_factory=list[Request])
    queue: list[Request] = field(default_factory=list[Request])
    _woken: simpy.Event | None = None

    def take(self, request: Request) -> None:
        """Add a request; one that is cheap goes before one that is not, as in the server's queue."""
        self.queue.append(request)
        self.queue.sort(key=lambda waiting: waiting.asked + waiting.work_s)
        if self._woken is not None and not self._woken.triggered:
            self._woken.succeed()

    def work_s(self) -> float:
        """Seconds of work that it has."""
        return sum(request.work_s for request in (*self.held, *self.queue))

    def run(self) -> Generator[simpy.Event, Any, None]:
        """Step what it holds, for ever."""
        while True:
            while self.queue and len(self.held) < ROOM:
                self.held.append(self.queue.pop(0))
            if not self.held:
                self._woken = self.env.event()
                yield self._woken
                continue
            yield self.env.timeout(self.base_s + sum(request.step_s for request in self.held))
            for request in self.held:
                request.left -= 1
                if not request.left:
                    request.done.succeed()
            self.held = [request for request in self.held if request.left]


Answers = list[tuple[float, float]]
"""Seconds until the answer, and those of them that were waiting for others."""


def open_system(gpus: int, users: int, per_hour: float, mix: dict[str, float], seed: int = 1) -> Answers:
    """Answers in some hours of users who ask independently of each other; the first hour is not counted."""
    env, chance = simpy.Environment(), random.Random(seed)
    replicas, answers = [Replica(env) for _ in range(gpus)], Answers()
    for replica in replicas:
        env.process(replica.run())

    def ask(kind: str) -> Generator[simpy.Event, Any, None]:
        request = Request(STEP_S[kind], STEPS, env.now, env.event())
        alone = request.work_s
        min(replicas, key=Replica.work_s).take(request)
        yield request.done
        if request.asked > 3600:
            took = env.now - request.asked
            answers.append((took, max(0.0, took - alone)))

    def arrive() -> Generator[simpy.Event, Any, None]:
        while True:
            yield env.timeout(chance.expovariate(users * per_hour / 3600))
            env.process(ask(*chance.choices(list(mix), list(mix.values()))))

    env.process(arrive())
    env.run(until=3600 * (HOURS + 1))
    return answers


def closed_system(clients: int, step_s: float, base_s: float, steps: int, seconds: float) -> Answers:
    """Answers of clients that ask one replica again as soon as they are answered."""
    env, answers = simpy.Environment(), Answers()
    replica = Replica(env, base_s)
    env.process(replica.run())

    def client() -> Generator[simpy.Event, Any, None]:
        while True:
            request = Request(step_s, steps, env.now, env.event())
            replica.take(request)
            yield request.done
            took = env.now - request.asked
            answers.append((took, took - steps * (step_s + base_s)))

    for _ in range(clients):
        env.process(client())
    env.run(until=seconds)
    return answers


def described(values: Sequence[float]) -> str:
    """Median and 95th percentile, in seconds."""
    ordered = sorted(values)
    return f"{statistics.median(ordered):.2f} / {ordered[int(0.95 * len(ordered))]:.2f}"


def load(gpus: int, users: int, per_hour: float, mix: dict[str, float]) -> float:
    """Share of the time for which the GPUs have work, if they can follow."""
    work = sum(STEP_S[kind] * STEPS * share for kind, share in mix.items()) / sum(mix.values())
    return users * per_hour / 3600 * work / gpus


def line(gpus: int, users: int, per_hour: float, mix: dict[str, float]) -> str:
    """A row of the table."""
    busy = load(gpus, users, per_hour, mix)
    if busy >= 1:
        return f"| {gpus} | {users} | {100 * busy:.0f} % | grows without end | |"
    answers = open_system(gpus, users, per_hour, mix)
    took, waited = zip(*answers, strict=True)
    return f"| {gpus} | {users} | {100 * busy:.0f} % | {described(took)} | {described(waited)} |"


async def measured(url: str, clients: int, first: int) -> list[float]:
    """Seconds of each new picture by nano, asked for by some clients for a while."""
    taken: list[float] = []
    seeds = iter(range(first, first + 1_000_000))
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        begun = time.monotonic()

        async def one() -> None:
            while (started := time.monotonic()) < begun + CHECK_S:
                asked = {"prompt": "a red circle", "seed": next(seeds)}
                (await client.post("/v1/tools/generate_image", json=asked)).raise_for_status()
                taken.append(time.monotonic() - started)

        async with anyio.create_task_group() as group:
            for _ in range(clients):
                group.start_soon(one)
    return taken[clients:]


def check(steps: int = 12) -> None:
    """Measure one and two clients, which gives the costs of a step; then others beside the simulation."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMNIGEN2_STORE": f"{folder}/store"}
        with listening(environment, Path(folder, "log")) as url:
            anyio.run(measured, url, 1, 0)  # loads the model
            took = {
                clients: anyio.run(measured, url, clients, 1_000_000 * clients) for clients in (1, *CHECKED)
            }
    one, two = (statistics.median(took[clients]) / steps for clients in (1, 2))
    step_s = min(max(two - one, 0.0), one)
    base_s = one - step_s
    print(
        f"a step: {1000 * base_s:.1f} ms, and {1000 * step_s:.1f} ms for each picture; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    for clients in CHECKED:
        said, _ = zip(*closed_system(clients, step_s, base_s, steps, CHECK_S), strict=True)
        print(
            f"{clients} clients, median / p95: measured {described(took[clients])} s, "
            f"simulated {described(said)} s"
        )


def main() -> None:
    """Simulate what is asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.capacity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--users", type=int, default=50)
    parser.add_argument("--per-hour", type=float, default=12, help="requests of a user in an hour")
    parser.add_argument("--gpus", type=int, default=2)
    parser.add_argument("--mix", default=",".join(f"{kind}={share:.0f}" for kind, share in MIX.items()))
    parser.add_argument("--table", action="store_true", help="GPUs and users in every combination")
    parser.add_argument("--check", action="store_true", help="the simulation beside a real server")
    asked = parser.parse_args()
    if asked.check:
        check()
        return
    mix = {kind: float(share) for kind, _, share in (part.partition("=") for part in asked.mix.split(","))}
    print("| GPUs | users | busy | answer after, s (median / p95) | of it waiting, s |")
    print("|---:|---:|---:|---:|---:|")
    rows = [(asked.gpus, asked.users)]
    if asked.table:
        rows = [(gpus, round(busy / load(gpus, 1, asked.per_hour, mix))) for gpus, busy in TABLE]
    for gpus, users in rows:
        print(line(gpus, users, asked.per_hour, mix), flush=True)


if __name__ == "__main__":
    main()
