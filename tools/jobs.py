"""Work that goes on without its caller: ask about it, end it."""

from typing import Annotated, Self

from anyio import to_thread
from pydantic import Field, SerializeAsAny, WithJsonSchema

from tools.base import Code, Context, JobState, JobStatus, Picture, Result, Tool
from tools.fields import JobIn
from tools.results import Facts

LONGEST_WAIT_S = 50
"""Below the 60 seconds after which clients commonly give up."""

AnyResult = Annotated[SerializeAsAny[Result], WithJsonSchema({"type": "object"})]


class JobError(Facts):
    """Why a job failed."""

    code: Code
    message: str
    advice: str


class JobResult(Result):
    """Where a job stands."""

    job_id: str
    status: JobState
    """`interrupted`: the server was stopped before it was done; make the call again."""
    position: int
    """Jobs ahead of it in the queue."""
    stage: str
    """What is being done."""
    step: int
    steps: int
    eta_seconds: float | None
    """Estimate of the time until it is done."""
    result: AnyResult | None
    """When it is done: what the tool answers to a caller who waits."""
    error: JobError | None
    """When it failed: why."""
    preview: Picture | None = Field(exclude=True)

    @classmethod
    def of(cls, status: JobStatus) -> Self:
        """The result for a job's status."""
        error = status.error
        return cls(
            job_id=status.id,
            status=status.state,
            position=status.position,
            stage=status.stage,
            step=status.step,
            steps=status.steps,
            eta_seconds=status.eta_seconds,
            result=status.result,
            error=error and JobError(code=error.code, message=error.message, advice=error.advice),
            preview=status.preview,
        )

    def line(self) -> str:
        if self.result is not None:
            return self.result.summary()
        if self.error is not None:
            return f"Job {self.job_id} {self.status}: {self.error.message} {self.error.advice}".rstrip()
        where = f", {self.position} ahead of it" if self.status == "queued" and self.position else ""
        if self.status == "running" and self.stage:
            where = f", {self.stage} {self.step} of {self.steps}" if self.steps else f", {self.stage}"
        eta = "" if self.eta_seconds is None else f", about {self.eta_seconds:.0f} s left"
        return f"Job {self.job_id} is {self.status}{where}{eta}."

    def linked(self) -> tuple[str, ...]:
        return self.result.linked() if self.result else ()

    def previewed(self) -> tuple[str, ...]:
        return self.result.previewed() if self.result else ()

    def pictures(self) -> tuple[Picture, ...]:
        if self.result is not None:
            return self.result.pictures()
        return (self.preview,) if self.preview else ()


class GetJob(JobIn):
    """Which job, and how long to wait for it."""

    wait_seconds: float = Field(default=0, ge=0, le=LONGEST_WAIT_S)
    """Wait up to this long for the job to end before answering."""


class CancelJob(JobIn):
    """Which job."""


async def get(request: GetJob, context: Context) -> JobResult:
    """Where a job stands, with a preview while it is denoised."""
    return await _answer(await context.job(request.job_id, request.wait_seconds), context)


async def cancel(request: CancelJob, context: Context) -> JobResult:
    """End a job, unless it has ended."""
    return await _answer(await context.cancel(request.job_id), context)


async def _answer(status: JobStatus, context: Context) -> JobResult:
    """Where a job stands. Its images are checked: it may have been done long ago."""
    result = JobResult.of(status)
    await to_thread.run_sync(context.store.check, result.linked())
    return result


GET_JOB = Tool(
    name="get_job",
    command="job",
    title="Get a job",
    description=(
        "Ask how far a background job is: its place in the queue, its step, the time left, a small preview "
        "while the image takes shape, and the result when it is done. Give wait_seconds to wait for the end "
        "instead of asking again and again."
    ),
    request=GetJob,
    result=JobResult,
    run=get,
    read_only=True,
    idempotent=True,
)

CANCEL_JOB = Tool(
    name="cancel_job",
    command="cancel",
    title="Cancel a job",
    description=(
        "Stop a queued or running job; nothing of it is stored. A job that has ended stays as it is, and its "
        "status is given."
    ),
    request=CancelJob,
    result=JobResult,
    run=cancel,
    destructive=True,
    idempotent=True,
)
