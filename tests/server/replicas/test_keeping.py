"""How replicas are started, given up, added and ended, with replicas that are stand-ins: no Ray, no model."""

import asyncio
import os
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest

from omnigen2.checkpoints.card import ModelCard
from omnigen2.factory import Checkpoints
from omnigen2.memory.placement import Placement
from omnigen2.task import OutOfMemory
from server.replicas import keeping
from server.replicas.cluster import Cluster
from server.replicas.keeping import Keeper
from server.replicas.members import Attempt
from server.replicas.replica import Replica, Software
from server.replicas.sending import SentTask
from tests.server.replicas.tasks import image_task
from tests.server.replicas.test_delivery import RayError, RayTaskError

pytestmark = pytest.mark.anyio
CARD = Checkpoints().card("nano")


class Actor:
    """A replica that loads, or fails to; `left` is what it was told when the front left it."""

    def __init__(self, *failures: Exception, **software: Any) -> None:
        self.failures, self.left, self.maker = list(failures), list[bool](), ""
        self.said = asdict(Software.here()) | {"fronts": []} | software
        for name in ("software", "ready", "state", "part"):
            setattr(self, name, SimpleNamespace(remote=getattr(self, f"_{name}")))

    async def _software(self) -> dict[str, Any]:
        return {"maker": self.maker} | self.said

    async def _ready(self, front: str) -> dict[str, Any]:
        if self.failures:
            raise self.failures.pop(0)
        return {"card": CARD.model_dump(mode="json"), "memory_bytes": 7}

    async def _state(self, front: str) -> dict[str, Any]:
        return {"memory_bytes": 7}

    def _part(self, front: str, end: bool) -> None:
        self.left.append(end)


class Stand:
    """In the place of a cluster: hands out actors by name, and new ones for those that were killed."""

    front, is_own, size = "front", False, 2

    def __init__(self, *actors: Actor) -> None:
        self.actors, self.named, self.killed = list(actors), dict[str, Actor](), list[Actor]()
        errors = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
        self.ray = SimpleNamespace(exceptions=errors, kill=self._kill)

    def actor(self, name: str, device: str, maker: str, *_: Any) -> Actor:
        if name not in self.named:
            self.named[name] = self.actors.pop(0) if self.actors else Actor()
            self.named[name].maker = self.named[name].maker or maker
        return self.named[name]

    def threads(self) -> int:
        return 1

    def _kill(self, actor: Actor) -> None:
        self.killed.append(actor)
        self.named = {name: own for name, own in self.named.items() if own is not actor}


Make = Callable[..., Keeper]


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Make]:
    """Makes keepers over actors, with little patience; they are stopped in the end."""
    for name in ("AGAIN_S", "BEAT_S", "REFUSED_S", "SCALE_S"):
        monkeypatch.setattr(keeping, name, 0.01)
    monkeypatch.setattr(keeping, "ASKED_S", 0.05)
    monkeypatch.setattr(keeping, "GROW_S", 0.1)
    monkeypatch.setattr(keeping, "SHRINK_S", 0.2)
    made: list[Keeper] = []

    def keeper(*actors: Actor, least: int = 1, most: int = 1) -> Keeper:
        made.append(Keeper(Stand(*actors), Checkpoints(), "nano", Placement("cpu", "float32"), least, most))  # type: ignore[arg-type]
        return made[-1]

    yield keeper
    for own in made:
        await own.stop(end=False)


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not holds():
            await asyncio.sleep(0.005)


async def test_a_load_that_fails_is_told_and_its_replica_ended(make: Make) -> None:
    keeper = make(failed := Actor(OutOfMemory("too large")))
    with pytest.raises(OutOfMemory, match="too large"):
        await keeper.start()
    assert set(keeper._cluster.killed) == {failed}  # type: ignore[attr-defined]


async def test_a_replica_that_was_given_up_is_tried_again(make: Make) -> None:
    keeper = make(Actor(), Actor(OutOfMemory("no room now")), least=2, most=2)
    states: list[str] = []
    touch = keeper.members.touch

    def note() -> None:
        states.append(" ".join(own.state for own in keeper.members))
        touch()

    keeper.members.touch = note  # type: ignore[method-assign]
    await keeper.start()
    await until(lambda: len(keeper.members.ready()) == 2)
    assert any("refused" in own for own in states) and not keeper.members.hopeless


async def test_a_replica_lost_while_it_loads_is_started_again(make: Make) -> None:
    keeper = make(Actor(RayError("its process was killed"), RayError("again")))
    await keeper.start()
    assert len(keeper.members.ready()) == 1


async def test_a_replica_of_another_version_is_replaced_unless_another_server_uses_it(make: Make) -> None:
    left, used = Actor(package="0.0.1"), Actor(package="0.0.1", fronts=["another"])
    left.maker = used.maker = "earlier"
    keeper = make(left)
    await keeper.start()
    assert keeper._cluster.killed == [left]  # type: ignore[attr-defined]
    keeper = make(used)
    with pytest.raises(keeping.Refused, match=r"package 0\.0\.1, .* this server package"):
        await keeper.start()
    assert keeper._cluster.killed == []  # type: ignore[attr-defined]
    await keeper.stop(end=True)
    assert used.left == [], "it is left to the other server"


async def test_replicas_follow_the_work_that_waits(make: Make) -> None:
    keeper, task = make(first := Actor(), most=2), image_task()
    await keeper.start()
    [one] = keeper.members
    one.attempts = {Attempt(task, 9.0, started=True) for _ in range(keeping.CROWDED)}
    assert not keeper.has_room(task, 0)
    await asyncio.sleep(0.3)
    assert len(keeper.members.all) == 1, "what waited was asked for once only: it was cancelled"
    await until(lambda: not keeper.has_room(task, 0) and len(keeper.members.all) == 2)
    await until(lambda: len(keeper.members.ready()) == 2)
    assert keeper.has_room(task, 0) and keeper.members.choose(task) is not one
    one.attempts = set()
    await until(lambda: len(keeper.members.all) == 1)
    assert keeper.members.all == [one] and first.left == []


async def test_no_ready_replica_is_ended_for_one_that_is_lost(make: Make) -> None:
    keeper = make(least=1, most=2)
    await keeper.start()
    keeper._add()
    await until(lambda: len(keeper.members.ready()) == 2)
    lost, kept = keeper.members
    lost.state, lost.actor = "lost", None
    keeper._tasks[lost].cancel()
    await asyncio.sleep(0.4)
    assert kept in keeper.members.ready()


@pytest.mark.parametrize(("others", "ends"), [((), True), (("another",), False)])
async def test_a_replica_ends_with_the_last_server_that_lets_go_of_it(
    others: tuple[str, ...], ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[bool] = []

    monkeypatch.setattr("server.replicas.replica._end_for_good", lambda: ended.append(True))
    monkeypatch.setattr("server.replicas.replica.POLL_S", 0.01)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray sets it
    loaded = SimpleNamespace(card=CARD, memory_bytes=lambda: 0)
    factory: Any = SimpleNamespace(load=lambda *_: loaded)
    replica = Replica("maker", factory, "nano", Placement(), 3)
    assert os.environ["OMP_NUM_THREADS"] == "3"
    for front in ("front", *others):
        assert ModelCard.model_validate((await replica.ready(front))["card"]) == CARD
    await replica.part("front", True)
    await asyncio.sleep(0.2)
    assert bool(ended) is ends
    replica._last_seen = time.monotonic() - 10_000  # its thread ends once it is alone
    await until(lambda: ended)


async def test_a_task_that_is_cancelled_while_the_model_loads_leaves_the_replica_well() -> None:
    may_load = threading.Event()
    loaded = SimpleNamespace(card=CARD, memory_bytes=lambda: 0)
    factory: Any = SimpleNamespace(load=lambda *_: may_load.wait(10) and loaded)
    replica = Replica("maker", factory, "nano", Placement(), 1)
    sent = SentTask(image_task(), ())
    running = asyncio.ensure_future(anext(replica.run("front", "request", sent, False)))  # type: ignore[arg-type]
    await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    may_load.set()
    assert (await asyncio.wait_for(replica.ready("front"), 10))["model"] == "nano"


def test_replicas_have_the_cores_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    assert [Cluster(None, size).threads() for size in (1, 2, 3, 40)] == [16, 8, 5, 1]
    cluster = Cluster("there", 4)
    machines = [{"CPU": 8.0}, {"CPU": 12.0}, {"memory": 1.0}]
    nodes = [{"Alive": True, "Resources": own} for own in machines]
    monkeypatch.setattr(Cluster, "ray", SimpleNamespace(nodes=lambda: nodes, cluster_resources=dict))
    assert cluster.threads() == 4
