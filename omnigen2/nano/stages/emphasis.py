"""Faint things count as much as strong ones.

A mean squared error hears yellow on orange more than ten times less than white on black, and what it heard
least came out as a blob: edits failed the more often, the fainter their faintest thing. So the error in the
box of a thing weighs what it would at mean contrast.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from omnigen2.nano.world import Scene, Thing

LOUDEST = 8.0
"""Most that an error may weigh."""
UNCHANGED = 0.05
"""Contrast, in units of the mean, below which there is nothing to see."""
Box = tuple[int, slice, slice]


def emphasis(
    targets: Sequence[Scene],
    sources: Sequence[Sequence[Scene]],
    data: Tensor,
    references: Sequence[Sequence[Tensor]],
) -> Tensor:
    """(n, h, w): how much the error weighs at each place of `data` (n, C, h, w), from 1 to `LOUDEST`.

    Things of the target are held against its background; where there is one source, as for an edit, its
    things are held against what the target has in their place, so that what must go counts as well.
    `references` are the latents of the sources.
    """
    plain = data.flatten(2).median(dim=2).values[..., None, None]
    standing = data - plain
    found: list[tuple[Box, float]] = []
    for n, (target, own, seen) in enumerate(zip(targets, sources, references, strict=True)):
        pairs = [(thing, standing[n]) for thing in target.things]
        if len(own) == 1:
            pairs += [(thing, seen[0] - data[n]) for thing in own[0].things]
        for thing, difference in pairs:
            rows, columns = _box(thing, *difference.shape[-2:])
            contrast = difference[:, rows, columns].square().sum(dim=0).mean()
            found.append(((n, rows, columns), float(contrast)))
    weights = torch.ones(len(data), *data.shape[-2:])
    mean = sum(contrast for _, contrast in found) / max(1, len(found))
    for box, contrast in found:
        if contrast > UNCHANGED * mean:
            weights[box] = weights[box].clamp(min=min(LOUDEST, mean / contrast))
    return weights


def _box(thing: Thing, rows: int, columns: int) -> tuple[slice, slice]:
    """The cells that the thing touches."""
    shorter = min(rows, columns)
    places = []
    for centre, count in ((thing.y, rows), (thing.x, columns)):
        low, high = centre * count - thing.reach * shorter, centre * count + thing.reach * shorter
        places.append(slice(max(0, int(low)), min(count, int(high) + 1)))
    return places[0], places[1]
