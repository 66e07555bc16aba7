"""The tasks of one kind that are under way: who joins, who is suspended, how each of them ends.

A task joins beside others that have less than twice its own work before them, as far as there is room; those
that have more do not count, as they take turns with it. So it never waits for a task that is much longer than
itself, and there is still a bound to how many run at once.

When memory runs out beside others, a task is suspended, or is not begun, until one of them has left.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from omnigen2.cost import cost
from omnigen2.engine.device_memory import DeviceMemory
from omnigen2.engine.tickets import Tickets, explained, too_big
from omnigen2.memory.device import is_out_of_memory
from omnigen2.pipeline import Pipeline
from omnigen2.task import Cancelled, ImageTask, Outcome, TextTask, Ticket

MUCH_LONGER = 2
"""How many times its own work a running task has before it that a waiting one does not wait for."""


@dataclass(eq=False)
class Running(ABC):
    """A task under way. `size` is what it takes of the room there is, `work` its cost as a whole."""

    ticket: Ticket
    size: int
    work: float
    started: float
    """From when its steps, or its text, are timed, by `time.perf_counter`."""
    retrying: bool
    """Whether its last step ran out of memory."""

    @property
    @abstractmethod
    def done(self) -> bool:
        """Whether it takes no further step."""

    @property
    @abstractmethod
    def share_left(self) -> float:
        """The share of its work that is before it."""


K = TypeVar("K", ImageTask, TextTask)
R = TypeVar("R", bound=Running)


class RunningTasks(ABC, Generic[K, R]):
    """The tasks of one kind that a model works on. Only `has_room` may be called by any thread."""

    kind: type[K]

    def __init__(
        self,
        pipeline: Pipeline,
        tickets: Tickets,
        memory: DeviceMemory,
        room: int,
        company: Callable[[], bool],
    ):
        """`room`: the sum of sizes up to which tasks join; `company`: whether tasks of another kind run."""
        self._pipeline = pipeline
        self._tickets = tickets
        self._memory = memory
        self._room = room
        self._company = company
        self._crowded_at = -1  # how many tickets were answered when there was no memory for one more
        self._step_seconds = 0.0
        # Other threads read these two; they are replaced, never changed in place.
        self._running: tuple[R, ...] = ()
        self._suspended: tuple[R, ...] = ()

    def __bool__(self) -> bool:
        return bool(self._running or self._suspended)

    @property
    def running(self) -> bool:
        """Whether a task takes part in steps; one that is suspended does not."""
        return bool(self._running)

    def turn(self) -> bool:
        """Let waiting tasks join, go on with the running ones, end those that are done.

        Returns False if there was nothing to do.
        """
        joined = self._let_in()
        moving = [entry for entry in self._running if not entry.done]
        if moving:
            self._step(moving)
        finished = [entry for entry in self._running if entry.done]
        for entry in finished:
            self._finish(entry)
        return bool(joined or moving or finished)

    def clear(self) -> None:
        """Drop all tasks, unanswered; asks nothing of the device, which may have failed."""
        self._running = self._suspended = ()

    def has_room(self, task: K) -> bool:
        """Whether a task would join at once."""
        return self._tickets.first(self.kind) is None and self._fits(task)

    def drop_cancelled(self) -> None:
        """Drop the tasks that were cancelled, running or suspended."""
        for entry in (*self._running, *self._suspended):
            if entry.ticket.cancelled.is_set():
                self._fail(entry, Cancelled("cancelled"))

    # -- what the kinds differ in ---

    @abstractmethod
    def _size(self, task: K) -> int:
        """What a task takes of the room."""

    @abstractmethod
    def _begun(self, ticket: Ticket, task: K) -> R:
        """Prepare a task. May raise anything."""

    @abstractmethod
    def _step(self, moving: Sequence[R]) -> None:
        """Go on with some or all of the tasks that are not done."""

    @abstractmethod
    def _outcome(self, entry: R) -> Outcome:
        """What came out of a task that is done. May raise anything."""

    @abstractmethod
    def _joined(self, entry: R) -> None:
        """A task takes part in the next step."""

    @abstractmethod
    def _left(self, entry: R) -> None:
        """A task takes no part in further steps."""

    # -- who joins ---

    def _fits(self, task: K) -> bool:
        if self._crowded:
            return False
        bound = MUCH_LONGER * self._work(task)
        others = (*self._running, *self._suspended)
        nearer = [each.size for each in others if each.work * each.share_left < bound]
        return not nearer or sum(nearer) + self._size(task) <= self._room

    @property
    def _crowded(self) -> bool:
        """Whether there was no memory for one more, and no task has left since."""
        return self._crowded_at == self._tickets.answered and self._in_company()

    def _in_company(self) -> bool:
        """Whether a task that is not running shares the device's memory with others."""
        return bool(self._running) or self._company()

    def _work(self, task: K) -> float:
        try:
            return cost(task, self._pipeline.card.limits)
        except Exception:  # what is wrong with it is said when it begins
            return 0.0

    def _let_in(self) -> int:
        """Let suspended and waiting tasks join, for about as long as a step takes; how many were taken."""
        suspended = () if self._crowded else self._suspended
        self._suspended = self._suspended[len(suspended) :]
        for entry in suspended:
            self._join(entry)
        began, count = time.perf_counter(), len(suspended)
        while not count or time.perf_counter() - began <= self._step_seconds:
            ticket = self._tickets.first(self.kind)
            if ticket is None or not self._fits(ticket.task):  # pyright: ignore[reportArgumentType]
                break
            self._tickets.take(ticket)
            self._begin(ticket, ticket.task)  # pyright: ignore[reportArgumentType]
            count += 1
        return count

    def _begin(self, ticket: Ticket, task: K) -> None:
        try:
            entry = self._memory.survive(lambda: self._begun(ticket, task))
        except BaseException as error:
            if not (is_out_of_memory(error) and self._in_company()):
                self._tickets.answer(ticket, explained(error))
                return
        else:
            self._join(entry)
            return
        self._memory.free()
        self._crowded_at = self._tickets.answered
        self._tickets.put_back(ticket)

    def _join(self, entry: R) -> None:
        self._running = (*self._running, entry)
        self._joined(entry)

    # -- who leaves ---

    def _remove(self, entry: R) -> None:
        self._running = tuple(other for other in self._running if other is not entry)
        self._left(entry)

    def _suspend(self, entry: R) -> None:
        """Let a task wait until another has left, and there may be memory for it."""
        self._remove(entry)
        self._suspended = (*self._suspended, entry)
        self._crowded_at = self._tickets.answered

    def _shrink(self, chosen: Sequence[R]) -> None:
        """After a step of these ran out of memory: free caches, and suspend the youngest if there are others.

        One that is alone is tried again. If that does not help, less of the model stays on the device.
        """
        self._memory.free()
        youngest = chosen[-1]
        if len(self._running) > 1 or self._company():
            self._suspend(youngest)
        elif not youngest.retrying:
            youngest.retrying = True
        elif self._memory.can_lower:
            self._memory.lower()
        else:
            self._fail(youngest, too_big())

    def _fail(self, entry: R, error: BaseException) -> None:
        self._suspended = tuple(other for other in self._suspended if other is not entry)
        self._remove(entry)
        self._tickets.answer(entry.ticket, explained(error))

    def _finish(self, entry: R) -> None:
        """Answer a task that is done."""
        self._remove(entry)
        try:
            outcome = self._memory.survive(lambda: self._outcome(entry))
        except BaseException as error:
            if not (is_out_of_memory(error) and self._in_company()):
                self._tickets.answer(entry.ticket, explained(error))
                return
        else:
            self._tickets.answer(entry.ticket, outcome)
            return
        self._memory.free()
        self._suspend(entry)
