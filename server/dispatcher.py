"""Brings jobs to the model: lets them wait in turn, watches them, ends them, and writes down how they ended.

One task per job. A job waits in the lane of its model and kind, with the sizes of its pictures only. When the
model has room they are decoded and handed over, and what comes out is stored; both on worker threads.
Everything else happens on the event loop; what a model says on its own thread is passed over to the loop.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, asynccontextmanager
from typing import TypeVar, TypeVarTuple

import anyio
from anyio import to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from omnigen2.manager import Manager
from omnigen2.params import InvalidTask
from omnigen2.task import Backend, Cancelled, Outcome, OutOfMemory, Progress, Task, TextTask
from server.caller import Caller
from server.errors import as_tool_error, without_folders
from server.jobs import Job, Lane
from server.journal import Journal, interrupted
from server.log import get_logger
from storage import ImageStore, StoredImage
from tools.base import JobState, Result, ToolError, Work

KEPT_JOBS = 256
"""Jobs that have ended and are still kept in memory; the journal remembers more."""
NEWS_S = 0.1
"""Seconds between steps that are told: each takes the model a moment of its processor."""
RETRY_S = 0.05
"""Seconds after which a model without room is asked again."""
GRACE_S = 5.0
"""Seconds that running jobs get to finish when the server stops."""
PIXELS_AT_WORK = 128_000_000
"""Pixels of decoded input pictures that models may have at once; a job that has more gets its turn alone."""
TRIES = 3
"""Models that may be unloaded under a job before it is given up."""

T = TypeVar("T")
Args = TypeVarTuple("Args")
log = get_logger(__name__)


class Dispatcher:
    """The queue and the jobs of a server. Use it on one event loop, while it is entered."""

    def __init__(self, manager: Manager, store: ImageStore, queue_size: int) -> None:
        self._manager = manager
        self._store = store
        self._queue_size = queue_size
        self._jobs: dict[str, Job] = {}
        self._ended: deque[str] = deque()
        self._lanes: dict[tuple[str, bool], Lane] = {}
        self._closing = False
        self._pixels_at_work = 0
        # Threads of their own, so that jobs go on while requests keep all other threads busy.
        self._threads = anyio.CapacityLimiter(8)
        self._decoding = anyio.CapacityLimiter(2)

    @asynccontextmanager
    async def running(self, journal: Journal) -> AsyncGenerator[None]:
        """Take jobs. On the way out, running jobs get some time and those that wait are handed back."""
        self.journal = journal
        self._loop = asyncio.get_running_loop()
        async with anyio.create_task_group() as self._tasks:
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await self.stop()

    # -- for callers ----------------------------------------------------------------------------------

    async def submit(self, work: Work, caller: Caller) -> Job:
        """Take on a piece of work.

        Raises:
            ToolError: `busy`: too much waits already; it says when to come back.
            StoreError: the journal cannot be written.
        """
        self._refuse_if_full(caller.client)
        cost = self._manager.cost(work.task, work.model)
        job = Job(work, caller.principal, caller.client, self._lane(work), cost)
        self._jobs[job.id] = job
        self._tasks.start_soon(self._see_through, job, work, name=job.id)
        with anyio.CancelScope(shield=True):
            try:
                await self._thread(self.journal.begin, job.id, job.principal, work.tool)
            except BaseException:
                job.stop("cancelled")
                raise
            finally:
                job.noted.set()
        return job

    def find(self, job_id: str, principal: str) -> Job | None:
        """The job with this id, if it is the principal's and still in memory."""
        job = self._jobs.get(job_id)
        return job if job is not None and job.principal == principal else None

    # -- one job, from begin to end -------------------------------------------------------------------

    async def _see_through(self, job: Job, work: Work) -> None:
        with job.scope:
            try:
                result = await self._carry_out(job, work)
                job.end("done", result)
            except Exception as error:
                self._end_badly(job, error)
        if job.scope.cancelled_caught:
            self._end_badly(job, Cancelled())
        if job.state != "done":
            with anyio.CancelScope(shield=True):
                await job.noted.wait()
                await self._thread(self._write_down, job.id, job.state, None, job.error)
        log.info("job ended", job=job.id, tool=job.tool, state=job.state, queued_s=round(job.queued_s, 3))
        job.ended.set()
        job.touch()
        self._ended.append(job.id)
        if len(self._ended) > KEPT_JOBS:
            del self._jobs[self._ended.popleft()]

    async def _carry_out(self, job: Job, work: Work) -> Result:
        async with self._held(work.holds):
            outcome = await self._compute(job, work)
            await job.noted.wait()
            await checkpoint_if_cancelled()
            with anyio.CancelScope(shield=True):  # from here on it is too late: results are stored whole
                result = await self._thread(self._finish, job, work, outcome)
        return result

    def _finish(self, job: Job, work: Work, outcome: Outcome) -> Result:
        """Store what came out, and write down that it is done. Runs on a worker thread."""
        result = work.finish(outcome, job.times())
        self._write_down(job.id, "done", result, None)
        return result

    @asynccontextmanager
    async def _held(self, images: Sequence[StoredImage]) -> AsyncGenerator[None]:
        """Keep images from being collected."""
        if not images:
            yield
            return
        with ExitStack() as stack:
            hold = self._store.hold([image.id for image in images])
            await self._thread(stack.enter_context, hold)
            try:
                yield
            finally:
                with anyio.CancelScope(shield=True):
                    await self._thread(stack.close)

    async def _compute(self, job: Job, work: Work) -> Outcome:
        """Wait for the job's turn and for the model. When this is cancelled, so is the task of the model."""
        lane = job.lane
        try:
            await self._begin(job, work)
            await job.landed.wait()
        except anyio.get_cancelled_exc_class():
            if job.ticket is not None:
                job.ticket.cancel()  # the model drops it when it can; nobody has to wait for that
            raise
        finally:
            lane.catch_up()
            lane.queue.discard(job)
            lane.running.discard(job)
            if job.ticket is None:
                self._leave(job)
            self._pump(lane)
        try:
            return job.outcome()
        except InvalidTask as error:
            raise ToolError("invalid_argument", str(error)) from error

    async def _begin(self, job: Job, work: Work) -> None:
        """Wait for the job's turn, decode its pictures, and give it to the model."""
        for _ in range(TRIES):
            job.lane.queue.push(job, job.client, job.cost)
            self._pump(job.lane)
            backend = await job.turn()
            try:
                # One without pictures has nothing to decode, and needs no thread.
                task = await self._thread(work.load, limiter=self._decoding) if work.holds else work.load()
                self._start(job, task, backend)
                return
            except Cancelled:  # unloaded since it was asked for: the next turn loads it again
                self._leave(job)
        raise not_loaded(job.lane.model, Cancelled("it was unloaded again and again"))

    def _leave(self, job: Job) -> None:
        """The job's pictures are gone from the memory, or never came."""
        if job.lane.entering is job:
            job.lane.entering = None
        if job.at_work:
            self._pixels_at_work -= job.pixels
            job.at_work = False

    def _end_badly(self, job: Job, error: Exception) -> None:
        if job.stopped == "interrupted":
            job.end("interrupted", error=interrupted())
        elif job.stopped == "cancelled":
            job.end("cancelled", error=as_tool_error(Cancelled()))
        else:
            job.end("failed", error=as_tool_error(error))

    def _write_down(
        self, job_id: str, state: JobState, result: Result | None, error: ToolError | None
    ) -> None:
        try:
            self.journal.end(job_id, state, result.model_dump_json() if result else None, error)
        # A full disk, a plugin's result that is no JSON: the job ended all the same.
        except Exception as failure:
            log.warning("a job could not be written down", job=job_id, reason=str(failure))

    # -- lanes ----------------------------------------------------------------------------------------

    def _lane(self, work: Work) -> Lane:
        model = work.model or self._manager.default_model
        return self._lanes.setdefault((model, isinstance(work.task, TextTask)), Lane(model))

    def _pump(self, lane: Lane) -> None:
        """Call the next of those that wait, if the model has room; one at a time, until it has been given."""
        while lane.queue and lane.entering is None:
            job = lane.queue.order()[0]
            try:
                backend = self._backend(lane)
                if backend is None:
                    break
                if not (self._affordable(job) and backend.has_room(job.task)):
                    self._pump_again(lane)
                    break
            except Exception as error:  # a plugin's backend may fail in any way
                lane.queue.discard(job)
                job.fail(error)
                continue
            lane.entering = lane.queue.pop()
            self._pixels_at_work += job.pixels
            job.at_work = True
            job.call(backend)
        lane.place()

    def _affordable(self, job: Job) -> bool:
        """Whether the job's pictures may be decoded beside those that models have."""
        return self._pixels_at_work == 0 or self._pixels_at_work + job.pixels <= PIXELS_AT_WORK

    def _pump_again(self, lane: Lane) -> None:
        """Look again soon: a step or an end is news of room, but room may also come without any news."""
        if lane.retry is None or lane.retry.when() <= self._loop.time():
            lane.retry = self._loop.call_later(RETRY_S, self._pump, lane)

    def _start(self, job: Job, task: Task, backend: Backend) -> None:
        """Give a job that was called to the model. Raises Cancelled if that was unloaded."""
        lane, stage, told = job.lane, "", 0.0

        def on_progress(progress: Progress) -> None:
            nonlocal stage, told
            now, last = time.monotonic(), progress.step == progress.steps
            if progress.stage != stage or last or progress.preview or now - told >= NEWS_S:
                stage, told = progress.stage, now
                if lane.tell(job, progress, now):
                    self._loop.call_soon_threadsafe(self._listen, lane)

        ticket = backend.submit(task, on_progress)
        ticket.future.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._land, job))
        lane.running.add(job)
        lane.entering = None
        job.start(ticket)
        self._pump(lane)

    def _land(self, job: Job) -> None:
        """The model is done with the job."""
        self._leave(job)
        job.landed.set()

    def _listen(self, lane: Lane) -> None:
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
        lane.loading = future
        for job in lane.queue.order():
            job.touch()
        future.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._loaded, lane, done))
        return None

    def _loaded(self, lane: Lane, backend: "Future[Backend]") -> None:
        lane.loading = None
        for job in lane.queue.order():
            if error := backend.exception():
                lane.queue.discard(job)
                job.fail(not_loaded(lane.model, error))
            else:
                job.load_s = time.monotonic() - job.created
        self._pump(lane)

    # -- limits ---------------------------------------------------------------------------------------

    def _refuse_if_full(self, client: str) -> None:
        if self._closing:
            raise stopping()
        waiting = [job for job in self._jobs.values() if job.state == "queued"]
        own = sum(job.client == client for job in waiting)
        # A client may have as many as are free: one alone gets half, and every other one still finds room.
        if own < self._queue_size - len(waiting):
            return
        waits = [lane.wait_s() or 0.0 for lane in self._lanes.values()]
        seconds = max(5, round(max(waits) / 2))
        whose = f"{own} requests of yours are" if own else f"{len(waiting)} requests are"
        raise ToolError(
            "busy",
            f"{whose} waiting already, as many as are taken at once.",
            f"Send it again in about {seconds} seconds, or wait for one of them to end.",
            seconds,
        )

    async def stop(self) -> None:
        """End all jobs: running ones may finish for `GRACE_S` seconds, those that wait are handed back."""
        self._closing = True
        for job in list(self._jobs.values()):
            if job.state == "queued":
                job.stop("interrupted")
        with anyio.move_on_after(GRACE_S):
            await self._all_ended()
        for job in list(self._jobs.values()):
            job.stop("interrupted")
        await self._all_ended()

    async def _thread(
        self,
        work: Callable[[*Args], T],
        *given: *Args,
        limiter: anyio.CapacityLimiter | None = None,
    ) -> T:
        return await to_thread.run_sync(work, *given, limiter=limiter or self._threads)

    async def _all_ended(self) -> None:
        for job in list(self._jobs.values()):
            await job.ended.wait()


def stopping() -> ToolError:
    """Why nothing more is taken on."""
    return ToolError("busy", "The server is stopping.", "Send the request again in a minute.", 60)


def not_loaded(model: str, error: BaseException) -> ToolError:
    """Why nothing can be done with a model."""
    model, reason = without_folders(model), without_folders(str(error))
    if isinstance(error, OutOfMemory):
        return ToolError("out_of_memory", f"There is no memory for the model {model}: {reason}")
    advice = "Ask the host to run `omnigen2-mcp doctor`, which says what is wrong."
    return ToolError("not_ready", f"The model {model} could not be loaded: {reason}.", advice)
