"""A plugin with a model that computes nothing: a ready picture of one megapixel for each seed.

They are as smooth and as busy as photographs, so that encoding them costs what it does in earnest.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from omnigen2.checkpoints.card import ModelCard, published_card
from omnigen2.factory import BackendFactory, OneModel
from omnigen2.task import ImageTask, Outcome, Progress, Task, Ticket
from server.hookspecs import hookimpl

NAME = "ready"
SIDE = 1024
READY = 8
"""Pictures drawn at the start; each answer is one of them, shifted by its seed."""
SCALES = (2, 8, 32, 128)
"""Sizes of the details, in pixels."""
GRAIN = 1.0
"""Standard deviation of the noise of a camera, of 255."""


def drawn(seed: int) -> np.ndarray[Any, Any]:
    """Pixels (1024, 1024, 3), uint8: blurred noise of every scale, hard edges, and a grain."""
    random = np.random.default_rng(seed)
    pixels = np.zeros((SIDE, SIDE, 3))
    for scale in SCALES:
        coarse = random.normal(size=(SIDE // scale, SIDE // scale, 3))
        wide = Image.fromarray(np.uint8(np.clip(128 + 40 * coarse, 0, 255))).resize((SIDE, SIDE))
        pixels += (np.asarray(wide, dtype=float) - 128) * scale**0.5 / 6
    flat = np.zeros((SIDE, SIDE), dtype=bool)
    for _ in range(6):
        top, left = random.integers(0, SIDE - 300, 2)
        flat[top : top + 260, left : left + 260] = True
    pixels[flat] *= 0.1  # a third of it is sky or wall
    picture = Image.fromarray(np.uint8(np.clip(128 + pixels, 0, 255))).filter(ImageFilter.SMOOTH)
    return np.uint8(np.clip(np.asarray(picture) + random.normal(0, GRAIN, (SIDE, SIDE, 3)), 0, 255))


class Ready:
    """A backend that answers at once."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card
        self._drawn = [drawn(seed) for seed in range(READY)]

    def submit(self, task: Task, on_progress: Callable[[Progress], None]) -> Ticket:
        ticket = Ticket(task, on_progress)
        assert isinstance(task, ImageTask)
        seed = task.sampling.seed or 0
        pixels = np.roll(self._drawn[seed % READY], seed // READY, axis=1)
        ticket.future.set_result(Outcome((Image.fromarray(pixels),)))
        return ticket

    def has_room(self, task: Task) -> bool:
        return True

    def busy(self) -> bool:
        return False

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None: ...


@hookimpl
def register_backends(register: Callable[[str, BackendFactory], None]) -> None:
    card = published_card(NAME)
    register(NAME, OneModel(NAME, card, lambda device, dtype: Ready(card)))
