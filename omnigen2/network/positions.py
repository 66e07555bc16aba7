"""Positions of tokens on three axes and their rotary embedding.

Text token i stands at (i, i, i). After L text tokens, a reference image of h x w tokens stands at
(s, row, column) with s = L; s then grows by max(h, w) for each reference, and the denoised picture follows in
the same way.
Tables of angles grow with the positions, so that no prompt or picture is too long for them.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

THETA = 10_000.0
TABLE = 1024  # positions by which the tables of their factors grow
Grid = tuple[int, int]  # rows and columns, in tokens


def text_positions(length: int) -> np.ndarray:
    """(length, 3) int64."""
    return np.repeat(np.arange(length)[:, None], 3, axis=1)


def image_positions(shift: int, grid: Grid) -> np.ndarray:
    """(rows * columns, 3) int64, row by row."""
    rows, columns = grid
    places = np.empty((rows, columns, 3), dtype=np.int64)
    places[..., 0] = shift
    places[..., 1] = np.arange(rows)[:, None]
    places[..., 2] = np.arange(columns)[None, :]
    return places.reshape(-1, 3)


def sample_positions(text_length: int, references: Sequence[Grid], grid: Grid) -> list[np.ndarray]:
    """Positions of a sample's text, of each of its references and of its picture, in this order."""
    parts = [text_positions(text_length)]
    shift = text_length
    for reference in references:
        parts.append(image_positions(shift, reference))
        shift += max(reference)
    parts.append(image_positions(shift, grid))
    return parts


def rotations(positions: np.ndarray, axes: Sequence[int], device: torch.device) -> Tensor:
    """Cosine and sine by which pairs of channels turn: (T, sum(axes) / 2, 2) float32.

    Position p turns pair i of an axis with d channels by p * THETA ** (-2 i / d) (RoFormer, Su et al. 2021,
    eq. 15); the axes follow each other along the channels. Computed in float64, once for each position.
    """
    count = -(-(int(positions.max(initial=0)) + 1) // TABLE) * TABLE
    places = torch.from_numpy(positions)
    parts = [_turns(count, size).index_select(0, places[:, axis]) for axis, size in enumerate(axes)]
    return torch.cat(parts, dim=1).to(device)


@lru_cache(maxsize=8)
def _turns(count: int, size: int) -> Tensor:
    """Cosine and sine of positions below `count` on an axis with `size` channels: (count, size / 2, 2)."""
    with torch.inference_mode(False):
        places = torch.arange(count, dtype=torch.float64, device="cpu")[:, None]
        frequencies = torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / size
        angle = places * THETA**-frequencies
        return torch.stack([angle.cos(), angle.sin()], dim=-1).to(torch.float32)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring channel pairs of `x` (T, heads, head_dim) by `rotation` (T, head_dim / 2, 2).

    In the memory of `x` where nothing is learnt.
    """
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():  # compilers know no complex numbers
        (a, b), (cos, sin) = pairs.split(1, dim=-1), rotation[:, None].split(1, dim=-1)
        first = torch.arange(2, device=x.device) == 0
        turned = torch.where(first, a * cos - b * sin, a * sin + b * cos)
    else:  # the same products and sums, in one sweep
        numbers, factors = torch.view_as_complex(pairs), torch.view_as_complex(rotation)[:, None]
        turned = torch.view_as_real(numbers * factors if torch.is_grad_enabled() else numbers.mul_(factors))
    return turned.flatten(-2).to(x.dtype)
