"""LoRA at work on packed tokens: W x + weight * B A x, in the rows of those sequences that use an adapter.

The terms are added by forward hooks that exist only while a call runs: between calls the model is as it was
loaded, whatever its layers are (plain, quantised, streamed). A compiled layer ignores hooks that come after
its compilation: batches with adapters run the layers as they are written. Tensors of adapters in the graphs
would have to be stacked, and filled up to a common rank and to all layers, so that the graphs stay few.
"""

from collections import defaultdict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from sys import maxsize
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class LowRank:
    """What is added to the weight of a layer: `up` (out, rank) times `down` (rank, in)."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, eq=False)
class LoadedAdapter:
    """An adapter on the device of its model: the change of each layer, by the layer's name."""

    layers: Mapping[str, LowRank]


Active = tuple[tuple[LoadedAdapter, float], ...]
"""The adapters that a sequence uses, with their weights."""


@dataclass(frozen=True, eq=False)
class Term:
    """A change of a layer, for the rows of its input from `start` to `stop`."""

    start: int
    stop: int
    change: LowRank
    weight: float


Terms = Mapping[str, Sequence[Term]]
"""What is added to the output of each layer, by the layer's name."""


def terms(active: Sequence[Active], rows: Callable[[str], Sequence[int]]) -> Terms:
    """The terms of sequences that are packed one after the other.

    `rows` gives, for a layer, the number of rows that each sequence has in its input. Neighbours with the
    same adapters share a term.
    """
    found: dict[str, list[Term]] = defaultdict(list)
    for layer in {layer for own in active for adapter, _ in own for layer in adapter.layers}:
        start = 0
        for own, group in groupby(zip(active, rows(layer), strict=True), key=itemgetter(0)):
            stop = start + sum(count for _, count in group)
            for adapter, weight in own if stop > start else ():
                if change := adapter.layers.get(layer):
                    found[layer].append(Term(start, stop, change, weight))
            start = stop
    return found


def terms_for_all(active: Active) -> Terms:
    """The terms of adapters that every row uses."""
    return terms([active], lambda layer: [maxsize])


@contextmanager
def adapted(model: nn.Module, added: Terms) -> Generator[None]:
    """Let the layers of `model` add these terms inside the block."""
    hooks: list[Any] = []
    try:
        for layer, own in added.items():
            hooks.append(model.get_submodule(layer).register_forward_hook(partial(_add, own)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add(added: Sequence[Term], layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    """The hook: adds terms to the output of a layer, in place."""
    (x,) = inputs
    for term in added:
        rows = slice(term.start, term.stop)
        down, up = term.change.down.to(x.dtype), term.change.up.to(x.dtype)
        output[rows].addmm_(x[rows] @ down.T, up.T, alpha=term.weight)
