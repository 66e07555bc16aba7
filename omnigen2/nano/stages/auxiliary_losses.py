"""Auxiliary classification losses on hidden states of the language model during vision training.

From answers alone the model learns slowly what its hidden states lack. Linear heads, discarded after
training, therefore predict it directly: each visual token the thing in its cell of the picture; halfway
through the layers, each visual token its row, column and picture, which only the rotary embeddings of
attention reveal, and how many earlier things equal the one in its cell; one layer before the last, each token
of a caption the kind of thing that it describes, whose count is the first word.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnigen2.nano.stages.auxiliary_head import class_ids
from omnigen2.nano.world import COLOURS, SHAPES, SIZES, Scene, Thing
from omnigen2.nano.world.words import kinds
from omnigen2.params import MAX_REFERENCES

IGNORED = -100
"""Label of positions without a target."""
MAX_THINGS = 4


@dataclass(frozen=True)
class AuxiliaryTask:
    """A set of classifications of the same hidden states: the number of classes of each by name, the depth of
    the states as a share of the language model's layers (0: the visual tokens that enter it), and the weight
    of the losses."""

    classes: dict[str, int]
    depth: float
    weight: float


_KIND = {"shape": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES)}
AUXILIARY = {
    "cells": AuxiliaryTask({"taken": 2} | _KIND | {"background": len(COLOURS)}, 0, 0.2),
    "places": AuxiliaryTask({"row": 12, "column": 12, "picture": MAX_REFERENCES}, 0.5, 0.2),
    "equals": AuxiliaryTask({"before": MAX_THINGS}, 0.5, 0.5),
    "plans": AuxiliaryTask({"count": MAX_THINGS} | _KIND, 0.75, 0.3),
}
"""`cells`, `places` and `equals` are predicted from visual tokens, `plans` from the tokens of a caption."""
EMPTY, TAKEN = 0, 1
Grid = tuple[int, int]


class AuxiliaryHeads(nn.Module):
    """A linear head for each classification, initialised to zero."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = nn.ModuleDict(
            {f"{name}_{kind}": nn.Linear(width, count) for name, task in AUXILIARY.items()
             for kind, count in task.classes.items()}
        )  # fmt: skip
        for weight in self.parameters():
            nn.init.zeros_(weight)

    def forward(self, name: str, states: Tensor, labels: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Logits (n, classes) and labels (n,) of each classification of the task `name`, by `name_kind`.

        `states` (..., width) are normalised here; `labels` (..., kinds). The n positions are those that have
        any label.
        """
        labelled = (labels != IGNORED).any(-1)
        normed = F.rms_norm(states[labelled], states.shape[-1:])
        return {
            (key := f"{name}_{kind}"): (self.heads[key](normed).float(), own)
            for kind, own in zip(AUXILIARY[name].classes, labels[labelled].unbind(-1), strict=True)
        }


def visual_labels(scenes: Sequence[Scene], grids: Sequence[Grid]) -> dict[str, Tensor]:
    """The labels of the visual tokens of pictures, (tokens, kinds) by task; `grids` are each picture's rows
    and columns of tokens."""
    pairs = list(zip(scenes, grids, strict=True))
    return {
        "cells": torch.cat([cell_labels(*pair) for pair in pairs]),
        "places": place_labels(grids),
        "equals": torch.cat([equal_labels(*pair) for pair in pairs]),
    }


def cell_labels(scene: Scene, grid: Grid) -> Tensor:
    """(rows * columns, 5) int64, the classes of `cells`; shape, colour and size are those of the thing whose
    centre lies in the cell."""
    cells = torch.full((grid[0] * grid[1], len(AUXILIARY["cells"].classes)), IGNORED)
    cells[:, 0] = EMPTY
    cells[:, -1] = tuple(COLOURS).index(scene.background)
    for thing in scene.things:
        cells[_cell(thing, grid), :-1] = torch.tensor((TAKEN, *class_ids(thing)))
    return cells


def place_labels(grids: Sequence[Grid]) -> Tensor:
    """(tokens, 3) int64: row, column and index of the picture."""
    own = [
        torch.cartesian_prod(torch.tensor([number]), torch.arange(rows), torch.arange(columns))
        for number, (rows, columns) in enumerate(grids)
    ]
    return torch.cat(own).roll(-1, dims=1)


def equal_labels(scene: Scene, grid: Grid) -> Tensor:
    """(rows * columns, 1) int64: the number of equal things in earlier cells, in the cells that hold a thing.

    Later cells do not count, since attention is causal.
    """
    equals = torch.full((grid[0] * grid[1], 1), IGNORED)
    things = sorted(scene.things, key=lambda thing: _cell(thing, grid))
    named = [class_ids(thing) for thing in things]
    for number, thing in enumerate(things):
        equals[_cell(thing, grid)] = named[:number].count(named[number])
    return equals


def _cell(thing: Thing, grid: Grid) -> int:
    rows, columns = grid
    row, column = min(rows - 1, int(thing.y * rows)), min(columns - 1, int(thing.x * columns))
    return row * columns + column


def plan_labels(scene: Scene, words: Sequence[str]) -> Tensor:
    """(n, 4) int64: count, shape, colour and size of the kind of thing that comes next in the caption, before
    its first word and after each word up to the last kind."""
    named = [(count - 1, *class_ids(thing)) for thing, count in kinds(scene)]
    return torch.tensor([named[number] for number in _kinds_completed(words)])


def _kinds_completed(words: Sequence[str]) -> Iterator[int]:
    """The number of completed kinds before the first word of a caption and after each."""
    listed = itertools.takewhile(lambda word: word != "on", words)
    return itertools.accumulate((word in (",", "and") for word in listed), initial=0)
