"""Limits the pixels that are decoded at once, in this process and its workers.

A fair weighted semaphore (first come, first served), with separate budgets for small and large images, so
that small ones never wait for large ones.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Generator

from storage.errors import StoreBusy

SMALL = 4_000_000
"""Maximum pixels of a small image."""
POLL_S = 0.1
"""Seconds between two calls of a checkpoint."""
TIMEOUT_S = 120.0
"""Maximum seconds to wait for the budget."""

Checkpoint = Callable[[], None]
"""Called regularly by a waiting thread; may raise to cancel the wait or the work."""


def no_checkpoint() -> None:
    """A checkpoint that never cancels."""


class Budget:
    """A weighted semaphore of capacity `total`, with at most `at_once` holders."""

    def __init__(self, total: int, at_once: int) -> None:
        self._total = self._free = total
        self._least = total // at_once
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    @contextlib.contextmanager
    def taken(self, amount: int, checkpoint: Checkpoint = no_checkpoint) -> Generator[None]:
        """Hold `amount` of the budget, or all of it if that is less; blocks in order of arrival.

        Raises:
            StoreBusy: not available within `TIMEOUT_S`. Also what `checkpoint` raises.
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
                    self._changed.wait(POLL_S)
                    checkpoint()
                    if time.monotonic() - started > TIMEOUT_S:
                        raise StoreBusy("Too many large images are being decoded.", "Try again later.")
                self._free -= amount
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()


class PixelBudget:
    """One budget for small images and one for large ones."""

    def __init__(self, total: int, at_once: int) -> None:
        """`total` pixels of large images, and at most `at_once` large and `at_once` small images."""
        self._small, self._large = Budget(SMALL * at_once, at_once), Budget(total, at_once)

    def taken(
        self, pixels: int, checkpoint: Checkpoint = no_checkpoint
    ) -> contextlib.AbstractContextManager[None]:
        """Hold the budget for decoding an image of `pixels` pixels. Raises as `Budget.taken`."""
        return (self._small if pixels <= SMALL else self._large).taken(pixels, checkpoint)
