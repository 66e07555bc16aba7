"""Keys and values of the tokens that a language model has read; every further token looks at them.

Both classes stand for transformers' `Cache` in the one call that its decoder layers make: `update`. Memory
grows by doubling and is written in place.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

ROOM = 256
"""Least number of tokens for which memory is taken."""
Pair = tuple[Tensor, Tensor]


def room_for(tokens: int) -> int:
    """Tokens for which memory is taken where so many are needed: a power of two, so that few sizes occur."""
    return max(ROOM, 1 << (tokens - 1).bit_length())


class KeyValues:
    """Those of one text: for every layer keys and values (1, heads, room, head_dim), `length` tokens long."""

    def __init__(self, layers: Sequence[Pair] = (), length: int = 0) -> None:
        self.layers, self.length = list(layers), length

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> Pair:
        """Write those of n new tokens (1, heads, n, head_dim), and return all of that layer.

        They count when `length` is raised, once every layer has them. If that failed, they are written again.
        """
        if layer == len(self.layers):
            self.layers.append((keys[:, :, :0], values[:, :, :0]))
        end = self.length + keys.shape[2]
        old = self.layers[layer]
        if old[0].shape[2] < end:
            old = self.layers[layer] = (
                _enlarged(old[0], 1, room_for(end)),
                _enlarged(old[1], 1, room_for(end)),
            )
        for memory, new in zip(old, (keys, values), strict=True):
            memory[:, :, self.length : end] = new
        return old[0][:, :, :end], old[1][:, :, :end]


class Rows:
    """Those of several texts, a row each: for every layer (rows, heads, room, head_dim).

    What lies beyond a row's place is stale, and is masked.

    `places` (rows,) int64, set by the caller, says where the next token of each row is written.
    """

    def __init__(self, layers: Sequence[Pair], rows: int, room: int):
        """`layers` are the first of these rows, or a part of each."""
        self.count, self.room = rows, room
        self.layers = [
            (_enlarged(keys, rows, room), _enlarged(values, rows, room)) for keys, values in layers
        ]
        device = self.layers[0][0].device
        self.places = torch.zeros(rows, dtype=torch.int64, device=device)
        self._each = torch.arange(rows, device=device)

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: object) -> Pair:
        """Write those of a new token in each row (rows, heads, 1, head_dim), and return all of that layer."""
        for memory, new in zip(self.layers[layer], (keys, values), strict=True):
            memory[self._each, :, self.places] = new[:, :, 0]
        return self.layers[layer]

    def put(self, row: int, text: KeyValues) -> None:
        """Copy those of a text into a row."""
        for mine, own in zip(self.layers, text.layers, strict=True):
            for memory, tensor in zip(mine, own, strict=True):
                memory[row, :, : text.length] = tensor[0, :, : text.length]

    def taken(self, row: int, length: int) -> KeyValues:
        """A copy of those of a row."""
        layers = [
            (keys[row : row + 1, :, :length].clone(), values[row : row + 1, :, :length].clone())
            for keys, values in self.layers
        ]
        return KeyValues(layers, length)


def _enlarged(tensor: Tensor, rows: int, room: int) -> Tensor:
    new = tensor.new_zeros(rows, tensor.shape[1], room, tensor.shape[3])
    new[: tensor.shape[0], :, : tensor.shape[2]] = tensor
    return new
