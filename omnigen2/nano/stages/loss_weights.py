"""Spatial weights of the velocity loss that give faint things as much influence as strong ones.

The mean squared error of a thing grows with its squared contrast: yellow on orange counts more than ten times
less than white on black, and edits failed the more often, the fainter their faintest thing. The weights raise
the error inside a thing's box to what it would be at the batch's mean contrast.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from omnigen2.nano.world import Scene, Thing

MAX_WEIGHT = 8.0
MIN_CONTRAST = 0.05
"""Contrast, in units of the mean, below which a thing counts as invisible and keeps the weight 1."""
Box = tuple[int, slice, slice]


def loss_weights(
    targets: Sequence[Scene],
    sources: Sequence[Sequence[Scene]],
    data: Tensor,
    references: Sequence[Sequence[Tensor]],
) -> Tensor:
    """(n, h, w): weights from 1 to `MAX_WEIGHT` of the squared error at each place of `data` (n, C, h, w).

    The contrast of a thing of the target is its mean squared difference from the background's latents. With
    exactly one source, as in an edit, the source's things count too, by their difference from the target's
    latents at the same place, so that removed things get weights. `references` are the sources' latents.
    """
    background = data.flatten(2).median(dim=2).values[..., None, None]
    foreground = data - background
    found: list[tuple[Box, float]] = []
    for n, (target, own, latents) in enumerate(zip(targets, sources, references, strict=True)):
        pairs = [(thing, foreground[n]) for thing in target.things]
        if len(own) == 1:
            pairs += [(thing, latents[0] - data[n]) for thing in own[0].things]
        for thing, difference in pairs:
            rows, columns = _box(thing, *difference.shape[-2:])
            contrast = difference[:, rows, columns].square().sum(dim=0).mean()
            found.append(((n, rows, columns), float(contrast)))
    weights = torch.ones(len(data), *data.shape[-2:])
    mean = sum(contrast for _, contrast in found) / max(1, len(found))
    for box, contrast in found:
        if contrast > MIN_CONTRAST * mean:
            weights[box] = weights[box].clamp(min=min(MAX_WEIGHT, mean / contrast))
    return weights


def _box(thing: Thing, rows: int, columns: int) -> tuple[slice, slice]:
    """The latent rows and columns that the thing touches."""
    shorter = min(rows, columns)
    places = []
    for centre, count in ((thing.y, rows), (thing.x, columns)):
        low, high = centre * count - thing.reach * shorter, centre * count + thing.reach * shorter
        places.append(slice(max(0, int(low)), min(count, int(high) + 1)))
    return places[0], places[1]
