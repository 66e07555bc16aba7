"""Follow a job from step to step, with previews on the way."""

from collections.abc import AsyncGenerator

import anyio
from anyio import to_thread
from PIL.Image import Image

from server.jobs import Job
from server.lanes import Lane
from storage import codec
from tools.base import JobStatus, Picture

HEARTBEAT_S = 5.0
"""Seconds without progress after which it is reported again, as a sign of life."""
PREVIEW_SIDE = 256
"""Pixels."""
PREVIEW_BYTES = 20_000


async def watch(
    job: Job, lane: Lane, since: int = -1, previews: int = 0
) -> AsyncGenerator[tuple[int, JobStatus]]:
    """The states of a job after its version `since`, each with its version, until the job has ended.

    Up to `previews` of them have one, spread evenly over the steps.
    """
    shown, asked = job.picture, 0
    with lane.listening(job):
        while not job.ended.is_set() or job.version != since:
            with anyio.move_on_after(HEARTBEAT_S):
                await job.changed(since)
            news = job.history(since)
            if not news and not job.ended.is_set():
                news = [(job.version, lane.status(job))]
            since = job.version
            if news and previews and job.picture is not None and job.picture is not shown:
                shown = job.picture
                version, status = news[-1]
                news[-1] = version, status.changed(preview=await preview(shown))
            asked = _ask(job, asked, previews)
            for version, status in news:
                yield version, status


async def preview(picture: Image) -> Picture:
    """A picture under way, as it is shown."""
    return Picture(*await to_thread.run_sync(codec.preview, picture, PREVIEW_SIDE, PREVIEW_BYTES))


def _ask(job: Job, asked: int, previews: int) -> int:
    """Ask the model for a preview if the next one is due; the number that were asked for."""
    steps = job.status.steps
    if job.ticket is None or not steps:
        return asked
    due = min(previews, (job.status.step + 1) * (previews + 1) // steps)
    if due > asked:
        job.ticket.wants_preview.set()
    return max(due, asked)
