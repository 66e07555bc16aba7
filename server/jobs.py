"""A job: one piece of work on its way through the queue and the model, and what is known of it meanwhile.

The only thing in the server that changes while others watch. It is changed on the event loop only; what a
model says on its own thread waits in the job's lane.
"""

import secrets
import time
from asyncio import TimerHandle
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from typing import Literal

import anyio
from PIL.Image import Image

from omnigen2.cost import input_pixels
from omnigen2.task import Backend, Outcome, Progress, TextTask, Ticket
from server.log import get_logger
from server.queue import FairQueue
from tools.base import JobState, JobTimes, Picture, Result, ToolError, Work

log = get_logger(__name__)

LOADING = "load"
"""The stage of a job that waits for its model to be loaded."""
TOLD = 16
"""Steps that are kept for a client that is slow to hear of them."""
UNHEARD = 64
"""News of a model that may wait until somebody wants to know."""
SMOOTHING = 0.3
"""Weight of the newest measurement in an average."""


@dataclass
class Status:
    """A job at one moment; a `JobStatus`."""

    id: str
    state: JobState
    position: int = 0
    stage: str = ""
    step: int = 0
    steps: int = 0
    eta_seconds: float | None = None
    preview: Picture | None = None
    result: Result | None = None
    error: ToolError | None = None


@dataclass(eq=False)
class Job:
    """One piece of work, whose it is, and how far it has come."""

    work: InitVar[Work]
    principal: str
    client: str
    lane: "Lane"
    cost: float = 1.0
    """The work in it, as its model estimates it."""
    id: str = field(default_factory=lambda: f"job_{secrets.token_hex(8)}")
    state: JobState = "queued"
    position: int = 0
    stage: str = ""
    step: int = 0
    steps: int = 0
    preview: Image | None = None
    ticket: Ticket | None = None
    backend: Backend | None = None
    """The model that calls it."""
    failure: Exception | None = None
    """Why it could not even begin."""
    result: Result | None = None
    error: ToolError | None = None
    stopped: Literal["cancelled", "interrupted", None] = None
    """What it was told to become, if it was told to stop."""

    def __post_init__(self, work: Work) -> None:
        self.tool, self.task = work.tool, work.task
        self.pixels = input_pixels(work.task)
        self.is_text = isinstance(work.task, TextTask)
        self.scope = anyio.CancelScope(shield=True)  # only `stop` ends it
        self.at_work = False
        """Whether its pictures count among those that models have."""
        self.noted = anyio.Event()
        """The journal knows that it began, or could not be told."""
        self.called = anyio.Event()
        """The model has room for it, or it cannot begin."""
        self.landed = anyio.Event()
        """The model is done with it."""
        self.ended = anyio.Event()
        self.created = time.monotonic()
        self.load_s = 0.0
        self.queued_s = 0.0
        self.ended_at = 0.0
        self.version = 0
        self.listeners = 0
        """How many want to hear of every step."""
        self._change = anyio.Event()
        self._told: deque[tuple[int, Status]] = deque(maxlen=TOLD)
        self._step_at: float | None = None
        self._step_s: float | None = None

    # -- watching it ----------------------------------------------------------------------------------

    @property
    def loading(self) -> bool:
        """Whether it waits for its model to be loaded."""
        return self.state == "queued" and self.lane.loading is not None

    def status(self, preview: Picture | None = None) -> Status:
        """Where it stands now."""
        self.lane.catch_up()
        return self._status(preview)

    @contextmanager
    def listening(self) -> Generator[None]:
        """Hear at once whenever the model gets further: `changed` wakes up, `told` tells."""
        self.listeners += 1  # before catching up: what is told after that wakes the loop
        self.lane.catch_up()
        try:
            yield
        finally:
            self.listeners -= 1

    def times(self) -> JobTimes:
        """How long it waited."""
        return JobTimes(self.id, 1000 * self.queued_s, 1000 * self.load_s)

    async def changed(self, since: int) -> None:
        """Wait until its version is no longer `since`."""
        while self.version == since:
            await self._change.wait()

    def told(self, since: int) -> list[Status]:
        """Where it stood whenever the model got further after the version `since`; the last ones of many.

        For those who are `listening`.
        """
        return [status for version, status in self._told if version > since]

    def eta_s(self) -> float | None:
        """Estimate of the seconds until it is done; None where nothing was measured."""
        if self.state == "queued":
            return self.lane.wait_s(self)
        if self.state != "running" or self._step_s is None:
            return None
        return self.steps_left * self._step_s

    @property
    def steps_left(self) -> float:
        """Estimate of the steps still to be made: a text mostly ends long before it must."""
        if not self.is_text or self.lane.length is None:
            return self.steps - self.step
        return min(self.steps - self.step, max(1.0, self.lane.length - self.step))

    @property
    def left(self) -> float:
        """The cost of what is still to be done."""
        return self.cost * self.steps_left / self.steps if self.steps else self.cost

    # -- changing it ----------------------------------------------------------------------------------

    def touch(self) -> None:
        """Tell everyone who waits for a change."""
        self.version += 1
        self._change.set()
        self._change = anyio.Event()

    def start(self, ticket: Ticket) -> None:
        """It left the queue: the model has it."""
        self.ticket = ticket
        self.state = "running"
        self.queued_s = time.monotonic() - self.created - self.load_s
        self.touch()

    def advance(self, progress: Progress, when: float) -> None:
        """The model got further, at `when` on the monotonic clock; after its end it cannot."""
        if self.state != "running":
            return
        if self._step_at is not None and progress.step > max(1, self.step):
            took = (when - self._step_at) / (progress.step - self.step)
            self._step_s = smoothed(self._step_s, took)
            self.lane.measure(took)
        self._step_at = when
        self.preview = progress.preview or self.preview
        self.stage = progress.stage
        if progress.steps:  # a stage without steps does not take back those that were done
            self.step, self.steps = progress.step, progress.steps
        if self.listeners:
            self.touch()
            self._told.append((self.version, self._status()))

    def call(self, backend: Backend) -> None:
        """The model has room for it."""
        self.backend = backend
        self.called.set()

    def fail(self, error: Exception) -> None:
        """It cannot begin."""
        self.failure = error
        self.called.set()

    async def turn(self) -> Backend:
        """Wait until a model calls it; raises why it cannot begin."""
        await self.called.wait()
        self.called = anyio.Event()
        if self.failure is not None:
            raise self.failure
        assert self.backend is not None
        return self.backend

    def outcome(self) -> Outcome:
        """What the model made, once it landed; raises what went wrong."""
        assert self.ticket is not None
        error = self.ticket.future.exception()
        if error is None:
            return self.ticket.future.result()
        if isinstance(error, Exception):
            raise error
        raise RuntimeError("the model's backend failed as if the process were to end") from error

    def stop(self, state: Literal["cancelled", "interrupted"]) -> None:
        """Make it end as `state` before the next step. Once its result is being stored, it is too late."""
        if self.stopped is None:
            self.stopped = state
            self.scope.cancel()

    def end(self, state: JobState, result: Result | None = None, error: ToolError | None = None) -> None:
        """It is over; it keeps nothing but its result. `ended` is set when that was written down."""
        self.state, self.result, self.error = state, result, error and error.copy()
        if state == "done" and self.is_text:
            self.lane.length = smoothed(self.lane.length, self.step)
        self.preview = self.ticket = self.backend = self.failure = None
        self._told.clear()
        self.position, self.stage = 0, ""
        self.ended_at = time.monotonic()

    def _status(self, preview: Picture | None = None) -> Status:
        stage = LOADING if self.loading else self.stage
        return Status(
            self.id, self.state, self.position, stage, self.step, self.steps, self.eta_s(), preview,
            self.result, self.error,
        )  # fmt: skip


@dataclass(eq=False)
class Lane:
    """The jobs of one kind for one model: those that wait, and those the model has in hand."""

    model: str
    queue: FairQueue[Job] = field(default_factory=FairQueue[Job])
    running: set[Job] = field(default_factory=set)
    loading: "Future[Backend] | None" = None
    """The model, while it is being loaded."""
    entering: Job | None = None
    """The job that the model called and does not have yet."""
    retry: TimerHandle | None = None
    """When the model is asked again whether it has room."""
    length: float | None = None
    """Measured steps after which texts ended."""
    pace: float | None = None
    """Measured seconds per unit of cost, with as many jobs at once as there were."""
    unheard: deque[tuple[Job, Progress, float]] = field(default_factory=deque[tuple[Job, Progress, float]])
    """What the model said since the loop last listened."""

    def tell(self, job: Job, progress: Progress, when: float) -> bool:
        """A running job got further, at `when` on the monotonic clock. For the model's thread.

        Gives whether the loop must wake up for it and `catch_up`. It should sleep on if nobody waits to hear
        of it: awake, it takes the model's thread a moment of Python.
        """
        self.unheard.append((job, progress, when))
        wanted = job.listeners or self.queue or progress.preview
        return bool(wanted) or len(self.unheard) >= UNHEARD

    def catch_up(self) -> None:
        """Take in what the model said, in the order in which it did."""
        while self.unheard:
            job, progress, when = self.unheard.popleft()
            try:
                job.advance(progress, when)
            except Exception as error:  # a plugin's backend may say anything
                log.warning("progress of a job is ignored", job=job.id, reason=repr(error)[:200])

    def measure(self, step_s: float) -> None:
        """Learn the pace from a step that took so long and served all that are running."""
        done = sum(job.cost / job.steps for job in self.running if job.steps)
        if done:
            self.pace = smoothed(self.pace, step_s / done)

    def wait_s(self, job: Job | None = None) -> float | None:
        """Estimate of the seconds until a waiting job is done; without a job, until nothing waits or runs."""
        self.catch_up()
        if self.pace is None:
            return None
        ahead = 0.0
        for waiting in self.queue.order():
            ahead += waiting.cost
            if waiting is job:
                break
        return self.pace * (ahead + sum(running.left for running in self.running))

    def place(self) -> None:
        """Tell every waiting job its position."""
        for position, job in enumerate(self.queue.order()):
            if job.position != position:
                job.position = position
                job.touch()


def smoothed(average: float | None, newest: float) -> float:
    """A running average."""
    return newest if average is None else average + SMOOTHING * (newest - average)
