"""What a running tool may use: one context per call, bound to its caller."""

import math
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio import to_thread
from pydantic import ValidationError

from omnigen2.checkpoints.card import ModelCard
from server.caller import Caller
from server.errors import without_folders
from server.jobs import Job, Status
from server.references import open_allowed
from storage import StoredImage, codec
from tools.base import OpenFile, Pick, Picture, Result, ToolError, Work

if TYPE_CHECKING:
    from server.app import App

PATIENCE_USED = 0.9
"""Share of a client's patience after which it is told that the model is not ready."""
HEARTBEAT_S = 5.0
"""Seconds without news after which progress is reported again, so that no client takes it for dead."""
PREVIEW_SIDE = 256
"""Pixels."""
PREVIEW_BYTES = 20_000


class CallContext:
    """The `Context` of one call."""

    def __init__(self, app: "App", caller: Caller) -> None:
        self._app = app
        self._caller = caller
        self.store = app.store
        self.principal = caller.principal
        self._cards: dict[str | None, ModelCard] = {}

    def card(self, model: str | None) -> ModelCard:
        if model not in self._cards:
            self._cards[model] = self._app.card(model)
        return self._cards[model]

    async def identify(self, model: str | None, wait: bool = True) -> ModelCard | None:
        with anyio.move_on_after(self._patience):
            card = await self._app.identify(model, wait)
            if card is not None:
                self._cards[model] = card
            return card
        raise _still_loading(model or self._app.settings.model)

    async def resolve(self, reference: str, field: str) -> StoredImage:
        return await self._app.references.resolve(reference, field, self._caller.folders)

    def open_file(self, path: str, field: str, pick: Pick | None = None) -> OpenFile:
        return open_allowed(Path(path), field, self._caller.folders, pick)

    async def run(self, work: Work, *, background: bool) -> Result:
        self.card(work.model)  # a model that is not offered gets no lane
        work = replace(work, model=self._app.other(work.model))
        job = await self._app.dispatcher.submit(work, self._caller)
        if background:
            return work.accepted(job.id)
        try:
            await self._follow(job)
        finally:
            job.stop("cancelled")
        if job.error is not None:
            raise job.error.copy()
        assert job.result is not None
        return job.result

    async def job(self, job_id: str, wait_seconds: float = 0) -> Status:
        job = self._app.dispatcher.find(job_id, self.principal)
        if job is None:
            return await self._remembered(job_id)
        if job.ticket is not None:
            job.ticket.wants_preview.set()
        with anyio.move_on_after(wait_seconds):
            await job.ended.wait()
        return await _status(job)

    async def cancel(self, job_id: str) -> Status:
        job = self._app.dispatcher.find(job_id, self.principal)
        if job is None:
            return await self._remembered(job_id)
        job.stop("cancelled")
        await job.ended.wait()  # at most a step
        return job.status()

    async def _follow(self, job: Job) -> None:
        """Wait until the job has ended, and report on the way.

        Raises:
            ToolError: `not_ready`: the model is loaded for longer than the client waits.
        """
        report = self._caller.on_progress
        listening = nullcontext() if report is None else job.listening()
        version = -1
        with listening, anyio.move_on_after(self._patience) as impatience:
            while not job.ended.is_set() or job.version != version:
                if not job.loading:
                    impatience.deadline = math.inf
                    if report is None:  # steps are nobody's concern
                        await job.ended.wait()
                        break
                with anyio.move_on_after(HEARTBEAT_S):
                    await job.changed(version)
                news = job.told(version) or ([] if job.ended.is_set() else [job.status()])
                version = job.version
                for status in news:
                    if report is not None:
                        await report(status)
        if impatience.cancelled_caught:
            raise _still_loading(job.lane.model)

    @property
    def _patience(self) -> float:
        """Seconds that the caller waits for a model that is being loaded."""
        patience_s = self._caller.patience_s
        return math.inf if patience_s is None else patience_s * PATIENCE_USED

    async def _remembered(self, job_id: str) -> Status:
        """A job that is no longer in memory, from the journal."""
        entry = await to_thread.run_sync(self._app.dispatcher.journal.find, job_id, self.principal)
        if entry is None:
            raise ToolError(
                "invalid_argument",
                f"job_id: there is no job {job_id[:100]!r}.",
                "Give the job_id of an earlier answer; old jobs are forgotten.",
            )
        tool = self._app.tools.get(entry.tool)
        try:
            result = tool.result.model_validate_json(entry.result) if tool and entry.result else None
        except ValidationError as error:  # written by a version whose results were others
            raise ToolError(
                "invalid_argument",
                f"job_id: the result of {job_id} was written by another version and cannot be read.",
                "Look for its images with list_images.",
            ) from error
        return Status(job_id, entry.state, result=result, error=entry.error)


async def _status(job: Job) -> Status:
    """Where a job stands, with a picture of it if there is one."""
    if job.preview is None:
        return job.status()
    data, mime_type = await to_thread.run_sync(codec.preview, job.preview, PREVIEW_SIDE, PREVIEW_BYTES)
    return job.status(None if job.ended.is_set() else Picture(data, mime_type))


def _still_loading(model: str) -> ToolError:
    return ToolError(
        "not_ready",
        f"The model {without_folders(model)} is still being loaded.",
        "Try again in a minute, or send it with background: true and ask get_job for its result.",
    )
