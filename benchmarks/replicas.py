"""Replicas in Ray: what is lost when they are killed, what a call costs, how many calls they serve.

    python -m benchmarks.replicas kills [--kills 100] [--seed N] [--requests 64]
    python -m benchmarks.replicas machines [--requests 64]
    python -m benchmarks.replicas overhead [--rounds 100]
    python -m benchmarks.replicas throughput [--seconds 1.0]

`kills`: rounds of 64 requests for pictures by nano through the whole server (queue, journal, store), four at
a time, on two replicas, one of which is killed with SIGKILL every three to nine seconds. Held to: every
request is answered, every picture is that of an engine in this process, and there is one record for each.
`machines`: two simulated machines on loopback with a replica each; one is frozen for ten seconds, removed
while it works, and comes back; then the server leaves, and finds the replicas again. `overhead`: the same
calls through a replica and through an engine in this process, in turn. `throughput`: 1, 2 and 4 replicas that
sleep instead of computing; the bar is 90 % of linear.
"""

import argparse
import asyncio
import os
import random
import secrets
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil

import omnigen2
from benchmarks.sleeping import Sleeping
from omnigen2.engine.engine import Engine
from omnigen2.factory import BackendFactory, Checkpoints, OneModel, Placement
from omnigen2.task import Backend, Progress, Task, Ticket
from server.app import App, build_app
from server.caller import LOCAL, Caller
from server.hookspecs import hookimpl
from server.plugins import core_plugins
from server.replicas.backend import RemoteBackend
from server.replicas.cluster import Cluster, library
from server.replicas.factory import RemoteFactory
from server.settings import Settings
from tools.base import JobStatus, ToolError

PLACEMENT = Placement("cpu", "float32")
REQUESTS = 64
AT_ONCE = 4
BAR = 0.9


class Kept:
    """A plugin whose model is a backend that outlives the apps that use it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    @hookimpl
    def register_backends(self, register: Callable[[str, BackendFactory], None]) -> None:
        register("kept", OneModel("kept", self.backend.card, lambda device, dtype: _Borrowed(self.backend)))


class _Borrowed:
    """A backend that cannot be closed."""

    def __init__(self, backend: Backend) -> None:
        self.card, self.cost = backend.card, getattr(backend, "cost", None)
        self.submit: Callable[[Task, Callable[[Progress], None]], Ticket] = backend.submit
        self.has_room, self.busy, self.memory_bytes = backend.has_room, backend.busy, backend.memory_bytes

    def close(self) -> None:
        pass


@asynccontextmanager
async def serving(backend: Backend, folder: str) -> AsyncGenerator[App]:
    """An app with this backend and a store of its own."""
    settings = Settings(store=folder, model="kept", queue_size=256)
    async with build_app(settings, [*core_plugins(), Kept(backend)]) as app:
        yield app


def in_replicas(
    cluster: Cluster, factory: BackendFactory | None = None, model: str = "nano", least: int | None = None
) -> RemoteBackend:
    """The backend of a model in replicas, once all of them are ready."""
    whole = RemoteFactory(factory or Checkpoints(), cluster, least or cluster.size)
    backend = whole.load(model, PLACEMENT, lambda: False)
    assert isinstance(backend, RemoteBackend)
    until(lambda: ready(backend) == (least or cluster.size))
    return backend


def ready(backend: RemoteBackend) -> int:
    """Number of replicas that are ready."""
    return sum(each["state"] == "ready" for each in backend.replicas())


def until(holds: Callable[[], Any], seconds: float = 300) -> float:
    """Wait until a condition holds; the seconds that this took."""
    started = time.monotonic()
    while not holds():
        if time.monotonic() - started > seconds:
            raise TimeoutError("it did not come true in time")
        time.sleep(0.02)
    return time.monotonic() - started


async def requests(app: App, count: int, at_once: int, moved: Counter[str]) -> list[Any]:
    """So many different pictures, `at_once` at a time: results, or the errors instead."""
    tool, limit = app.tools["generate_image"], asyncio.Semaphore(at_once)

    async def one(number: int) -> Any:
        stage = ""

        async def listen(status: JobStatus) -> None:
            nonlocal stage
            moved["moved"] += status.stage == "moved" != stage
            stage = status.stage

        async with limit:
            try:
                asked = {"prompt": "a red circle and a blue star", "seed": number}
                return await app.call(tool, asked, replace(Caller(LOCAL, "bench"), on_progress=listen))
            except ToolError as error:
                return error

    return await asyncio.gather(*(one(number) for number in range(count)))


async def expected_ids(count: int) -> list[str]:
    """The ids of the same pictures, made by an engine in this process."""
    engine = Engine(omnigen2.load("nano", device="cpu", dtype="float32"))
    with tempfile.TemporaryDirectory() as folder:
        async with serving(engine, folder) as app:
            made = await requests(app, count, AT_ONCE, Counter())
    engine.close()
    return [result.images[0].id for result in made]


# -- kills ------------------------------------------------------------------------------------------------


async def kills(options: argparse.Namespace) -> bool:
    """Kill replicas while they work; what every request came to."""
    expected = await expected_ids(options.requests)
    backend = in_replicas(Cluster(None, 2))
    dice, killed, rounds, wrong, moved = random.Random(options.seed), 0, 0, 0, Counter[str]()
    stop = asyncio.Event()

    async def kill() -> None:
        nonlocal killed
        while not stop.is_set() and killed < options.kills:
            await asyncio.sleep(dice.uniform(3, 9))
            alive = [each for each in backend.replicas() if each["state"] == "ready"]
            if alive and not stop.is_set():
                os.kill(dice.choice(alive)["pid"], signal.SIGKILL)
                killed += 1

    started = time.monotonic()
    killing = asyncio.create_task(kill())
    while killed < options.kills:
        rounds += 1
        with tempfile.TemporaryDirectory() as folder:
            async with serving(backend, folder) as app:
                results = await requests(app, options.requests, AT_ONCE, moved)
                stored = app.store.usage().images
                records = sum(path.is_file() for path in (Path(folder) / "records").rglob("*"))
            answers = Counter[str]("ok" if not isinstance(each, ToolError) else each.code for each in results)
            right = sum(
                not isinstance(each, ToolError) and each.images[0].id == own
                for each, own in zip(results, expected, strict=True)
            )
        wrong += options.requests - right + (stored != options.requests) + (records != options.requests)
        print(
            f"round {rounds}: {dict(answers)}, {right} of {options.requests} right, {stored} images, "
            f"{records} records; {killed} kills, {moved['moved']} moves so far, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
    stop.set()
    await killing
    print(f"{rounds * options.requests} requests, {killed} kills, {moved['moved']} moves, {wrong} wrong")
    backend.close()
    return wrong == 0


# -- machines ---------------------------------------------------------------------------------------------


async def machines(options: argparse.Namespace) -> bool:
    """Two simulated machines: one is frozen, removed, and comes back."""
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    os.environ["RAY_worker_niceness"] = "0"
    library()
    simulated = import_module("ray.cluster_utils").Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    nodes = [simulated.add_node(num_cpus=1) for _ in range(2)]
    cluster = Cluster(simulated.address, 2)
    backend = in_replicas(cluster)
    print("ready:", [each["pid"] for each in backend.replicas()])
    expected = await expected_ids(options.requests)

    async def round_of(name: str, meanwhile: Callable[[], None]) -> bool:
        moved, started = Counter[str](), time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            async with serving(backend, folder) as app:
                working = asyncio.create_task(requests(app, options.requests, AT_ONCE, moved))
                await asyncio.sleep(2)
                await asyncio.to_thread(meanwhile)
                results = await working
        right = [not isinstance(each, ToolError) and each.images[0].id for each in results] == expected
        errors = Counter(each.code for each in results if isinstance(each, ToolError))
        took = f"{time.monotonic() - started:.1f} s"
        print(f"{name}: {options.requests} requests in {took}, errors {dict(errors)}")
        print(f"  {moved['moved']} moves, pictures right: {right}", flush=True)
        return right

    def remove() -> None:
        simulated.remove_node(nodes.pop(0))

    right = await round_of("undisturbed", lambda: None)
    right &= await round_of("one machine cut off for 10 s", lambda: freeze(nodes[0]))
    print(f"both ready again after {until(lambda: ready(backend) == 2):.1f} s")
    right &= await round_of("one machine removed", remove)
    print("ready then:", ready(backend))
    nodes.append(simulated.add_node(num_cpus=1))
    print(f"it comes back: both replicas ready after {until(lambda: ready(backend) == 2):.1f} s", flush=True)
    right &= await round_of("with the new machine", lambda: None)
    before = sorted(each["pid"] for each in backend.replicas())
    backend.leave()
    started = time.monotonic()
    backend = in_replicas(cluster)
    same = before == sorted(each["pid"] for each in backend.replicas())
    print(f"found again in {time.monotonic() - started:.1f} s, the same processes: {same}")
    backend.close()
    cluster.ray.shutdown()
    simulated.shutdown()
    return right and same


def freeze(node: Any) -> None:
    """Stop a simulated machine for ten seconds."""
    processes = processes_of(node)
    for process in processes:
        process.suspend()
    time.sleep(10)
    for process in processes:
        process.resume()


def processes_of(node: Any) -> list[psutil.Process]:
    """The processes of a simulated machine: its raylet and what that started."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [raylet, *raylet.children(recursive=True)]


# -- what it costs ----------------------------------------------------------------------------------------


async def overhead(options: argparse.Namespace) -> bool:
    """The same calls through a replica and through an engine in this process, in turn."""
    engine = Engine(omnigen2.load("nano", device="cpu", dtype="float32"))
    remote = in_replicas(Cluster(None, 1))
    times: dict[str, list[float]] = {"engine": [], "replica": []}
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        async with serving(engine, one) as here, serving(remote, other) as there:
            for number in range(options.rounds + 3):
                sides = [("engine", here), ("replica", there)]
                for name, app in sides if number % 2 else sides[::-1]:
                    asked = {"prompt": "a red circle", "seed": number}
                    started = time.perf_counter()
                    await app.call(app.tools["generate_image"], asked, Caller(LOCAL, "bench"))
                    times[name].append(1000 * (time.perf_counter() - started))
    for name, values in times.items():
        print(f"{name:8}", spread(values[3:]))
    added = [far - near for far, near in zip(times["replica"][3:], times["engine"][3:], strict=True)]
    print(f"{'added':8}", spread(added))
    remote.close()
    return True


def spread(values: list[float]) -> str:
    """Median and 95th percentile."""
    return f"median {statistics.median(values):7.1f} ms, p95 {statistics.quantiles(values, n=20)[-1]:7.1f} ms"


async def throughput(options: argparse.Namespace) -> bool:
    """Calls per second on 1, 2 and 4 replicas that sleep."""
    card = Checkpoints().card("nano")
    holds, single = True, 0.0
    cluster = Cluster(None, 4)
    for count in (1, 2, 4):
        factory = Sleeping(card, options.seconds)
        backend = in_replicas(cluster, factory, "sleeping", count)
        with tempfile.TemporaryDirectory() as folder:
            async with serving(backend, folder) as app:
                await requests(app, count, count, Counter())
                started = time.monotonic()
                await requests(app, 20 * count, 4 * count, Counter())
                rate = 20 * count / (time.monotonic() - started)
        single = single or rate
        share = rate / (count * single)
        holds &= share >= BAR
        print(f"{count} replicas: {rate:.2f} calls/s, {100 * share:.0f} % of linear", flush=True)
        backend.close()
    return holds


def main() -> int:
    """Run one of them; exit code 1 if what it holds to does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = {"kills": kills, "machines": machines, "overhead": overhead, "throughput": throughput}
    parser.add_argument("what", choices=what)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of a round")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    return 0 if asyncio.run(what[options.what](options)) else 1


if __name__ == "__main__":
    sys.exit(main())
