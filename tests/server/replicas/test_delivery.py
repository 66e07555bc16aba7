"""Routing, moves and hedges, with replicas that are stand-ins: no Ray, no model."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from omnigen2.checkpoints.card import Limits
from omnigen2.task import Cancelled, Outcome, Progress, Task
from server.replicas import delivery
from server.replicas.backend import RemoteBackend
from server.replicas.delivery import MOVES, Delivery, RemoteTicket, Route
from server.replicas.members import Attempt, Member, Members
from server.replicas.sending import Missing, SentTask
from tests.server.replicas.tasks import image_task
from tools.base import ToolError

pytestmark = pytest.mark.anyio
DONE = Outcome(text="done")
END = "the stream ends"


class RayError(Exception):
    """Something was lost."""


class RayTaskError(RayError):
    """Something failed over there."""


class FakeRay:
    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self) -> None:
        self.cancelled = 0

    def cancel(self, stream: object) -> None:
        self.cancelled += 1


class Actor:
    """A replica that says `news`, and then waits for ever, fails, or is done."""

    def __init__(self, *news: Any) -> None:
        self.news, self.runs = news, 0
        self.then: list[tuple[Any, ...]] = []
        """What it says in the next runs."""
        self.run = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=self._stream))

    async def _stream(self, *_: Any) -> AsyncIterator[Any]:
        self.runs += 1
        news, self.news = self.news, self.then.pop(0) if self.then else self.news
        for each in news:
            if each is END:
                return
            yield self._said(each)
        yield asyncio.get_running_loop().create_future()

    async def _said(self, news: Any) -> Any:
        if isinstance(news, Exception):
            raise news
        return news


def made(members: Members, *actors: Actor) -> tuple[Delivery, FakeRay, list[Progress]]:
    for number, actor in enumerate(actors):
        members.all.append(Member(str(number), actor, state="ready"))
    ray, heard = FakeRay(), list[Progress]()

    def pack(task: Task, known: set[str]) -> SentTask:
        return SentTask(task, ())

    route = Route(ray, "front", members, Limits(), pack, lambda member: setattr(member, "state", "lost"))
    return Delivery(route, RemoteTicket(image_task(), heard.append)), ray, heard


def placed(*_: object) -> None:
    """Nobody has to know."""


async def test_a_lost_task_moves_to_another_replica() -> None:
    members = Members()
    lost, well = Actor(Progress("encode"), RayError()), Actor(Progress("encode"), DONE)
    own, _, heard = made(members, lost, well)
    assert await own.outcome(placed) is DONE
    assert [progress.stage for progress in heard] == ["encode", "moved", "encode"]
    assert [member.attempts for member in members] == [set(), set()]


async def test_progress_is_reported_in_order_and_a_pause_at_any_time() -> None:
    steps = [Progress("encode"), Progress("denoise", 1, 4), Progress("paused"), Progress("denoise", 2, 4)]
    own, _, heard = made(Members(), Actor(*steps, DONE))
    assert await own.outcome(placed) is DONE
    assert heard == steps


async def test_a_replica_that_cannot_load_its_model_again_is_left_for_another() -> None:
    own, _, heard = made(Members(), Actor(END), Actor(DONE))
    assert await own.outcome(placed) is DONE
    assert heard == [Progress("moved")]


async def test_what_a_model_raises_is_no_loss() -> None:
    own, _, heard = made(Members(), Actor(delivery.Failed(ValueError("prompt"))), Actor(DONE))
    with pytest.raises(ValueError, match="prompt"):
        await own.outcome(placed)
    assert heard == []


async def test_a_task_that_is_always_lost_is_given_up() -> None:
    members = Members()
    own, _, _ = made(members, actor := Actor(RayError()))
    object.__setattr__(own._route, "lost", placed)  # it is found again at once
    with pytest.raises(ToolError) as refused:
        await own.outcome(placed)
    assert (refused.value.code, refused.value.retry_after_s) == ("not_ready", 60)
    assert actor.runs == MOVES + 1


async def test_a_task_that_its_replica_dropped_out_of_contact_is_sent_again() -> None:
    own, _, heard = made(Members(), Actor(delivery.Failed(Cancelled())), well := Actor(DONE))
    assert await own.outcome(placed) is DONE
    assert well.runs == 1 and [progress.stage for progress in heard] == ["moved"]


async def test_an_adapter_that_a_replica_lacks_is_sent_to_the_same_one() -> None:
    members = Members()
    own, _, _ = made(members, lacking := Actor(delivery.Failed(Missing("an adapter"))))
    [member] = members
    member.adapters.add("digest")
    lacking.then = [(DONE,)]
    assert await own.outcome(placed) is DONE
    assert lacking.runs == 2 and member.adapters == set() and member.state == "ready"


@pytest.mark.parametrize("when", ["before it began", "while it runs"])
async def test_a_cancelled_task_is_answered_and_its_stream_ended(when: str) -> None:
    members, loop = Members(), asyncio.get_running_loop()
    own, ray, _ = made(members, actor := Actor(Progress("encode")))
    cluster: Any = SimpleNamespace(
        ray=ray, front="front", loop=loop, submit=lambda work: asyncio.run_coroutine_threadsafe(work, loop)
    )
    keeper: Any = SimpleNamespace(card=SimpleNamespace(limits=Limits()), members=members, lost=placed)
    backend = RemoteBackend(cluster, keeper)
    backend._route = own._route
    ticket = backend.submit(image_task(), lambda _: None)
    if when == "while it runs":
        async with asyncio.timeout(10):
            while not actor.runs:
                await asyncio.sleep(0.001)
    ticket.cancel()
    with pytest.raises(Cancelled):
        await asyncio.wait_for(asyncio.wrap_future(ticket.future), 10)
    await asyncio.sleep(0.01)
    assert ray.cancelled == actor.runs and not backend.busy() and members.all[0].attempts == set()


async def test_a_server_whose_own_ray_broke_down_says_that_it_stalls() -> None:
    cluster: Any = SimpleNamespace(ray=FakeRay(), front="front", is_own=True)
    members = Members()
    made(members, Actor())
    keeper: Any = SimpleNamespace(card=SimpleNamespace(limits=Limits()), members=members, lost=placed)
    backend = RemoteBackend(cluster, keeper)
    members.touch()
    assert backend.stalled_s() == 0.0
    members.all[0].state = "lost"
    members.touch()
    await asyncio.sleep(0.01)
    members.touch()
    assert backend.stalled_s() >= 0.01
    cluster.is_own = False  # what is lost may come back
    assert backend.stalled_s() == 0.0


async def test_without_any_replica_a_task_is_refused_with_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "PATIENCE_S", 0.0)
    monkeypatch.setattr(delivery, "POLL_S", 0.01)
    own, _, _ = made(Members())
    with pytest.raises(ToolError) as refused:
        await own.outcome(placed)
    assert refused.value.code == "not_ready" and refused.value.retry_after_s


async def test_a_silent_task_is_given_to_a_second_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "HEDGE_S", 0.05)
    monkeypatch.setattr(delivery, "POLL_S", 0.01)
    silent, quick = Actor(Progress("encode")), Actor(DONE)
    own, ray, heard = made(Members(), silent, quick)
    assert await own.outcome(placed) is DONE
    await asyncio.sleep(0.01)
    assert (silent.runs, quick.runs, ray.cancelled) == (1, 1, 1)
    assert "moved" not in [progress.stage for progress in heard]


async def test_the_replica_with_the_fewest_outstanding_tokens_is_next() -> None:
    members, task = Members(), image_task()
    made(members, Actor(), Actor(), Actor())
    one, two, three = members.all
    one.attempts = {Attempt(task, 10.0, started=True), Attempt(task, 10.0, started=True)}
    two.attempts = {Attempt(task, 500.0, started=True)}
    three.attempts = {Attempt(task, 1.0)}  # it has not begun with that one: no room
    assert members.choose(task) is one and members.choose(task, instead_of=one) is two
    one.state = "silent"
    assert members.with_room(task) == [], "the busy one is not burdened while another is about to begin"
    assert members.choose(task) is three
