"""A lane: the waiting and the running jobs of one kind for one model, and estimates of their time.

What a model reports on its own thread is kept here until the event loop takes it in.
"""

import time
from asyncio import TimerHandle
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from omnigen2.task import Backend, Progress
from server.errors import without_folders
from server.jobs import Job
from server.log import get_logger
from server.queue import FairQueue
from tools.base import JobStatus, Picture

log = get_logger(__name__)

LOADING = "load"
"""The stage of a job that waits for its model to be loaded."""
WAITING = "wait for memory: the model {} is in use"
"""The same, while another model has its turn that does not fit into memory beside it."""
MAX_PENDING = 64
"""Most progress events that are kept until the loop takes them in."""
CANDIDATES = 8
"""Most jobs of which the model is asked at once whether it has room."""
MUCH_SMALLER = 2
"""A job may overtake one that has more than this many times its work."""
SMOOTHING = 0.3
"""Weight of the newest measurement in an average."""


@dataclass(eq=False)
class Lane:
    """The queue and the running jobs of one kind for one model."""

    model: str
    obstacle: Callable[[], str | None] = lambda: None
    """The model in use that must have had its turn before this one is loaded."""
    queue: FairQueue[Job] = field(default_factory=FairQueue[Job])
    running: set[Job] = field(default_factory=set[Job])
    loading: "Future[Backend] | None" = None
    """The model, while it is being loaded."""
    loading_since: float = 0.0
    entering: Job | None = None
    """The job that the model has room for and has not got yet."""
    retry: TimerHandle | None = None
    """When the model is asked again whether it has room."""
    length: float | None = None
    """Moving average of the steps (tokens) after which texts ended."""
    pace: float | None = None
    """Moving average of the seconds per unit of cost, whatever the number of jobs at once."""
    pending_events: deque[tuple[Job, Progress, float]] = field(
        default_factory=deque[tuple[Job, Progress, float]]
    )
    """What the model reported since the loop last took it in."""

    # -- progress -------------------------------------------------------------------------------------

    def report(self, job: Job, progress: Progress, when: float) -> bool:
        """Keep progress of a running job, made at `when` on the monotonic clock. For the model's thread.

        Returns whether the loop must wake up and `catch_up`. It sleeps on while nobody listens: awake, it
        takes CPU time from the model's thread.
        """
        self.pending_events.append((job, progress, when))
        wanted = job.listeners or self.queue or progress.preview
        return bool(wanted) or len(self.pending_events) >= MAX_PENDING

    def catch_up(self) -> None:
        """Take in what the model reported, in the order in which it did."""
        while self.pending_events:
            job, progress, when = self.pending_events.popleft()
            try:
                self._advance(job, progress, when)
            except Exception as error:  # a plugin's backend may report anything
                log.warning("progress of a job is ignored", job=job.id, reason=repr(error)[:200])

    def _advance(self, job: Job, progress: Progress, when: float) -> None:
        step_s = job.advance(progress, when)
        if step_s is not None:
            job.step_s = smoothed(job.step_s, step_s)
            done = sum(each.cost / each.status.steps for each in self.running if each.status.steps)
            if done:  # the step served all that are running
                self.pace = smoothed(self.pace, step_s / done)
        if job.listeners and job.state == "running":
            job.record(self._status(job))

    @contextmanager
    def listening(self, job: Job) -> Generator[None]:
        """Follow every step of a job: `Job.changed` returns at each, `Job.history` has missed ones."""
        job.listeners += 1  # before catching up: what is reported after that wakes the loop
        self.catch_up()
        try:
            yield
        finally:
            job.listeners -= 1

    def status(self, job: Job, preview: Picture | None = None) -> JobStatus:
        """Where a job stands now."""
        self.catch_up()
        return self._status(job, preview)

    def load(self, model: "Future[Backend]") -> None:
        """The model is being loaded from now on, once more perhaps."""
        self.loading, self.loading_since = model, time.monotonic()

    def loaded_s(self, job: Job) -> float:
        """Seconds for which a waiting job has waited for the model that was just loaded."""
        return time.monotonic() - max(job.created, self.loading_since)

    def is_loading(self, job: Job) -> bool:
        """Whether a job waits for its model to be loaded."""
        return job.state == "queued" and self.loading is not None

    def _status(self, job: Job, preview: Picture | None = None) -> JobStatus:
        stage = job.status.stage
        if self.is_loading(job):
            name = self.obstacle()
            stage = LOADING if name is None else WAITING.format(without_folders(name))
        return job.status.changed(stage=stage, eta_seconds=self.eta_s(job), preview=preview)

    def candidates(self) -> list[Job]:
        """The jobs that may be called: the next one, or else one that is much smaller.

        There may be room for that one first: a model takes it in beside longer ones (`omnigen2/engine/`).
        """
        first, *others = self.queue.order()
        if first.overtaken >= first.cost:
            return [first]
        return [first, *(job for job in others if MUCH_SMALLER * job.cost < first.cost)][:CANDIDATES]

    def take(self, job: Job) -> Job:
        """Take a candidate out of the queue. Jobs may overtake the next one by as much work as it has."""
        first = self.queue.order()[0]
        if job is not first:
            first.overtaken += job.cost
        return self.queue.pop(job)

    # -- estimates ------------------------------------------------------------------------------------

    def eta_s(self, job: Job) -> float | None:
        """Estimate of the seconds until a job is done; None where nothing was measured."""
        if job.state == "queued":
            return self.wait_s(job)
        if job.state != "running" or job.step_s is None:
            return None
        return self._steps_left(job) * job.step_s

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
        return self.pace * (ahead + sum(map(self._cost_left, self.running)))

    def learn_length(self, job: Job) -> None:
        """Take in after how many steps a text ended."""
        if job.is_text:
            self.length = smoothed(self.length, job.status.step)

    def place(self) -> None:
        """Give every waiting job its position."""
        for position, job in enumerate(self.queue.order()):
            if job.status.position != position:
                job.change(position=position)

    def _steps_left(self, job: Job) -> float:
        """Estimate of the steps still to be made: most texts end long before they have to."""
        step, left = job.status.step, job.status.steps - job.status.step
        if not job.is_text or self.length is None:
            return left
        return min(left, max(1.0, self.length - step))

    def _cost_left(self, job: Job) -> float:
        steps = job.status.steps
        return job.cost * self._steps_left(job) / steps if steps else job.cost


def smoothed(average: float | None, newest: float) -> float:
    """A running average."""
    return newest if average is None else average + SMOOTHING * (newest - average)
