"""The replicas of one model, as the front sees them: what each has to do, and which one is given a task.

Everything here runs on the cluster's event loop, but for `Members.describe` and `Members.with_room`.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from omnigen2.checkpoints.card import Limits, ModelCard
from omnigen2.cost import MEGAPIXEL, cost
from omnigen2.task import Task, TextTask
from server.replicas.sending import adapters_of
from tools.base import ToolError

TOKEN_PIXELS = 16 * 16
"""Pixels of a picture per token of the transformer, in the published layout."""
AGAIN_S = 30
"""Seconds after which a caller should come back when no replica is left."""

State = Literal["loading", "ready", "silent", "lost", "refused"]


@dataclass(eq=False)
class Attempt:
    """A task at work on a replica."""

    task: Task
    tokens_left: float
    started: bool = False
    """Whether the replica has begun with it; until then it waits there."""


@dataclass(eq=False)
class Member:
    """One replica."""

    name: str
    actor: Any
    state: State = "loading"
    reason: str = ""
    """Why it is not ready, for the host."""
    card: ModelCard | None = None
    in_use: bool = False
    """Whether another server uses it, too."""
    seen: dict[str, Any] = field(default_factory=dict[str, Any])
    """What it last said of itself (`Replica.state`)."""
    attempts: set[Attempt] = field(default_factory=set[Attempt])
    adapters: set[str] = field(default_factory=set[str])
    """Digests of the adapters that it has loaded."""
    idle_since: float = 0.0

    def waits(self, task: Task) -> bool:
        """Whether a task of the same kind waits there: it has no room for another one now."""
        kind = type(task)
        return any(isinstance(own.task, kind) and not own.started for own in list(self.attempts))

    def load(self, task: Task) -> tuple[float, float]:
        """Tokens to be done there before this task is: of its kind first, as the kinds take turns.

        A replica without the adapters of the task counts as if it had to do as much again.
        """
        kind, own, other = type(task), 0.0, 0.0
        for attempt in list(self.attempts):
            if isinstance(attempt.task, kind):
                own += attempt.tokens_left
            else:
                other += attempt.tokens_left
        lacks = any(each.adapter.digest not in self.adapters for each in adapters_of(task))
        return own + (tokens(task) if lacks else 0.0), other


class Members:
    """The replicas of one model."""

    def __init__(self) -> None:
        self.all: list[Member] = []
        self.longest_silence = 0.0
        """Most seconds without news of a task that came to its outcome all the same."""
        self.hopeless_since: float | None = None
        self.changed = asyncio.Event()
        """Set, and replaced by a new one, whenever a replica may have got room."""

    def __iter__(self) -> Iterator[Member]:
        return iter(list(self.all))

    def ready(self) -> list[Member]:
        """Those that answer."""
        return [member for member in self if member.state == "ready"]

    @property
    def hopeless(self) -> bool:
        """Whether there is no replica, and none is known to be loading its model."""
        return not any(member.state in ("ready", "loading") for member in self)

    def touch(self) -> None:
        """Wake whoever waits for a replica, and note since when there is none."""
        self.hopeless_since = (self.hopeless_since or time.monotonic()) if self.hopeless else None
        self.changed.set()
        self.changed = asyncio.Event()

    def with_room(self, task: Task) -> list[Member]:
        """Those that would begin with a task at once, and have about as little to do as any.

        Where the one with the least to do is about to begin with another task, it is waited for.
        """
        ready = self.ready()
        most = min((own.load(task)[0] for own in ready), default=0.0) + tokens(task)
        return [own for own in ready if not own.waits(task) and own.load(task)[0] <= most]

    def choose(self, task: Task, instead_of: Member | None = None) -> Member | None:
        """The replica with the fewest outstanding tokens, among those with room if there are any.

        `instead_of`: one that is not to be chosen, and then only one with room is.
        """
        if instead_of:
            candidates = [own for own in self.ready() if own is not instead_of and not own.waits(task)]
        else:
            candidates = self.with_room(task) or self.ready()
        return min(candidates, key=lambda member: member.load(task), default=None)

    def describe(self) -> list[dict[str, Any]]:
        """What an operator wants to know of each. For any thread."""
        return [
            {
                "replica": member.name,
                "state": member.state,
                "reason": member.reason,
                "node": member.seen.get("host", ""),
                "pid": member.seen.get("pid"),
                "device": member.seen.get("device", ""),
                "memory_bytes": member.seen.get("memory_bytes", 0),
                "memory": member.seen.get("memory"),
                "tasks": len(member.attempts),
                "tokens_outstanding": round(sum(own.tokens_left for own in list(member.attempts))),
            }
            for member in self
        ]


def tokens(task: Task, limits: Limits | None = None) -> float:
    """Estimated tokens of the whole task: through the transformer for pictures, written for a text."""
    work = cost(task, limits) if limits else cost(task)
    return work if isinstance(task, TextTask) else work * MEGAPIXEL / TOKEN_PIXELS


def no_replica() -> ToolError:
    """Why nothing can be done now."""
    return ToolError(
        "not_ready",
        "No process of the model can be reached at the moment.",
        f"Send the request again in {AGAIN_S} s; if that fails, ask the host to run `omnigen2-mcp doctor`.",
        AGAIN_S,
    )
