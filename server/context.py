"""The `Context` of a call: what its tool may use, bound to the caller."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, aclosing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import anyio
from anyio import to_thread
from PIL.Image import Image

from omnigen2.checkpoints.card import ModelCard
from server.caller import Caller
from server.hookspecs import AnyTool
from server.idempotency import Key
from server.jobs import Job
from server.references import new_allowed, open_allowed
from server.renditions import PREVIEW, Rendition
from server.watching import preview, watch
from storage import Record, StoredImage, codec
from storage.errors import InvalidArgument
from tools.base import NO_JOB, JobError, JobStatus, NewFile, OpenFile, Pick, Picture, Result, ToolError, Work

if TYPE_CHECKING:
    from server.app import App

TIMEOUT_USED = 0.9
"""Share of a client's timeout after which it is given a job id, and the work goes on without it."""
GOES_ON = "It takes longer than a call may last, and goes on in the background."

ELSEWHERE_S = 1.0
"""Seconds between two looks at a job of another process."""


class Shown(NamedTuple):
    """An image that a call made, or an equal one before."""

    image: StoredImage
    preview: Picture | None
    """If the caller is shown previews."""
    record: Record
    """How it was made."""


class CallContext:
    """The `Context` of one call."""

    def __init__(self, app: "App", caller: Caller) -> None:
        self._app = app
        self._caller = caller
        self.store = app.store_of(caller.principal)
        self.adapters = app.adapters
        self.principal = caller.principal
        self.scopes = caller.scopes
        self.own_addresses = caller.own_addresses
        self.idempotency_key = caller.idempotency_key
        self.key: Key | None = None
        """The idempotency key of the call."""
        self.shown: dict[str, Shown] = {}
        """Images that the call made, or an equal one before, by id."""
        self._cards: dict[str | None, ModelCard] = {}
        timeout_s = caller.timeout_s
        self._deadline = math.inf if timeout_s is None else anyio.current_time() + timeout_s * TIMEOUT_USED

    def card(self, model: str | None) -> ModelCard:
        if model not in self._cards:
            self._cards[model] = self._app.card(model)
        return self._cards[model]

    async def look_up(
        self, model: str | None, references: Mapping[str, str], *, wait: bool
    ) -> tuple[ModelCard, bool, tuple[StoredImage, ...]]:
        found: dict[str, StoredImage] = {}
        own = self.own_addresses

        def look() -> ModelCard | None:
            self.card(model)  # is it offered?
            known = self._app.identify(model)
            for field, reference in references.items():
                if (image := self._app.references.look_up(self.store, reference, field, own)) is not None:
                    found[field] = image
            return known

        known = await to_thread.run_sync(look)
        if known is None and wait:
            with anyio.CancelScope(deadline=self._deadline):
                known = await self._app.load(model)
        if known is not None:
            self._cards[model] = known
        for field, reference in references.items():  # one after the other: each may be large
            if field not in found:
                found[field] = await self.resolve(reference, field)
        return self._cards[model], known is not None, tuple(found[field] for field in references)

    async def resolve(self, reference: str, field: str) -> StoredImage:
        folders, own = self._caller.folders, self.own_addresses
        return await self._app.references.resolve(self.store, reference, field, folders, own)

    def open_file(self, path: str, field: str, pick: Pick | None = None) -> OpenFile:
        return open_allowed(Path(path), field, self._caller.folders, pick)

    def new_file(self, path: str, field: str, *, replace: bool) -> AbstractContextManager[NewFile]:
        return new_allowed(Path(path), field, self._caller.folders, replace)

    def show(self, image: StoredImage, pixels: Image | None, record: Record) -> None:
        def reduced() -> Rendition:
            return codec.preview(pixels) if pixels is not None else self.store.preview(image.id)

        preview = None
        if self._caller.previews:
            preview = Picture(*self._app.renditions.get(image.id, PREVIEW, reduced))
        self.shown[str(image.id)] = Shown(image, preview, record)

    async def progress(self, step: int, steps: int = 0, stage: str = "") -> None:
        if (report := self._caller.on_progress) is not None:
            now = {"status": "running", "stage": stage, "step": step, "steps": steps}
            await report(JobStatus.new(NO_JOB).changed(**now))

    async def run(self, work: Work, *, background: bool) -> Result:
        if work.model not in self._cards:
            await to_thread.run_sync(self.card, work.model)  # a model that is not offered gets no lane
        work = replace(work, model=self._app.other(work.model))
        taken = await self._app.dispatcher.submit(work, self._caller, self.key)
        if isinstance(taken, Result):
            return taken
        taken.background = background
        return await self._outcome(taken)

    async def join(self, job_id: str) -> Result | None:
        """What a call was answered, or is being answered, whose job this is; None if it failed."""
        job = self._app.dispatcher.find(job_id, self.principal)
        if job is not None:
            failed = job.ended.is_set() and job.status.result is None
            return None if failed else await self._outcome(job)
        with suppress(ToolError):  # it is forgotten, or cannot be read
            status = await self.job(job_id)
            while status.status in ("queued", "running"):  # in another process
                await anyio.sleep(ELSEWHERE_S)
                status = await self.job(job_id)
            return status.result
        return None

    async def _outcome(self, job: Job) -> Result:
        """What the caller of a job is answered. Without a key, the job ends when its caller goes away."""
        if job.background:
            return job.accepted(job.id)
        handed_over = False
        try:
            handed_over = not await self._follow(job)
        finally:
            if not handed_over and self.key is None:
                job.stop("cancelled")
        if handed_over:
            queued = job.accepted(job.id)
            return queued.model_copy(update={"notes": (*queued.notes, GOES_ON)})
        if job.status.error is not None:
            raise job.status.error.raised()
        assert job.status.result is not None
        return job.status.result

    async def job(self, job_id: str, wait_seconds: float = 0) -> JobStatus:
        job = self._app.dispatcher.find(job_id, self.principal)
        if job is None:
            return await to_thread.run_sync(self._journaled, job_id)
        if job.ticket is not None:
            job.ticket.wants_preview.set()
        with anyio.move_on_after(wait_seconds):
            await job.ended.wait()
        return await self._status(job)

    async def cancel(self, job_id: str) -> JobStatus:
        job = self._app.dispatcher.find(job_id, self.principal)
        if job is None:
            return await to_thread.run_sync(self._journaled, job_id)
        job.stop("cancelled")
        await job.ended.wait()  # at most a step
        return job.status

    async def _status(self, job: Job) -> JobStatus:
        """Where a job stands, with a preview if there is one."""
        lane, picture = self._app.dispatcher.lane(job), job.picture
        if picture is None:
            return lane.status(job)
        shown = await preview(picture)
        return lane.status(job, None if job.ended.is_set() else shown)

    async def _follow(self, job: Job) -> bool:
        """Wait until the job has ended, and report on the way; False if that takes too long for the client.

        A client that is told of progress waits for as long as it takes.
        """
        report, lane = self._caller.on_progress, self._app.dispatcher.lane(job)
        with anyio.CancelScope(deadline=self._deadline) as timeout:
            if report is None:
                await job.ended.wait()
                return True
            async with aclosing(watch(job, lane, previews=self._caller.partial_images)) as states:
                async for _, status in states:
                    await report(status)
        return not timeout.cancelled_caught

    def _journaled(self, job_id: str) -> JobStatus:
        """A job that is no longer in memory, from the journal. Runs on a worker thread."""
        entry = self._app.dispatcher.journal.find(job_id, self.principal)
        if entry is None:
            raise ToolError(
                "invalid_argument",
                f"job_id: there is no job {job_id[:100]!r}.",
                "Give the job_id of an earlier answer; old jobs are forgotten.",
            )
        tool = self._app.tools.get(entry.tool)
        result = self.journaled_result(tool, entry.result, job_id) if tool and entry.result else None
        error = JobError.of(entry.error) if entry.error else None
        return JobStatus.new(job_id).changed(status=entry.state, result=result, error=error)

    def journaled_result(self, tool: AnyTool, text: str, job_id: str) -> Result:
        """A result from what the journal has of it. Reads the store. Raises ToolError: it cannot be read."""
        try:
            return tool.result.from_journal(text, self.store, job_id)
        except InvalidArgument as error:  # its record is gone
            raise ToolError(
                "image_not_found",
                f"job_id: the result of {job_id} is no longer stored.",
                "Make the call again; with the same seed it gives the same result.",
            ) from error
        except (ValueError, LookupError, TypeError) as error:
            raise ToolError(
                "invalid_argument",
                f"job_id: the result of {job_id} was written by another version and cannot be read.",
                "Look for its images with list_images.",
            ) from error
