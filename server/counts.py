"""What has happened since the start, counted by labels of few values: no prompt, no id, no principal."""

import threading
from collections import Counter
from typing import Literal

Counted = Literal["calls", "jobs", "job_steps", "job_seconds", "equal_results", "http_answers"]
Labels = tuple[str, ...]


class Counts:
    """Numbers that only grow. Safe for use by several threads at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: Counter[tuple[Counted, Labels]] = Counter()

    def add(self, what: Counted, *labels: str, amount: float = 1) -> None:
        """Count something."""
        with self._lock:
            self._values[what, labels] += amount  # pyright: ignore[reportArgumentType]

    def of(self, what: Counted) -> dict[Labels, float]:
        """What was counted of one kind, by labels."""
        with self._lock:
            return {labels: value for (kind, labels), value in self._values.items() if kind == what}
