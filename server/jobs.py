"""A job: one piece of work on its way through the queue and the model, and its state.

Jobs and their lanes are the only things in the server that change while others watch. They change on the
event loop only.
"""

import secrets
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal

import anyio
from PIL.Image import Image

from omnigen2.cost import input_pixels
from omnigen2.task import Backend, Outcome, Progress, TextTask, Ticket
from tools.base import JobError, JobState, JobStatus, Result, ToolError, Work

HISTORY = 16
"""Steps that are kept for a client that reads its progress slowly."""


@dataclass(eq=False)
class Job:
    """One piece of work, whose it is, and how far it has come."""

    work: InitVar[Work]
    model: str
    principal: str
    client: str
    cost: float = 1.0
    """The work in it, as its model estimates it."""
    id: str = field(default_factory=lambda: f"job_{secrets.token_hex(8)}")
    picture: Image | None = None
    """Its newest preview."""
    ticket: Ticket | None = None
    backend: Backend | None = None
    """The model that has room for it."""
    failure: Exception | None = None
    """Why it could not be started."""
    background: bool = False
    """Whether its caller did not want to wait."""
    stopped: Literal["cancelled", "interrupted", None] = None
    """The final state that `stop` asked for; None if it was not asked to stop."""
    overtaken: float = 0.0
    """The work of the jobs that went before it when it was next."""

    def __post_init__(self, work: Work) -> None:
        self.tool, self.task, self.accepted = work.tool, work.task, work.accepted
        self.pixels = input_pixels(work.task)
        self.is_text = isinstance(work.task, TextTask)
        self.status = JobStatus.new(self.id)
        """Its state, but for what its lane estimates; `Lane.status` has it all."""
        self.scope = anyio.CancelScope(shield=True)  # only `stop` cancels it
        self.holds = ExitStack()
        """Keeps its inputs from being collected."""
        self.decoded = False
        """Whether its inputs count among the decoded ones."""
        self.called = anyio.Event()
        """The model has room for it, or it cannot be started."""
        self.completed = anyio.Event()
        """The model is done with it."""
        self.ended = anyio.Event()
        """It has ended, and the journal has its end."""
        self.created = time.monotonic()
        self.load_s = 0.0
        self.queued_s = 0.0
        self.version = 0
        self.listeners = 0
        """Callers that follow every step."""
        self.step_s: float | None = None
        """Measured seconds per step."""
        self._step_at: float | None = None
        self._change = anyio.Event()
        self._history: deque[tuple[int, JobStatus]] = deque(maxlen=HISTORY)

    # -- watching it ----------------------------------------------------------------------------------

    @property
    def state(self) -> JobState:
        return self.status.status

    def waited(self) -> dict[str, float]:
        """Milliseconds by reason for waiting."""
        return {"queued_ms": 1000 * self.queued_s, "load_ms": 1000 * self.load_s}

    async def changed(self, since: int) -> None:
        """Wait until its version is no longer `since`."""
        while self.version == since:
            await self._change.wait()

    def history(self, since: int) -> list[tuple[int, JobStatus]]:
        """Version and status after each step since the version `since`, oldest first; at most `HISTORY`.

        Kept while somebody listens (`Lane.listening`).
        """
        return [(version, status) for version, status in self._history if version > since]

    # -- changing it ----------------------------------------------------------------------------------

    def change(self, **fields: Any) -> None:
        """Change fields of its status, and wake everyone who waits for a change."""
        self.status = self.status.changed(**fields)
        self.touch()

    def touch(self) -> None:
        """Wake everyone who waits for a change."""
        self.version += 1
        self._change.set()
        self._change = anyio.Event()

    def start(self, ticket: Ticket) -> None:
        """The model has taken it from the queue."""
        self.ticket = ticket
        self.queued_s = time.monotonic() - self.created - self.load_s
        self.change(status="running")

    def advance(self, progress: Progress, when: float) -> float | None:
        """Apply progress made at `when` (monotonic clock); return the seconds per step, None if unknown.

        No effect after the job has ended.
        """
        if self.state != "running":
            return None
        took, before = None, self.status
        if self._step_at is not None and progress.step > max(1, before.step):
            took = (when - self._step_at) / (progress.step - before.step)
        self._step_at = None if progress.stage == "paused" else when
        self.picture = progress.preview or self.picture
        fields: dict[str, Any] = {"stage": progress.stage}
        if progress.steps:  # a stage without steps does not take back those that were done
            fields |= {"step": progress.step, "steps": progress.steps}
        self.status = before.changed(**fields)
        return took

    def record(self, status: JobStatus) -> None:
        """Add a status to the history."""
        self.touch()
        self._history.append((self.version, status))

    def call(self, backend: Backend) -> None:
        """Tell it that the model has room for it."""
        self.backend = backend
        self.called.set()

    def fail(self, error: Exception) -> None:
        """Tell it that it cannot be started."""
        self.failure = error
        self.called.set()

    async def turn(self) -> Backend:
        """Wait until a model has room for it; raises why it cannot be started."""
        await self.called.wait()
        self.called = anyio.Event()
        if self.failure is not None:
            raise self.failure
        assert self.backend is not None
        return self.backend

    def outcome(self) -> Outcome:
        """What the model made, once it completed; raises what went wrong."""
        assert self.ticket is not None
        error = self.ticket.future.exception()
        if error is None:
            return self.ticket.future.result()
        if isinstance(error, Exception):
            raise error
        raise RuntimeError("the model's backend failed as if the process were to end") from error

    def stop(self, state: Literal["cancelled", "interrupted"]) -> None:
        """Have it end as `state` before the next step, unless its result is being stored already."""
        if self.stopped is None:
            self.stopped = state
            self.scope.cancel()

    def end(self, state: JobState, result: Result | None = None, error: ToolError | None = None) -> None:
        """Take its last state and keep its result, but no picture. `ended` is set once that is journaled."""
        failure = JobError.of(error) if error else None
        self.status = self.status.changed(status=state, result=result, error=failure, position=0, stage="")
        self.picture = self.ticket = self.backend = self.failure = None
        self._history.clear()
