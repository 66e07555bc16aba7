"""One task on its way to an outcome: attempts on replicas, moves after a loss, hedges after a silence.

A task has one seed, so that it gives the same picture wherever it is done. So a task whose replica is lost is
sent to another one (a move), and one of which nothing is heard for long is given to a second one, too (a
hedge): the first outcome counts. Neither changes the result or its record.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from omnigen2.checkpoints.card import Limits
from omnigen2.task import Cancelled, Outcome, Progress, Task, Ticket
from server.log import get_logger
from server.replicas.members import Attempt, Member, Members, no_replica, tokens
from server.replicas.replica import Failed, News
from server.replicas.sending import Missing, SentTask, adapters_of
from tools.base import ToolError

MOVES = 12
"""Times that a task is sent again; one that is lost more often may be what ends the replicas."""
PATIENCE_S = 60.0
"""Seconds for which a task waits when there is no replica, and none is loading its model."""
HEDGE_S = 10.0
"""Least seconds without news of a task after which another replica is given it, too."""
HEDGE_FACTOR = 4.0
"""The same, as a multiple of the longest silence of a task so far."""
POLL_S = 1.0
"""Seconds until a replica is looked for again."""
ORDER = ("encode", "denoise", "write", "decode")
"""Stages of a task in their order; the others are said of any of them."""
log = get_logger(__name__)


class StreamEnded(Exception):
    """A replica ended the stream of a task without an outcome."""


@dataclass(eq=False)
class RemoteTicket(Ticket):
    """A ticket whose `cancel` also reaches the replica."""

    drop: Callable[[], object] = lambda: None
    heard: float = field(default_factory=time.monotonic)
    """When there was the last news of it."""

    def cancel(self) -> None:
        super().cancel()
        self.drop()


@dataclass(frozen=True)
class Route:
    """What deliveries of one model share."""

    ray: Any
    front: str
    """Name of this server, for the replicas."""
    members: Members
    limits: Limits
    pack: Callable[[Task, set[str]], SentTask]
    """See `Sender.pack`; called in a worker thread."""
    lost: Callable[[Member], None]
    """Called with a replica that failed."""


class Delivery:
    """Brings one ticket to its outcome. For the cluster's event loop."""

    def __init__(self, route: Route, ticket: RemoteTicket) -> None:
        self._route = route
        self._ticket = ticket
        self._running: dict[asyncio.Task[Outcome], Member] = {}
        self._moves = 0
        self._ahead = (0, 0)
        """The furthest progress that was reported."""
        self._longest_silence = 0.0

    async def outcome(self, placed: Callable[[], None]) -> Outcome:
        """The first outcome of the task. Calls `placed` once a replica counts it among its tasks.

        Raises:
            ToolError: `not_ready`: no replica is left, or it was lost too often.
            Exception: what the model raised.
        """
        try:
            self._begin(await self._replica())
            placed()
            while True:
                for attempt in await self._some_end():
                    member = self._running.pop(attempt)
                    error = attempt.exception()
                    if error is None:
                        members = self._route.members
                        members.longest_silence = max(members.longest_silence, self._longest_silence)
                        return attempt.result()
                    self._lose(member, error)
                if not self._running:
                    self._report_move()
                    self._begin(await self._replica())
        finally:
            for attempt in self._running:
                attempt.cancel()

    async def _replica(self) -> Member:
        """The replica for the task, waiting for one if there is none. Raises ToolError as `outcome`."""
        members, since = self._route.members, time.monotonic()
        while (member := members.choose(self._ticket.task)) is None:
            if not members.hopeless:
                since = time.monotonic()
            elif time.monotonic() - since > PATIENCE_S:
                raise no_replica()
            with suppress(TimeoutError):
                await asyncio.wait_for(members.changed.wait(), POLL_S)
        return member

    def _begin(self, member: Member) -> None:
        attempt = Attempt(self._ticket.task, tokens(self._ticket.task, self._route.limits))
        member.attempts.add(attempt)
        self._ticket.heard = time.monotonic()
        running = asyncio.create_task(self._attempt(member, attempt))
        running.add_done_callback(lambda own: own.cancelled() or own.exception())  # nobody may ask for it
        self._running[running] = member

    async def _some_end(self) -> "set[asyncio.Task[Outcome]]":
        """Wait until an attempt has ended. When nothing is heard for long, begin another one."""
        members = self._route.members
        while True:
            patience = max(HEDGE_S, HEDGE_FACTOR * members.longest_silence)
            left = patience - (time.monotonic() - self._ticket.heard)
            done, _ = await asyncio.wait(
                self._running, timeout=max(left, POLL_S), return_when=asyncio.FIRST_COMPLETED
            )
            if done:
                return done
            if left <= POLL_S and len(self._running) == 1:
                [slow] = self._running.values()
                other = members.choose(self._ticket.task, instead_of=slow)
                if other is not None:
                    log.info("a silent task is given to a second replica", slow=slow.name, to=other.name)
                    self._begin(other)

    def _lose(self, member: Member, error: BaseException) -> None:
        """An attempt failed: return if the task can be sent again, and raise why otherwise."""
        route = self._route
        if isinstance(error, Missing):
            member.adapters.clear()
        elif isinstance(error, StreamEnded) or is_lost(route.ray, error):
            route.lost(member)
        else:
            raise error
        self._moves += 1
        log.info("a task was lost", replica=member.name, moves=self._moves, reason=repr(error)[:200])
        if self._moves > MOVES:
            raise ToolError(
                "not_ready",
                f"The model's processes were lost {self._moves} times while they worked on this request.",
                "Send it again in a minute. If it fails again, ask the host to run `omnigen2-mcp doctor`.",
                60,
            ) from error

    def _report_move(self) -> None:
        self._ahead = (0, 0)
        self._ticket.on_progress(Progress("moved"))

    # -- one attempt ----------------------------------------------------------------------------------

    async def _attempt(self, member: Member, attempt: Attempt) -> Outcome:
        """Have one replica do the task. Cancelling this, or its failure, ends the work there."""
        route, ticket, stream = self._route, self._ticket, None
        request = secrets.token_hex(8)
        try:
            sent = await asyncio.to_thread(route.pack, ticket.task, set(member.adapters))
            run = member.actor.run.options(num_returns="streaming")
            stream = run.remote(route.front, request, sent, ticket.wants_preview.is_set())
            async for ref in stream:
                news: News = await ref
                if isinstance(news, Progress):
                    self._hear(member, attempt, request, news)
                    continue
                stream = None  # it has ended
                if isinstance(news, Failed):  # nobody here cancelled it: the replica did, out of contact
                    raise StreamEnded if isinstance(news.error, Cancelled) else news.error
                member.adapters.update(own.adapter.digest for own in adapters_of(ticket.task))
                return news
            stream = None
            raise StreamEnded
        finally:
            member.attempts.discard(attempt)
            route.members.touch()
            if stream is not None:
                with suppress(Exception):  # it is lost, and so is what it would have cancelled
                    route.ray.cancel(stream)

    def _hear(self, member: Member, attempt: Attempt, request: str, progress: Progress) -> None:
        """Take in progress of an attempt; report it unless another attempt is further."""
        now, ticket = time.monotonic(), self._ticket
        if attempt.started:
            self._longest_silence = max(self._longest_silence, now - ticket.heard)
        ticket.heard = now
        if not attempt.started:
            attempt.started = True
            self._route.members.touch()
        if progress.steps:
            whole = tokens(ticket.task, self._route.limits)
            attempt.tokens_left = whole * (1 - progress.step / progress.steps)
        if progress.preview is not None:
            ticket.wants_preview.clear()
        elif ticket.wants_preview.is_set():
            member.actor.want_preview.remote(request)
        if progress.stage in ORDER:
            position = (ORDER.index(progress.stage), progress.step)
            if position < self._ahead:
                return
            self._ahead = position
        ticket.on_progress(progress)


def is_lost(ray: Any, error: BaseException) -> bool:
    """Whether an error means that a replica, or what it needs, is gone; not that it answered with it."""
    failed = ray.exceptions
    cause = getattr(error, "cause", None) if isinstance(error, failed.RayTaskError) else error
    return isinstance(cause, failed.RayError)
