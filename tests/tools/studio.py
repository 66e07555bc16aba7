"""A context that does the work at once: a real store, the real engine, no queue.

A background job is done when it is accepted; one that `hold_jobs` keeps back stays queued until somebody
waits for it, or cancels it.
"""

from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anyio import to_thread

from omnigen2.checkpoints.card import ModelCard
from omnigen2.engine import Engine
from omnigen2.task import Outcome
from server.references import open_allowed
from storage import ImageStore, StoredImage
from tools.base import JobState, JobTimes, OpenFile, Pick, Picture, Result, Tool, ToolError, Work
from tools.core import TOOLS
from tools.references import DataRef, FileRef, StoredRef, parse_reference

BY_NAME: dict[str, Tool[Any, Any]] = {tool.name: tool for tool in TOOLS}


@dataclass
class Job:
    """A job and, as it satisfies `JobStatus`, where it stands."""

    id: str
    work: Work
    state: JobState = "queued"
    position: int = 0
    stage: str = ""
    step: int = 0
    steps: int = 0
    eta_seconds: float | None = None
    preview: Picture | None = None
    result: Result | None = None
    error: ToolError | None = None


@dataclass
class Studio:
    """A `Context` that works in the calling thread; `folder` is what its caller may read."""

    store: ImageStore
    engine: Engine
    folder: Path
    principal: str = "tester"
    hold_jobs: bool = False
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

    async def identify(self, model: str | None, wait: bool = True) -> ModelCard:
        return self.card(model)

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

    async def run(self, work: Work, *, background: bool) -> Result:
        if background:
            job = self.jobs.setdefault(f"job{len(self.jobs)}", Job(f"job{len(self.jobs)}", work))
            if not self.hold_jobs:
                await self._do(job)
            return work.accepted(job.id)
        return await self._compute(work, "now")

    async def job(self, job_id: str, wait_seconds: float = 0) -> Job:
        if job_id not in self.jobs:
            raise ToolError("invalid_argument", f"job_id: there is no job {job_id}.")
        job = self.jobs[job_id]
        if wait_seconds and job.state == "queued":
            await self._do(job)
        return job

    async def cancel(self, job_id: str) -> Job:
        job = await self.job(job_id)
        if job.state == "queued":
            job.state, job.error = "cancelled", ToolError("cancelled", "The job was cancelled.")
        return job

    async def _do(self, job: Job) -> None:
        try:
            job.result = await self._compute(job.work, job.id)
            job.state = "done"
        except ValueError as error:
            job.state, job.error = "failed", ToolError("invalid_argument", str(error), "Correct it.")

    async def _compute(self, work: Work, job_id: str) -> Result:
        future: Future[Outcome] = self.engine.submit(work.load()).future
        outcome = await to_thread.run_sync(future.result, 60)
        self.computed.append(work)
        return await to_thread.run_sync(work.finish, outcome, JobTimes(job_id, queued_ms=1.0, load_ms=0.0))
