"""Quotas of one principal: requests that wait, images made within an hour, bytes stored.

They are checked before work, and cost nothing where an equal earlier result is the answer. What is under way
counts until it has ended: its images as made, its bytes as if the pictures were stored without compression.
Use it on the event loop, but for `check_room`.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from anyio import to_thread

from omnigen2.task import ImageTask
from server.jobs import Job
from server.settings import Settings
from storage import StoreView
from storage.records import owner_of
from tools.base import ToolError

HOUR = timedelta(hours=1)
BYTES_PER_PIXEL = 3


@dataclass(frozen=True, eq=False)
class _Made:
    """Images of a principal: made, or being made."""

    time: datetime
    images: int


@dataclass(frozen=True)
class _Taken:
    """What a job takes of the quotas of its principal."""

    principal: str
    made: _Made
    bytes: int


class Quotas:
    """What each principal has taken of its quotas. Whoever runs the server (`LOCAL`) has none."""

    def __init__(self, settings: Settings, store_of: Callable[[str], StoreView]) -> None:
        self._waiting = settings.max_waiting_jobs
        self._per_hour = settings.max_images_per_hour
        self._bytes = settings.max_stored_bytes
        self._store_of = store_of
        self._made: dict[str, deque[_Made]] = {}
        """Of the last hour, by principal, oldest first."""
        self._taken: dict[str, _Taken] = {}
        """By job."""

    async def take(self, job: Job, jobs: Iterable[Job], wait_s: float) -> ToolError | None:
        """Count a new job, or say why it is refused. `jobs` are all others, `wait_s` when a place is free.

        The refusal stands only if there is no equal earlier result.
        """
        principal = job.principal
        if owner_of(principal) is None:
            return None
        if self._per_hour is not None and principal not in self._made:  # as after a restart
            found = await to_thread.run_sync(self._store_of(principal).made_since, datetime.now(UTC) - HOUR)
            self._made.setdefault(principal, deque(_Made(*one) for one in found))
        images, size = _expected(job)
        refusal = self._too_many_waiting(principal, jobs, wait_s) or self._too_many_made(principal, images)
        if refusal is None:
            made = _Made(datetime.now(UTC), images)
            self._taken[job.id] = _Taken(principal, made, size)
            if self._per_hour is not None:
                self._made[principal].append(made)
        return refusal

    def settle(self, job: Job, *, made: bool) -> None:
        """A job has ended, or was not queued: its images are stored now, or are not `made` at all."""
        taken = self._taken.pop(job.id, None)
        if taken is not None and not made and self._per_hour is not None:
            self._made[taken.principal].remove(taken.made)

    def check_room(self, job: Job) -> None:
        """Refuse a job whose images may not fit. Reads the store: not for the event loop.

        Raises:
            OverQuota: with those under way, they may be more than the principal may store.
        """
        taken = dict(self._taken)
        if self._bytes is None or job.id not in taken:
            return
        own = [name for name, one in taken.items() if one.principal == job.principal]
        ahead = own[: own.index(job.id) + 1]  # those that came later do not count
        self._store_of(job.principal).refuse_if_full(sum(taken[name].bytes for name in ahead))

    def _too_many_waiting(self, principal: str, jobs: Iterable[Job], wait_s: float) -> ToolError | None:
        if self._waiting is None:
            return None
        own = sum(job.principal == principal and job.state == "queued" for job in jobs)
        if own < self._waiting:
            return None
        most = f"each user may have {self._waiting} at once"
        return _come_back(f"{own} requests of yours are waiting already; {most}.", round(wait_s))

    def _too_many_made(self, principal: str, images: int) -> ToolError | None:
        if self._per_hour is None or images == 0:
            return None
        if images > self._per_hour:
            return ToolError(
                "invalid_argument",
                f"num_images: {images} given; each user may have {self._per_hour} images made per hour.",
                f"Ask for at most {self._per_hour}.",
            )
        now, made = datetime.now(UTC), self._made[principal]
        while made and made[0].time <= now - HOUR:
            made.popleft()
        used = sum(one.images for one in made)
        if used + images <= self._per_hour:
            return None
        seconds = _until_free(made, used + images - self._per_hour, now)
        return ToolError(
            "busy",
            f"You had {used} images made within an hour, and this asks for {images} more; each user may have "
            f"{self._per_hour} per hour.",
            f"Send it again in {seconds} seconds.",
            seconds,
        )


def queue_full(own: int, waiting: int, seconds: int) -> ToolError:
    """Why nothing more of a client is queued that has `own` requests among those waiting."""
    whose = f"{own} requests of yours are" if own else f"{waiting} requests are"
    return _come_back(f"{whose} waiting already, as many as are taken at once.", seconds)


def _come_back(message: str, seconds: int) -> ToolError:
    advice = f"Send it again in about {seconds} seconds, or wait for one of them to end."
    return ToolError("busy", message, advice, seconds)


def _expected(job: Job) -> tuple[int, int]:
    """The images that a job makes, and the most bytes that they are expected to take."""
    if not isinstance(job.task, ImageTask):
        return 0, 0
    sampling = job.task.sampling
    images = sampling.num_images or 1
    return images, images * (sampling.width or 0) * (sampling.height or 0) * BYTES_PER_PIXEL


def _until_free(made: Iterable[_Made], needed: int, now: datetime) -> int:
    """Seconds until `needed` images were made more than an hour ago."""
    for one in made:
        needed -= one.images
        if needed <= 0:
            return max(1, round((one.time + HOUR - now).total_seconds()) + 1)
    return round(HOUR.total_seconds())
