"""Brings jobs to the model: queues them in turn, follows them, ends them, and journals how they ended.

One task per job. A job waits in the lane of its model and kind, with the sizes of its pictures only. When the
model has room they are decoded and handed over, and what comes out is stored. A job uses worker threads for
`_admit`, `Work.load` and `_complete`. Everything else happens on the event loop; what a model reports on its
own thread is passed over to the loop.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import TypeVar, TypeVarTuple

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from omnigen2.manager import Manager
from omnigen2.params import InvalidTask
from omnigen2.task import Backend, Cancelled, Outcome, OutOfMemory, Progress, Task
from server.caller import Caller
from server.counts import Counts
from server.decoded import DecodedPixels
from server.errors import as_tool_error, without_folders
from server.idempotency import Key
from server.jobs import Job
from server.journal import Journal, Keyed, interrupted
from server.lanes import Lane
from server.log import get_logger
from server.quotas import Quotas, queue_full
from storage import ImageStore
from tools.base import JobState, Result, ToolError, Work

KEPT_JOBS = 256
"""Jobs that have ended and are still kept in memory; the journal remembers more."""
PROGRESS_S = 0.1
"""Minimum seconds between two progress events of a job: each costs the model's thread CPU time."""
RETRY_S = 0.05
"""Seconds after which a model without room is asked again."""
GRACE_S = 5.0
"""Seconds that running jobs get to finish when the server stops."""
TRIES = 3
"""Attempts to start a job whose model is unloaded before it is submitted."""
T = TypeVar("T")
Args = TypeVarTuple("Args")
log = get_logger(__name__)


class Dispatcher:
    """The queue and the jobs of a server. Use it on one event loop, while it is entered."""

    def __init__(
        self, manager: Manager, store: ImageStore, queue_size: int, counts: Counts, quotas: Quotas
    ) -> None:
        self._manager = manager
        self._store = store
        self._queue_size = queue_size
        self._counts = counts
        self._quotas = quotas
        self._jobs: dict[str, Job] = {}
        self._ended: deque[str] = deque()
        self._lanes: dict[tuple[str, bool], Lane] = {}
        self.closing = False
        """Whether the server stops, and nothing more is taken on."""
        self._pixels = DecodedPixels()
        # Threads of their own, so that jobs go on while requests keep all other threads busy.
        self._admitting = anyio.CapacityLimiter(8)
        self._completing = anyio.CapacityLimiter(8)
        self._decoding = anyio.CapacityLimiter(2)

    @asynccontextmanager
    async def running(self, journal: Journal) -> AsyncGenerator[None]:
        """Accept jobs while entered. On exit, running jobs may finish; waiting ones are interrupted."""
        self.journal = journal
        self._loop = asyncio.get_running_loop()
        async with anyio.create_task_group() as self._tasks:
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await self.stop()

    # -- for callers ----------------------------------------------------------------------------------

    async def submit(self, work: Work, caller: Caller, key: Key | None = None) -> Job | Result:
        """Queue a piece of work, or give the result of an equal earlier request. `key` will name its job.

        Raises:
            ToolError: `busy`: too much waits already; it says when to come back.
            StoreError: the journal cannot be written, an input is gone, or nothing can be stored.
        """
        model = work.model or self._manager.default_model
        job = Job(work, model, caller.principal, caller.client, self._manager.cost(work.task, work.model))
        quota = await self._quotas.take(job, self._jobs.values(), self._wait_s())
        refusal = self._refusal(caller.client) or quota
        if refusal is None:
            self._jobs[job.id] = job
        try:
            admitting = partial(self._admit, job, work, refusal, key)
            found = await to_thread.run_sync(admitting, limiter=self._admitting)
        except BaseException:
            self._forget(job)
            raise
        if found is not None:
            self._forget(job)
            self._counts.add("equal_results")
            return found
        self._tasks.start_soon(self._run, job, work, name=job.id)
        if key is not None:
            key.job_id = job.id
            key.kept.set()
        return job

    def find(self, job_id: str, principal: str) -> Job | None:
        """The job with this id, if it is the principal's and still in memory."""
        job = self._jobs.get(job_id)
        return job if job is not None and job.principal == principal else None

    def count(self, state: JobState) -> int:
        """Number of jobs in a state."""
        return sum(job.state == state for job in self._jobs.values())

    @property
    def full(self) -> bool:
        """Whether not even a client that has nothing waiting can queue a job."""
        return self.count("queued") >= self._queue_size

    def lane(self, job: Job) -> Lane:
        """The lane of a job."""
        lane = Lane(job.model, partial(self._manager.waits_for, job.model))
        return self._lanes.setdefault((job.model, job.is_text), lane)

    # -- one job, from begin to end -------------------------------------------------------------------

    def _admit(self, job: Job, work: Work, refusal: ToolError | None, key: Key | None) -> Result | None:
        """The result of an equal earlier request; without one, hold the inputs and journal the new job."""
        found = work.recall()
        if found is not None:
            return found
        if refusal is not None:
            raise refusal
        self._quotas.check_room(job)
        with ExitStack() as holds:
            if work.inputs:
                holds.enter_context(self._store.hold([image.id for image in work.inputs]))
            if key is not None:
                self.journal.keep_key(*key.names, Keyed(key.call, job.id, None))
            self.journal.begin(job.id, job.principal, work.tool)
            job.holds = holds.pop_all()
        return None

    def _forget(self, job: Job) -> None:
        """Drop a job that was not admitted."""
        self._jobs.pop(job.id, None)
        self._quotas.settle(job, made=False)
        job.ended.set()

    async def _run(self, job: Job, work: Work) -> None:
        with job.scope:
            try:
                outcome = await self._compute(job, work)
                await checkpoint_if_cancelled()
                with anyio.CancelScope(shield=True):  # from here on it is too late: results are stored whole
                    result = await self._thread(self._complete, job, work, outcome)
                    self.lane(job).learn_length(job)
                    job.end("done", result)
            except Exception as error:
                self._fail(job, error)
        if job.scope.cancelled_caught:
            self._fail(job, Cancelled())
        if job.state != "done":
            with anyio.CancelScope(shield=True):
                await self._thread(self._close, job, None)
        self._quotas.settle(job, made=job.state == "done")
        self._counts.add("jobs", job.tool, job.state)
        self._counts.add("job_steps", amount=job.status.step)
        log.info("job ended", job=job.id, tool=job.tool, state=job.state, queued_s=round(job.queued_s, 3))
        job.ended.set()
        job.touch()
        self._ended.append(job.id)
        if len(self._ended) > KEPT_JOBS:
            del self._jobs[self._ended.popleft()]

    def _complete(self, job: Job, work: Work, outcome: Outcome) -> Result:
        """Store an outcome, and journal that the job is done. Runs on a worker thread."""
        started = time.monotonic()
        result = work.store(outcome, job.id, job.waited())
        stored_ms = 1000 * (time.monotonic() - started)
        for phase, ms in {**outcome.timings, **job.waited(), "store_ms": stored_ms}.items():
            self._counts.add("job_seconds", phase.removesuffix("_ms"), amount=ms / 1000)
        self._close(job, result)
        return result

    def _fail(self, job: Job, error: Exception) -> None:
        if job.stopped == "interrupted":
            job.end("interrupted", error=interrupted())
        elif job.stopped == "cancelled":
            job.end("cancelled", error=as_tool_error(Cancelled()))
        else:
            job.end("failed", error=as_tool_error(error))

    def _close(self, job: Job, result: Result | None) -> None:
        """Journal how a job ended, with a result or else in the state that it has, and release its inputs."""
        try:
            if result is not None:
                self.journal.end(job.id, "done", result.to_journal(), None)
            else:
                error = job.status.error
                self.journal.end(job.id, job.state, None, error and error.raised())
        # A full disk, a plugin's result that is not JSON: the job ended all the same.
        except Exception as failure:
            log.warning("the end of a job could not be journaled", job=job.id, reason=str(failure))
        finally:
            job.holds.close()

    async def _compute(self, job: Job, work: Work) -> Outcome:
        """Wait for the job's turn and for the model. When this is cancelled, so is the task of the model."""
        lane = self.lane(job)
        try:
            await self._hand_over(job, work, lane)
            await job.completed.wait()
        except anyio.get_cancelled_exc_class():
            if job.ticket is not None:
                job.ticket.cancel()  # the model drops it when it can; nobody has to wait for that
            raise
        finally:
            lane.catch_up()
            lane.queue.discard(job)
            lane.running.discard(job)
            if job.ticket is None:
                self._release_pixels(job)
            self._pump(lane)
        try:
            return job.outcome()
        except InvalidTask as error:
            raise ToolError("invalid_argument", str(error)) from error

    async def _hand_over(self, job: Job, work: Work, lane: Lane) -> None:
        """Wait for the job's turn, decode its pictures, and give it to the model."""
        for _ in range(TRIES):
            lane.queue.push(job, job.client, job.cost)
            self._pump(lane)
            backend = await job.turn()
            try:
                if work.inputs:
                    task = await to_thread.run_sync(work.load, limiter=self._decoding)
                else:
                    task = work.load()  # it decodes nothing, and needs no thread
                self._start(job, task, backend)
                return
            except Cancelled:  # unloaded since it was asked for: the next turn loads it again
                self._release_pixels(job)
        raise not_loaded(lane.model, Cancelled("it was unloaded again and again"))

    def _release_pixels(self, job: Job) -> None:
        """Its pictures are no longer in memory, or were never loaded: others may be."""
        lane = self.lane(job)
        if lane.entering is job:
            lane.entering = None
        self._pixels.release(job)

    # -- lanes ----------------------------------------------------------------------------------------

    def _pump(self, lane: Lane) -> None:
        """Call the next job that the model has room for; the one after it once that one is handed over."""
        while lane.queue and lane.entering is None:
            job = lane.queue.order()[0]
            try:
                backend = self._backend(lane)
                if backend is None:
                    break
                for job in lane.candidates():
                    if self._pixels.affordable(job) and backend.has_room(job.task):
                        break
                else:
                    self._pump_again(lane)
                    break
            except Exception as error:  # a plugin's backend may fail in any way
                lane.queue.discard(job)
                job.fail(error)
                continue
            lane.entering = lane.take(job)
            self._pixels.take(job)
            job.call(backend)
        lane.place()

    def _pump_again(self, lane: Lane) -> None:
        """Try again soon: a step or an end mostly shows that there is room, but not always."""
        if lane.retry is None or lane.retry.when() <= self._loop.time():
            lane.retry = self._loop.call_later(RETRY_S, self._pump, lane)

    def _start(self, job: Job, task: Task, backend: Backend) -> None:
        """Give a job that was called to the model. Raises Cancelled if that was unloaded."""
        lane, stage, reported = self.lane(job), "", 0.0

        def on_progress(progress: Progress) -> None:
            nonlocal stage, reported
            now, last = time.monotonic(), progress.step == progress.steps
            if job.decoded and job.ticket and not job.ticket.task.images:  # the model has read them
                self._loop.call_soon_threadsafe(self._release_pixels, job)
            if progress.stage != stage or last or progress.preview or now - reported >= PROGRESS_S:
                stage, reported = progress.stage, now
                if lane.report(job, progress, now):
                    self._loop.call_soon_threadsafe(self._on_progress, lane)

        ticket = backend.submit(task, on_progress)
        ticket.future.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._on_completed, job))
        lane.running.add(job)
        lane.entering = None
        job.start(ticket)
        self._pump(lane)

    def _on_completed(self, job: Job) -> None:
        """The model is done with the job."""
        self._release_pixels(job)
        job.completed.set()

    def _on_progress(self, lane: Lane) -> None:
        lane.catch_up()
        if lane.queue:
            self._pump(lane)

    def _backend(self, lane: Lane) -> Backend | None:
        """The lane's model; None while it is being loaded, which goes on by itself."""
        if lane.loading is not None:
            return None
        future = self._manager.acquire(lane.model)
        if future.done() and future.exception() is None:
            return future.result()
        lane.load(future)
        for job in lane.queue.order():
            job.touch()
        future.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._on_loaded, lane, done))
        return None

    def _on_loaded(self, lane: Lane, backend: "Future[Backend]") -> None:
        lane.loading = None
        for job in lane.queue.order():
            if error := backend.exception():
                lane.queue.discard(job)
                job.fail(not_loaded(lane.model, error))
            else:
                job.load_s += lane.loaded_s(job)
        self._pump(lane)

    # -- limits ---------------------------------------------------------------------------------------

    def _refusal(self, client: str) -> ToolError | None:
        """Why no job of this client can be queued now, if so."""
        if self.closing:
            return stopping()
        waiting = [job for job in self._jobs.values() if job.state == "queued"]
        own = sum(job.client == client for job in waiting)
        # A client may have as many as are free: one alone gets half, and every other one still finds room.
        if own < self._queue_size - len(waiting):
            return None
        return queue_full(own, len(waiting), round(self._wait_s()))

    def _wait_s(self) -> float:
        """Estimate of the seconds until a place in the queue is free."""
        return max(5.0, max((lane.wait_s() or 0.0 for lane in self._lanes.values()), default=0.0) / 2)

    async def stop(self) -> None:
        """End all jobs: running ones may finish for `GRACE_S` seconds, those that wait are handed back."""
        self.closing = True
        for job in list(self._jobs.values()):
            if job.state == "queued":
                job.stop("interrupted")
        with anyio.move_on_after(GRACE_S):
            await self._all_ended()
        for job in list(self._jobs.values()):
            job.stop("interrupted")
        await self._all_ended()

    async def _thread(self, work: Callable[[*Args], T], *given: *Args) -> T:
        return await to_thread.run_sync(work, *given, limiter=self._completing)

    async def _all_ended(self) -> None:
        for job in list(self._jobs.values()):
            await job.ended.wait()


def stopping() -> ToolError:
    """Why nothing more is taken on."""
    return ToolError("not_ready", "The server is stopping.", "Send the request again in a minute.", 60)


def not_loaded(model: str, error: BaseException) -> ToolError:
    """Why nothing can be done with a model."""
    model, reason = without_folders(model), without_folders(str(error))
    if isinstance(error, OutOfMemory):
        return ToolError("out_of_memory", f"There is no memory for the model {model}: {reason}")
    advice = "Ask the host to run `omnigen2-mcp doctor`, which says what is wrong."
    return ToolError("not_ready", f"The model {model} could not be loaded: {reason}.", advice)
