"""Where a job stands: in words for people and agents, as JSON for programs."""

from typing import Any

from tools.base import JobStatus


def progress_line(status: JobStatus) -> str:
    """Position or step, and the time it will still take."""
    if status.state == "queued":
        where = f"waiting, {status.position} ahead" if status.position else "next in line"
    else:
        where = f"{status.stage} {status.step} of {status.steps}" if status.steps else status.stage
    eta = status.eta_seconds
    return where if eta is None else f"{where}, about {eta:.0f} s left"


def progress_event(status: JobStatus) -> dict[str, Any]:
    """The same, field by field."""
    return {
        "job_id": status.id,
        "state": status.state,
        "position": status.position,
        "stage": status.stage,
        "step": status.step,
        "steps": status.steps,
        "eta_seconds": status.eta_seconds,
    }
