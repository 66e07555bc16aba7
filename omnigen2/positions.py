"""Positions of tokens on three axes and their rotary embedding.

Text token i stands at (i, i, i). After L text tokens, a reference image of h x w tokens stands at
(s, row, column) with s = L; s then grows by max(h, w) for each reference, and the denoised picture follows in
the same way.
Angles are computed, not looked up, so that no prompt or picture is too long for a table.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

THETA = 10_000.0
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
    """Unit complex numbers by which pairs of channels turn: (T, sum(axes) / 2) complex64.

    Position p turns pair i of an axis with d channels by p * THETA ** (-2 i / d) (RoFormer, Su et al. 2021,
    eq. 15); the axes follow each other along the channels. Computed in float64.
    """
    places = torch.from_numpy(positions).to(torch.float64)
    angles = [
        places[:, axis, None] * THETA ** (-torch.arange(0, size, 2, dtype=torch.float64, device="cpu") / size)
        for axis, size in enumerate(axes)
    ]
    angle = torch.cat(angles, dim=1)
    return torch.polar(torch.ones_like(angle), angle).to(torch.complex64).to(device)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring channel pairs of `x` (T, heads, head_dim) by `rotation` (T, head_dim / 2)."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation[:, None, :]).flatten(-2).to(x.dtype)
