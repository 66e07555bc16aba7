"""Work that goes on without its caller: ask about it, end it."""

from anyio import to_thread
from pydantic import Field

from tools.base import Context, JobStatus, Tool
from tools.fields import JobIn

LONGEST_WAIT_S = 50
"""Below the 60 seconds after which clients commonly give up."""


class GetJob(JobIn):
    """Which job, and how long to wait for it."""

    wait_seconds: float = Field(default=0, ge=0, le=LONGEST_WAIT_S)
    """Wait up to this long for the job to end before answering."""


class CancelJob(JobIn):
    """Which job."""


async def get(request: GetJob, context: Context) -> JobStatus:
    """Where a job stands, with a preview while it is denoised."""
    return await _answer(await context.job(request.job_id, request.wait_seconds), context)


async def cancel(request: CancelJob, context: Context) -> JobStatus:
    """End a job, unless it has ended."""
    return await _answer(await context.cancel(request.job_id), context)


async def _answer(status: JobStatus, context: Context) -> JobStatus:
    """`status`, once its images are checked: the job may have been done long ago."""
    await to_thread.run_sync(context.store.check, status.linked())
    return status


GET_JOB = Tool(
    name="get_job",
    command="job",
    title="Get a job",
    description=(
        "Ask how far a background job is: its place in the queue, its step, the time left, a small preview "
        "while the image takes shape, and the result when it is done. Give wait_seconds to wait for the end."
    ),
    request=GetJob,
    result=JobStatus,
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
    result=JobStatus,
    run=cancel,
    destructive=True,
    idempotent=True,
)
