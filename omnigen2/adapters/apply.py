"""LoRA at work on packed tokens: W x + weight * B A x, in the rows of those sequences that use an adapter.

The terms are added by forward hooks that exist only while a call runs: between calls the model is as it was
loaded, whatever its layers are (plain, quantised, streamed). A compiled block cannot have other hooks than it
was compiled with. So there is a form of it in which every layer has the same one: an operator, opaque to the
compiler, that looks up what the forward adds to a layer by the layer's number.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import itemgetter
from sys import maxsize
from types import MappingProxyType
from typing import Any

import torch
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
def adapted(
    model: nn.Module, added: Terms, numbered: Mapping[str, Any] = MappingProxyType({})
) -> Generator[None]:
    """Let the layers of `model` add these terms inside the block.

    `numbered`: the layers that compiled code runs, by their names (`number`).
    """
    hooks = [layer.register_forward_hook(_add_by_number) for layer in numbered.values()]
    _forward.terms = {int(own.number): added.get(name, ()) for name, own in numbered.items()}
    try:
        for layer, own in added.items():
            if layer not in numbered:
                hooks.append(model.get_submodule(layer).register_forward_hook(partial(_add, own)))
        yield
    finally:
        _forward.terms = {}
        for hook in hooks:
            hook.remove()


@torch.inference_mode(False)
def number(model: nn.Module, blocks: Iterable[nn.Module]) -> dict[str, Any]:
    """The linear layers of some blocks by their names in `model`, each with a number for compiled code.

    It is a tensor: another number would be a constant of the code.
    """
    inside = {id(layer) for block in blocks for layer in block.modules() if hasattr(layer, "in_features")}
    layers: dict[str, Any] = {name: layer for name, layer in model.named_modules() if id(layer) in inside}
    for place, layer in enumerate(layers.values()):
        layer.number = torch.tensor(place, device="cpu")
    return layers


class _Forward(threading.local):
    """The forward of a thread: what it adds to layers, by their numbers."""

    terms: Mapping[int, Sequence[Term]] = MappingProxyType({})


_forward = _Forward()


@torch.library.custom_op("omnigen2::add_terms", mutates_args=("output",))
def add_terms(output: Tensor, x: Tensor, number: Tensor) -> None:
    """Add the terms of a layer to its output, in place."""
    _add(_forward.terms[int(number)], None, (x,), output)


def _add_by_number(layer: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    add_terms(output, inputs[0], layer.number)


def _add(added: Sequence[Term], _: nn.Module | None, inputs: tuple[Tensor], output: Tensor) -> None:
    """The hook: adds terms to the output of a layer, in place."""
    (x,) = inputs
    for term in added:
        rows = slice(term.start, term.stop)
        down, up = term.change.down.to(x.dtype), term.change.up.to(x.dtype)
        output[rows].addmm_(x[rows] @ down.T, up.T, alpha=term.weight)
