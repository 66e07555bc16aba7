"""A `Backend` whose model is loaded in replicas."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from omnigen2.cost import cost
from omnigen2.engine.tickets import resolve
from omnigen2.task import Cancelled, Outcome, Progress, Task, Ticket
from server.log import get_logger
from server.replicas.cluster import Cluster
from server.replicas.delivery import PATIENCE_S, Delivery, RemoteTicket, Route
from server.replicas.keeping import Keeper
from server.replicas.members import no_replica
from server.replicas.sending import Sender
from tools.base import ToolError

CLOSE_S = 5.0
"""Seconds that replicas get to hear that they are not needed any more."""
log = get_logger(__name__)


class RemoteBackend:
    """A model in replicas; a `Backend` (see `omnigen2.task`)."""

    def __init__(self, cluster: Cluster, keeper: Keeper) -> None:
        assert keeper.card is not None
        self.card = keeper.card
        self._cluster = cluster
        self._keeper = keeper
        self._members = keeper.members
        sender = Sender(cluster.ray)
        limits = self.card.limits
        self._route = Route(cluster.ray, cluster.front, self._members, limits, sender.pack, keeper.lost)
        self._lock = threading.Lock()
        self._tickets: set[RemoteTicket] = set()
        self._unplaced: list[Task] = []
        """Tasks that were submitted, and that no replica has yet."""
        self._without_since: float | None = None
        """Since when there is no replica, and none to be expected."""
        self._closed = False

    def submit(self, task: Task, on_progress: Callable[[Progress], None]) -> Ticket:
        """Start the task on the replica with the fewest outstanding tokens.

        Raises:
            Cancelled: the model was unloaded.
        """
        ticket = RemoteTicket(task, on_progress)
        ticket.future.set_running_or_notify_cancel()
        with self._lock:
            if self._closed:
                raise Cancelled("the model was unloaded")
            self._unplaced.append(task)
            self._tickets.add(ticket)
            self._cluster.submit(self._serve(ticket))
        return ticket

    def has_room(self, task: Task) -> bool:
        """Whether a replica would begin with the task at once.

        Raises:
            ToolError: `not_ready`: there has been no replica for a while.
        """
        if not self._members.hopeless:
            self._without_since = None
        elif self._without_since is None:
            self._without_since = time.monotonic()
        elif time.monotonic() - self._without_since > PATIENCE_S:
            raise no_replica()
        with self._lock:
            unplaced = sum(isinstance(each, type(task)) for each in self._unplaced)
        return self._keeper.has_room(task, unplaced)

    def cost(self, task: Task) -> float:
        """Total work of a task (see `omnigen2.cost`)."""
        return cost(task, self.card.limits)

    def busy(self) -> bool:
        """Whether tasks are running or waiting."""
        return bool(self._tickets)

    def stalled_s(self) -> float:
        """Seconds since there was news of any task; 0.0 without work.

        Or since there is no replica, where Ray was started with the server: if that broke down, both must be
        started again.
        """
        since = self._members.hopeless_since
        if since is not None and self._cluster.is_own:
            return time.monotonic() - since
        heard = [ticket.heard for ticket in list(self._tickets)]
        return time.monotonic() - max(heard) if heard else 0.0

    def memory_bytes(self) -> int:
        """Bytes that the model takes on the devices of all replicas."""
        return sum(member.seen.get("memory_bytes", 0) for member in self._members)

    def replicas(self) -> list[dict[str, Any]]:
        """What an operator wants to know of each replica."""
        return self._members.describe()

    def close(self) -> None:
        """Fail what is running with `Cancelled`, and end the replicas."""
        self._stop(end=True)

    def leave(self) -> None:
        """Fail what is running with `Cancelled`; replicas of a cluster stay for the next server."""
        self._stop(end=False)

    def _stop(self, *, end: bool) -> None:
        with self._lock:
            self._closed = True
            running = list(self._tickets)
        for ticket in running:
            ticket.cancel()
        with suppress(Exception):  # the replicas are lost, or do not answer
            self._cluster.submit(self._keeper.stop(end=end)).result(CLOSE_S)

    async def _serve(self, ticket: RemoteTicket) -> None:
        """Answer a ticket, whatever happens. On the cluster's event loop."""

        def placed() -> None:
            with self._lock:
                self._unplaced[:] = [each for each in self._unplaced if each is not ticket.task]

        # What is cancelled is the delivery, not this: a task that was cancelled before its first step never
        # runs, and would leave the ticket without an answer.
        delivery = asyncio.ensure_future(Delivery(self._route, ticket).outcome(placed))
        ticket.drop = lambda: self._cluster.loop.call_soon_threadsafe(delivery.cancel)
        if ticket.cancelled.is_set():
            delivery.cancel()
        answer: Outcome | Exception
        try:
            answer = await delivery
        except asyncio.CancelledError:
            answer = Cancelled("the model was unloaded" if self._closed else "cancelled")
        except Exception as error:
            if not isinstance(error, Cancelled | ValueError | OSError | ToolError):
                log.error("a task failed", exc_info=error)
            answer = error.with_traceback(None)
        placed()
        with self._lock:
            self._tickets.discard(ticket)
        resolve(ticket, answer)
