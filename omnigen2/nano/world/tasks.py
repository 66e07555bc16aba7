"""The examples of every task and split, determined by task, split and seed.

Some combinations of a colour, a shape and a situation occur neither in `train` nor in `test`; every example
of `unseen` contains at least one of them.
"""

import itertools
import zlib
from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np

from omnigen2.nano.world.compositions import make_compose
from omnigen2.nano.world.edits import make_edit
from omnigen2.nano.world.prompts import make_generate
from omnigen2.nano.world.questions import make_ask, make_describe
from omnigen2.nano.world.scene import COLOURS, SHAPES
from omnigen2.nano.world.spec import Combination, Example

Task = Literal["generate", "edit", "compose", "describe", "ask"]
Split = Literal["train", "test", "unseen"]

TASKS: dict[str, Callable[[np.random.Generator], Example]] = {
    "generate": make_generate,
    "edit": make_edit,
    "compose": make_compose,
    "describe": make_describe,
    "ask": make_ask,
}
SPLITS = ("train", "test", "unseen")
HELD_OUT = 2  # of the 45 pairs of colour and shape, in every situation


def held_out(combination: Combination) -> bool:
    """Whether a combination is excluded from training."""
    return combination[:2] in _withheld(combination[2])


@cache
def _withheld(situation: str) -> tuple[tuple[str, str], ...]:
    """The pairs of colour and shape excluded from training in this situation: the first by a hash."""
    pairs = itertools.product(COLOURS, SHAPES)
    return tuple(sorted(pairs, key=lambda pair: zlib.crc32(" ".join((*pair, situation)).encode()))[:HELD_OUT])


def example(task: Task, split: Split, seed: int) -> Example:
    """The example with that seed; examples of different seeds and splits are independent.

    Raises:
        ValueError: an unknown task or split.
    """
    if task not in TASKS:
        raise ValueError(f"task: {task!r} is unknown; allowed: {', '.join(TASKS)}")
    if split not in SPLITS:
        raise ValueError(f"split: {split!r} is unknown; allowed: {', '.join(SPLITS)}")
    rng = np.random.default_rng([SPLITS.index(split), list(TASKS).index(task), seed])
    while True:
        drawn = TASKS[task](rng)
        if any(map(held_out, drawn.combos)) == (split == "unseen"):
            return drawn
