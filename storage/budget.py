"""Pixels that may be decoded at once in this process and its workers: a weighted semaphore, first come, first
served, and small pictures apart from large ones, so that they never wait for those.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator

from storage.errors import StoreBusy

SMALL = 4_000_000
"""Pixels up to which a picture counts as small."""
TICK_S = 0.1
"""Seconds between two looks at whether the caller still waits."""
PATIENCE_S = 120.0
"""Seconds after which a caller is told to come again."""

Checkpoint = Callable[[], None]
"""Called now and then from the thread that waits; what it raises ends the waiting or the work."""


def no_checkpoint() -> None:
    """For callers who wait to the end."""


class Budget:
    """An amount of which callers take parts, at most `at_once` of them."""

    def __init__(self, total: int, at_once: int) -> None:
        self._total = self._free = total
        self._least = total // at_once
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextlib.contextmanager
    def taken(self, amount: int, checkpoint: Checkpoint = no_checkpoint) -> Generator[None]:
        """Hold `amount` of the budget, or all of it where it is less, once everybody before has had theirs.

        Raises:
            StoreBusy: that takes too long. Also what `checkpoint` raises.
        """
        amount = min(max(amount, self._least), self._total)
        self._take(amount, checkpoint)
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()

    def _take(self, amount: int, checkpoint: Checkpoint) -> None:
        ticket, started = object(), time.monotonic()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._waiting[0] is not ticket or self._free < amount:
                    self._changed.wait(TICK_S)
                    checkpoint()
                    if time.monotonic() - started > PATIENCE_S:
                        raise StoreBusy("Too many large pictures are being decoded.", "Try again later.")
                self._free -= amount
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()


class PixelBudget:
    """One budget for small pictures and one for all others."""

    def __init__(self, total: int, at_once: int) -> None:
        """`total` pixels of large pictures, and `at_once` large and as many small ones."""
        self._small, self._large = Budget(SMALL * at_once, at_once), Budget(total, at_once)

    def taken(
        self, pixels: int, checkpoint: Checkpoint = no_checkpoint
    ) -> contextlib.AbstractContextManager[None]:
        """Hold the budget for a picture while it is decoded. Raises what `Budget.taken` does."""
        return (self._small if pixels <= SMALL else self._large).taken(pixels, checkpoint)
