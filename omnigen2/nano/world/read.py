"""Recognition of a scene in a picture: the basis of every score.

The background is the commonest palette colour along the border. Pixels nearest to another palette colour
form connected components; each becomes a thing of the colour of most of its pixels and the shape whose
rendering overlaps it best. What cannot be classified is a doubt, and a picture with doubts is never correct.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from omnigen2.nano.world.render import covers
from omnigen2.nano.world.scene import COLOURS, SHAPES, SIZES, Thing

NAMES = tuple(COLOURS)
PALETTE = np.array(list(COLOURS.values()), np.float32)
COLOUR_LIMIT = 60.0  # farthest (Euclidean, in 8-bit sRGB) from its palette colour that a fill may be
FIT_LIMIT = 0.8  # least overlap (intersection over union) with the best shape
SPECK = 0.006  # components below this share of the shorter side squared are specks, not things
_PARTS = 0.35  # a speck's share above which it is a doubt rather than noise


@dataclass(frozen=True)
class Reading:
    """The recognised scene; `fits` is each thing's intersection over union with its shape, 0 to 1, `doubts`
    say in words what could not be classified."""

    background: str
    things: tuple[Thing, ...]
    fits: tuple[float, ...]
    doubts: tuple[str, ...]


def read_scene(picture: Image.Image | NDArray[np.uint8]) -> Reading:
    """The scene in a picture of at least 32 px a side: a PIL image or (height, width, 3) bytes."""
    pixels = np.asarray(picture.convert("RGB") if isinstance(picture, Image.Image) else picture, np.float32)
    height, width, _ = pixels.shape
    distances = np.stack([np.square(pixels - colour).sum(-1) for colour in PALETTE])
    nearest = distances.argmin(0)
    border = np.concatenate([nearest[0], nearest[-1], nearest[:, 0], nearest[:, -1]])
    background = int(np.bincount(border, minlength=len(NAMES)).argmax())
    doubts = []
    if np.sqrt(np.median(distances[background][nearest == background])) > COLOUR_LIMIT:
        doubts.append("the background's colour is off the palette")
    things, fits = [], []
    side = min(width, height)
    for mask in components(nearest != background):
        if mask.sum() < SPECK * side * side:
            if mask.sum() > _PARTS * SPECK * side * side:
                doubts.append("a speck")
            continue
        thing, fit, doubt = _name(pixels, nearest, mask, background)
        things.append(thing)
        fits.append(fit)
        if doubt:
            doubts.append(doubt)
    return Reading(NAMES[background], tuple(things), tuple(fits), tuple(doubts))


def components(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """The 4-connected parts of a (height, width) mask, as masks, by joining runs of rows."""
    padded = np.pad(mask, ((0, 0), (1, 1))).astype(np.int8)
    rows, edges = np.nonzero(np.diff(padded, axis=1))
    runs = list(zip(rows[::2].tolist(), edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    parent = list(range(len(runs)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    above: list[int] = []
    current: list[int] = []
    last = -1
    for i, (row, start, stop) in enumerate(runs):
        if row != last:
            above, current = (current if row == last + 1 else []), []
            last = row
        for j in above:
            if runs[j][1] < stop and start < runs[j][2]:
                parent[root(j)] = root(i)
        current.append(i)
    parts: dict[int, NDArray[np.bool_]] = {}
    for i, (row, start, stop) in enumerate(runs):
        parts.setdefault(root(i), np.zeros_like(mask))[row, start:stop] = True
    return list(parts.values())


def _name(
    pixels: NDArray[np.float32], nearest: NDArray[np.intp], mask: NDArray[np.bool_], background: int
) -> tuple[Thing, float, str]:
    """One component as a thing, its overlap, and a doubt, which is empty if it was classified."""
    height, width = mask.shape
    counts = np.bincount(nearest[mask], minlength=len(NAMES))
    colour = int(counts.argmax())
    fill = np.median(pixels[mask & (nearest == colour)], axis=0)
    # How much of each pixel the thing covers: its colour's share on the line from background to fill.
    line = PALETTE[colour] - PALETTE[background]
    share = ((pixels - PALETTE[background]) @ line / (line @ line)).clip(0, 1)
    shape, x, y, radius, fit = _best_shape(np.where(_grown(mask), share, 0))
    norm = radius / min(width, height)
    size = min(SIZES, key=lambda name: abs(np.log(SIZES[name] / max(norm, 1e-6))))
    thing = Thing(shape, NAMES[colour], size, x / width, y / height, norm / SIZES[size])
    where = f"at ({thing.x:.2f}, {thing.y:.2f})"
    if np.linalg.norm(fill - PALETTE[colour]) > COLOUR_LIMIT:
        return thing, fit, f"a colour off the palette {where}"
    if counts[colour] < 0.6 * counts.sum():
        return thing, fit, f"a mix of colours {where}"
    return thing, fit, "" if fit >= FIT_LIMIT else f"no clear shape {where}"


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask with its 4-neighbours."""
    padded = np.pad(mask, 1)
    return mask | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]


def _moments(shape: str) -> tuple[float, float]:
    """Area and centroid's y of a shape of radius one; its centroid's x is 0."""
    ticks = np.linspace(-1.1, 1.1, 441, dtype=np.float32)
    hits = covers(shape, *np.broadcast_arrays(ticks[None, :], ticks[:, None]))
    return float(hits.sum()) * 0.005**2, float(ticks[np.nonzero(hits)[0]].mean())


_MOMENTS = {shape: _moments(shape) for shape in SHAPES}
_SAMPLES = 3


def _best_shape(share: NDArray[np.float32]) -> tuple[str, float, float, float, float]:
    """Shape, centre x and y and radius in pixels, and overlap, of the drawing that fits best.

    Each shape is tried with the area and the centroid of `share`, the (height, width) coverage, 0 to 1.
    """
    rows, columns = np.nonzero(share > 0)
    top, left = int(rows.min()), int(columns.min())
    window = share[top : rows.max() + 1, left : columns.max() + 1]
    area = float(window.sum())
    middle_x = float(window.sum(0) @ (np.arange(window.shape[1]) + 0.5)) / area
    middle_y = float(window.sum(1) @ (np.arange(window.shape[0]) + 0.5)) / area
    y_ticks = (np.arange(window.shape[0] * _SAMPLES, dtype=np.float32) + 0.5) / _SAMPLES
    x_ticks = (np.arange(window.shape[1] * _SAMPLES, dtype=np.float32) + 0.5) / _SAMPLES
    best = (SHAPES[0], 0.0, 0.0, 1.0, -1.0)
    for shape, (unit_area, unit_y) in _MOMENTS.items():
        radius = (area / unit_area) ** 0.5
        y = middle_y - radius * unit_y
        points = np.broadcast_arrays((x_ticks[None, :] - middle_x) / radius, (y_ticks[:, None] - y) / radius)
        hits = covers(shape, *points)
        drawn = hits.reshape(window.shape[0], _SAMPLES, window.shape[1], _SAMPLES).mean(axis=(1, 3))
        fit = float(np.minimum(drawn, window).sum() / np.maximum(drawn, window).sum())
        if fit > best[4]:
            best = (shape, left + middle_x, top + y, radius, fit)
    return best
