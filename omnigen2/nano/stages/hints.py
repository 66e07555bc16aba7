"""What states inside the language model must tell while it learns to see.

Answers alone take thousands of steps to say what is missing inside. So small heads ask for it where it should
be known, and are thrown away: the eye's tokens for the thing in their cell; the tokens halfway for their row,
column and picture, because nothing but the rotations of attention says where they lie, and for how many of
the things before them equal theirs; the words of a caption, one layer before the end, for the whole kind of
thing that they name, because the first of them is its count.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnigen2.nano.stages.reader import numbers_of
from omnigen2.nano.world import COLOURS, SHAPES, SIZES, Scene, Thing
from omnigen2.nano.world.words import kinds
from omnigen2.params import MAX_REFERENCES

IGNORED = -100
"""Label of what is not to be told."""
MOST_THINGS = 4


@dataclass(frozen=True)
class Hint:
    """What is asked, and how many answers each question has; of the states at which share of the language
    model's layers (0: of the eye's tokens); how much the answers weigh."""

    asked: dict[str, int]
    depth: float
    weight: float


_KIND = {"shape": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES)}
HINTS = {
    "cells": Hint({"taken": 2} | _KIND | {"background": len(COLOURS)}, 0, 0.2),
    "places": Hint({"row": 12, "column": 12, "picture": MAX_REFERENCES}, 0.5, 0.2),
    "equals": Hint({"before": MOST_THINGS}, 0.5, 0.5),
    "plans": Hint({"count": MOST_THINGS} | _KIND, 0.75, 0.3),
}
"""Cells, places and equals are asked of visual tokens, plans of a caption's words."""
EMPTY, TAKEN = 0, 1
Grid = tuple[int, int]


class Heads(nn.Module):
    """A head for each thing that is asked. They begin at zero, knowing nothing."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = nn.ModuleDict(
            {f"{name}_{asked}": nn.Linear(width, count) for name, hint in HINTS.items()
             for asked, count in hint.asked.items()}
        )  # fmt: skip
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(self, name: str, states: Tensor, wanted: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """What the heads of a hint make of `states` (..., width), and what is `wanted` (..., heads), where it
        is anything: logits (n, count) and labels (n,) by `hint_asked`."""
        there = (wanted != IGNORED).any(-1)
        heard = F.rms_norm(states[there], states.shape[-1:])
        return {
            (key := f"{name}_{asked}"): (self.heads[key](heard).float(), labels)
            for asked, labels in zip(HINTS[name].asked, wanted[there].unbind(-1), strict=True)
        }


def seen_of(scenes: Sequence[Scene], grids: Sequence[Grid]) -> dict[str, Tensor]:
    """What the visual tokens of pictures with these rows and columns must tell: (tokens, heads) by hint."""
    pairs = list(zip(scenes, grids, strict=True))
    return {
        "cells": torch.cat([cells_of(*pair) for pair in pairs]),
        "places": places_of(grids),
        "equals": torch.cat([equals_of(*pair) for pair in pairs]),
    }


def cells_of(scene: Scene, grid: Grid) -> Tensor:
    """(rows * columns, 5) int64: shape, colour and size are a thing's whose centre lies in the cell."""
    cells = torch.full((grid[0] * grid[1], len(HINTS["cells"].asked)), IGNORED)
    cells[:, 0] = EMPTY
    cells[:, -1] = tuple(COLOURS).index(scene.background)
    for thing in scene.things:
        cells[_cell(thing, grid), :-1] = torch.tensor((TAKEN, *numbers_of(thing)))
    return cells


def places_of(grids: Sequence[Grid]) -> Tensor:
    """(tokens, 3): row, column and number of the picture."""
    own = [
        torch.cartesian_prod(torch.tensor([number]), torch.arange(rows), torch.arange(columns))
        for number, (rows, columns) in enumerate(grids)
    ]
    return torch.cat(own).roll(-1, dims=1)


def equals_of(scene: Scene, grid: Grid) -> Tensor:
    """(rows * columns, 1): how many equal things lie in the cells before a thing's own. Only those: a token
    does not see what comes after it."""
    equals = torch.full((grid[0] * grid[1], 1), IGNORED)
    things = sorted(scene.things, key=lambda thing: _cell(thing, grid))
    named = [numbers_of(thing) for thing in things]
    for number, thing in enumerate(things):
        equals[_cell(thing, grid)] = named[:number].count(named[number])
    return equals


def _cell(thing: Thing, grid: Grid) -> int:
    rows, columns = grid
    row, column = min(rows - 1, int(thing.y * rows)), min(columns - 1, int(thing.x * columns))
    return row * columns + column


def plans_of(scene: Scene, words: Sequence[str]) -> Tensor:
    """(n, 4): count, shape, colour and size of the kind that is to be named before the first of a caption's
    words, and after each of them, until all kinds are named."""
    named = [(count - 1, *numbers_of(thing)) for thing, count in kinds(scene)]
    return torch.tensor([named[number] for number in _spoken(words)])


def _spoken(words: Sequence[str]) -> Iterator[int]:
    """How many kinds are named already, before the first word and after each."""
    listed = itertools.takewhile(lambda word: word != "on", words)
    return itertools.accumulate((word in (",", "and") for word in listed), initial=0)
