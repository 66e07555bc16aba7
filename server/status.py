"""Progress of a job: a line for people and agents, an event for programs."""

from typing import Any

from tools.base import NO_JOB, JobStatus


def progress_line(job: JobStatus) -> str:
    """Position or step, and the time it will still take."""
    if job.status == "queued":
        where = f"waiting, {job.position} ahead" if job.position else "next in line"
        where += f", {job.stage}" if job.stage else ""
    else:
        where = f"{job.stage} {job.step} of {job.steps}".lstrip() if job.steps else job.stage
    eta = job.eta_seconds
    return where if eta is None else f"{where}, about {eta:.0f} s left"


def progress_event(job: JobStatus) -> dict[str, Any]:
    """Fields of a progress event: those of a status that change while a job runs."""
    fields = {"job_id", "position", "stage", "step", "steps", "eta_seconds"}
    if job.job_id == NO_JOB:
        fields.remove("job_id")
    return {"state": job.status} | job.model_dump(mode="json", include=fields)
