"""The tickets that an engine has not answered yet: some wait, the others are being worked on.

Every access takes one lock, so any thread may call anything here. Client code, the callbacks of a future,
runs outside of it.
"""

import logging
import threading
import time
import traceback
from collections import deque
from types import UnionType

from omnigen2.memory.device import is_out_of_memory
from omnigen2.task import Cancelled, ImageTask, Outcome, OutOfMemory, Progress, Task, TextTask, Ticket

log = logging.getLogger(__name__)

LOOK_S = 0.2
"""Seconds between looks for cancelled tickets while all work stands still."""
Kind = type[ImageTask] | type[TextTask] | UnionType


def resolve(ticket: Ticket, answer: Outcome | Exception) -> None:
    """Resolve the future of a ticket; what its callbacks raise is logged."""
    try:
        if isinstance(answer, Outcome):
            ticket.future.set_result(answer)
        else:
            ticket.future.set_exception(answer)
    except BaseException:  # one client's callback must not affect the others
        log.exception("a future was already resolved, or its callback failed")


class Tickets:
    """Tickets from `submit` to `answer`. Safe for use by several threads at once."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Ticket] = deque()
        self._taken: list[Ticket] = []
        self._closed = False
        self._paused = False
        self.answered = 0
        """How many were answered."""
        self._last_progress = time.monotonic()

    def submit(self, ticket: Ticket) -> None:
        """Add a ticket at the end of those that wait. Raises Cancelled after `close`."""
        with self._changed:
            if self._closed:
                raise Cancelled("the model was unloaded")
            if not self._waiting and not self._taken:
                self._last_progress = time.monotonic()
            self._waiting.append(ticket)
            self._changed.notify_all()

    def wait(self) -> bool:
        """Sleep until a ticket is here, and while paused for at most `LOOK_S` more; False once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting or self._taken)
            if self._paused:
                self._changed.wait_for(lambda: self._closed or not self._paused, LOOK_S)
            return not self._closed

    def pause(self, paused: bool) -> None:
        """Let all work stand still, or go on."""
        with self._changed:
            self._paused = paused
            self._last_progress = time.monotonic()
            self._changed.notify_all()

    @property
    def paused(self) -> bool:
        """Whether all work stands still."""
        return self._paused

    def first(self, kind: Kind) -> Ticket | None:
        """The ticket for such a task that has waited longest."""
        with self._changed:
            return next((ticket for ticket in self._waiting if isinstance(ticket.task, kind)), None)

    def take(self, ticket: Ticket) -> None:
        """Count a waiting ticket among those being worked on."""
        with self._changed:
            self._waiting.remove(ticket)
            self._taken.append(ticket)

    def put_back(self, ticket: Ticket) -> None:
        """Undo `take`: the ticket waits again, first in line."""
        with self._changed:
            self._taken.remove(ticket)
            self._waiting.appendleft(ticket)

    def answer(self, ticket: Ticket, answer: Outcome | Exception) -> None:
        """Remove the ticket, then resolve its future, so that callbacks see the freed capacity."""
        with self._changed:
            self.answered += 1
            for tickets in (self._waiting, self._taken):
                if ticket in tickets:
                    tickets.remove(ticket)
        resolve(ticket, answer)

    def waiting(self, kind: Kind = Task) -> list[Ticket]:
        """The waiting tickets for such tasks, in order."""
        with self._changed:
            return [ticket for ticket in self._waiting if isinstance(ticket.task, kind)]

    def taken(self, kind: Kind = Task) -> list[Ticket]:
        """The tickets being worked on, for such tasks."""
        with self._changed:
            return [ticket for ticket in self._taken if isinstance(ticket.task, kind)]

    def busy(self) -> bool:
        """Whether any ticket is unanswered."""
        with self._changed:
            return bool(self._waiting or self._taken)

    def close(self) -> None:
        """Refuse further tickets and end `wait`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    # -- progress, also for health checks ---

    def report(self, ticket: Ticket, progress: Progress) -> None:
        """Tell a client how far its task is, and note that work went on. Raises what the client does."""
        with self._changed:
            self._last_progress = time.monotonic()
        ticket.on_progress(progress)

    def stalled_s(self) -> float:
        """Seconds since the work went on, or since there is some; 0.0 without work."""
        with self._changed:
            busy = (self._waiting or self._taken) and not self._paused
            return time.monotonic() - self._last_progress if busy else 0.0


def explained(error: BaseException) -> Exception:
    """The error that answers a task: running out of memory becomes `OutOfMemory`.

    The traceback is logged and removed, as it keeps tensors alive for as long as the error is kept.
    """
    if is_out_of_memory(error):
        return too_big()
    if not isinstance(error, Cancelled | ValueError | OSError):
        log.error("a task failed", exc_info=error)
    traceback.clear_frames(error.__traceback__)
    if not isinstance(error, Exception):  # such as SystemExit, which must not end the waiting thread
        return RuntimeError(f"the task ended with {error!r}")
    return error.with_traceback(None)


def too_big() -> OutOfMemory:
    return OutOfMemory("the device has too little memory for this request; ask for a smaller picture")
