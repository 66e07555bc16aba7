"""Turns on the device: everyone who has work gets the same time, whatever the size of a single piece.

Work is cut into pieces that cannot be interrupted, such as a denoising step, and of which some are a thousand
times longer than others. In a round everyone may use the same number of seconds, and may overdraw them by one
piece, which is taken off the next round: deficit round robin (Shreedhar and Varghese, 1995), with time in the
place of bytes. Who comes joins with the next round, so that many who come and go hold nobody up.
"""

from collections.abc import Hashable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T", bound=Hashable)


class Turns(Generic[T]):
    """The seconds that each guest has left in this round. For one thread."""

    def __init__(self) -> None:
        self._left: dict[T, float] = {}
        self._present: set[T] = set()
        self._longest = 0.0
        """The longest piece of this round: in the next one, everyone may use as much."""

    def order(self, guests: Sequence[T]) -> list[T]:
        """The guests that have work, the one with the most time left first; at least that one is due."""
        for guest in guests:
            if guest not in self._present:  # idleness earns nothing; what was overdrawn stays
                self._left[guest] = min(self._left.get(guest, 0.0), 0.0)
        self._present = set(guests)
        most = max((self._left[guest] for guest in guests), default=1.0)
        if most <= 0:
            share = max(self._longest, 1e-9 - most)
            self._longest = 0.0
            for guest in guests:
                self._left[guest] += share
        return sorted(guests, key=lambda guest: -self._left[guest])

    def due(self, guest: T) -> bool:
        """Whether a guest has time left in this round."""
        return self._left[guest] > 0

    def charge(self, guest: T, seconds: float) -> None:
        """Take what a guest has used off its time."""
        self._left[guest] -= seconds
        self._longest = max(self._longest, seconds)

    def forget(self, guest: T) -> None:
        """Drop a guest that does not come back."""
        self._left.pop(guest, None)
        self._present.discard(guest)
