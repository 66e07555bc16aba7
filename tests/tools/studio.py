"""A context that does the work at once: a real store, the real engine, no queue.

A background job is done when it is accepted; one that `hold_jobs` keeps back stays queued until somebody
waits for it, or cancels it.
"""

from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio import to_thread
from PIL.Image import Image

from omnigen2.adapters.folder import AdapterFolder
from omnigen2.checkpoints.card import ModelCard
from omnigen2.engine.engine import Engine
from omnigen2.task import Outcome
from server.references import new_allowed, open_allowed
from storage import ImageStore, Record, StoredImage
from tools.base import JobError, JobStatus, NewFile, OpenFile, Pick, Result, Tool, ToolError, Work
from tools.core import TOOLS
from tools.references import DataRef, FileRef, StoredRef, parse_reference

BY_NAME: dict[str, Tool[Any, Any]] = {tool.name: tool for tool in TOOLS}


@dataclass
class Job:
    """A job: its work, and where it stands."""

    work: Work
    status: JobStatus


@dataclass
class Studio:
    """A `Context` that works in the calling thread; `folder` is what its caller may read."""

    store: ImageStore
    engine: Engine
    folder: Path
    principal: str = "tester"
    own_addresses: tuple[str, ...] = ()
    hold_jobs: bool = False
    adapters: AdapterFolder = field(default_factory=lambda: AdapterFolder(None))
    jobs: dict[str, Job] = field(default_factory=dict)
    computed: list[Work] = field(default_factory=list)
    """All work that the model did."""

    async def call(self, name: str, **arguments: Any) -> Any:
        """The result of a tool, from arguments as a client sends them."""
        tool = BY_NAME[name]
        return await tool.run(tool.request.model_validate(arguments), self)

    def card(self, model: str | None) -> ModelCard:
        if model not in (None, self.engine.card.id):
            raise ToolError("invalid_argument", f"model: {model!r} is unknown.", "Leave it out.")
        return self.engine.card

    async def look_up(
        self, model: str | None, references: Mapping[str, str], *, wait: bool
    ) -> tuple[ModelCard, bool, tuple[StoredImage, ...]]:
        images = [await self.resolve(reference, field) for field, reference in references.items()]
        return self.card(model), True, tuple(images)

    def show(self, image: StoredImage, pixels: Image | None, record: Record) -> None:
        pass

    async def progress(self, step: int, steps: int = 0, stage: str = "") -> None:
        pass

    async def resolve(self, reference: str, field: str) -> StoredImage:
        match parse_reference(reference, field):
            case StoredRef(digits):
                return self.store.get(digits)
            case DataRef(_, data):
                return self.store.put(data)
            case FileRef(path):
                with self.open_file(str(path), field)[1] as file:
                    return self.store.put(file.read())
            case _:
                raise ToolError("forbidden", f"{field}: nothing is fetched.")

    def open_file(self, path: str, field: str, pick: Pick | None = None) -> OpenFile:
        return open_allowed(Path(path), field, (self.folder,), pick)

    def new_file(self, path: str, field: str, *, replace: bool) -> AbstractContextManager[NewFile]:
        return new_allowed(Path(path), field, (self.folder,), replace)

    async def run(self, work: Work, *, background: bool) -> Result:
        if (found := await to_thread.run_sync(work.recall)) is not None:
            return found
        if background:
            name = f"job{len(self.jobs)}"
            job = self.jobs.setdefault(name, Job(work, JobStatus.new(name)))
            if not self.hold_jobs:
                await self._do(job)
            return work.accepted(name)
        return await self._compute(work, "now")

    async def job(self, job_id: str, wait_seconds: float = 0) -> JobStatus:
        if job_id not in self.jobs:
            raise ToolError("invalid_argument", f"job_id: there is no job {job_id}.")
        job = self.jobs[job_id]
        if wait_seconds and job.status.status == "queued":
            await self._do(job)
        return job.status

    async def cancel(self, job_id: str) -> JobStatus:
        status = await self.job(job_id)
        if status.status == "queued":
            error = JobError.of(ToolError("cancelled", "The job was cancelled."))
            status = self.jobs[job_id].status = status.changed(status="cancelled", error=error)
        return status

    async def _do(self, job: Job) -> None:
        result = await self._compute(job.work, job.status.job_id)
        job.status = job.status.changed(status="done", result=result)

    async def _compute(self, work: Work, job_id: str) -> Result:
        future: Future[Outcome] = self.engine.submit(work.load()).future
        outcome = await to_thread.run_sync(future.result, 60)
        self.computed.append(work)
        return await to_thread.run_sync(work.store, outcome, job_id, {"queued_ms": 1.0, "load_ms": 0.0})
