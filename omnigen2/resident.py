"""A model in memory, or on its way there: whether it is in use, and how long its turn is."""

import time
from concurrent.futures import Future
from dataclasses import dataclass, field

from omnigen2.task import Backend, Yielding

IN_HAND_S = 10.0
"""Seconds after `acquire` in which a model is not unloaded: its task may be on the way."""

TURN_S = 5.0
"""Least seconds for which a model with work keeps the memory that another one waits for."""
TURN_LOADS = 4
"""The same as a multiple of the time that it took to load: a fifth of the time goes into loading then."""
GAP_S = 1.0
"""Seconds without work after which its turn is over."""


@dataclass(eq=False)
class Resident:
    """One model of a `Manager`, from when it is asked for. Times are those of `time.monotonic`."""

    backend: "Future[Backend]" = field(default_factory=Future)
    """The loaded model, or why it could not be loaded."""
    last_used: float = field(default_factory=time.monotonic)
    stale: bool = False
    """Whether its weights are others than those on disk now."""
    replaces: "Resident | None" = None
    resting: Yielding | None = None
    """The loaded model, while its weights are away."""
    wanted: bool = False
    """Whether it was asked for."""
    came: float = 0.0
    turn_s: float = TURN_S
    """How long its turn is, from when it `came`."""
    waits_for: str | None = None
    """The model whose turn must be over first."""

    @property
    def ready(self) -> bool:
        """Whether it is loaded."""
        return self.backend.done() and self.backend.exception() is None

    @property
    def idle(self) -> bool:
        """Whether it is loaded, has nothing to do, and nobody just asked for it."""
        if not self.ready:
            return False
        if self.backend.result().busy():
            self.last_used = time.monotonic()
        return time.monotonic() - self.last_used > IN_HAND_S

    @property
    def needed(self) -> bool:
        """Whether it was asked for, or has tasks at rest."""
        return self.wanted or (self.resting is not None and self.resting.busy())

    @property
    def turn_over(self) -> bool:
        """Whether it is loaded, and its turn is over now that another model waits."""
        now = time.monotonic()
        if self.backend.result().busy():
            self.last_used = now
        return now - self.came >= self.turn_s or now - self.last_used > GAP_S

    def arrived(self, load_s: float) -> None:
        """Its turn begins, after it was loaded in so many seconds."""
        self.came = self.last_used = time.monotonic()
        self.turn_s = max(TURN_S, TURN_LOADS * load_s)
