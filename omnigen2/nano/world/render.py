"""Rasteriser of scenes: plain fills, anti-aliased with 6 x 6 samples per pixel.

A shape is an inequality in the plane, in units of its radius, x to the right and y down. Coverage
masks are cached by shape, radius and the centre's offset within its pixel, the last two rounded to
quarters of a pixel, so drawing a thing is one blend of a small window.
"""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from omnigen2.nano.world.scene import COLOURS, REACH, Scene, Thing

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
_SAMPLES = 6
_STEPS = 4  # centres and radii are rounded to quarters of a pixel
_TIP, _NOTCH = 1.05, 0.46  # the star's outer and inner radius


def covers(shape: str, x: Floats, y: Floats) -> Bools:
    """Which points lie in the shape; `x`, `y` in radii from its centre, y down.

    The star folds the plane onto a tenth of it, where one line from tip to notch bounds it. The heart is
    the sextic (x² + y² - 1)³ = x²y³, fitted to the box.
    """
    if shape == "circle":
        return x * x + y * y <= 1
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) <= 0.9
    if shape == "triangle":
        return (y <= 0.8) & (np.abs(x) <= (y + 0.95) * (1 / 1.75))
    if shape == "star":
        tenth = np.pi / 5
        turn = np.abs(np.mod(np.arctan2(x, -y) + tenth, 2 * tenth) - tenth)  # angle to the nearest tip
        along, across = np.hypot(x, y) * np.cos(turn), np.hypot(x, y) * np.sin(turn)
        notch_x, notch_y = _NOTCH * np.cos(tenth), _NOTCH * np.sin(tenth)
        return (along - _TIP) * notch_y + across * (_TIP - notch_x) <= 0
    if shape == "heart":
        u, v = 1.16 * x, 0.12 - 1.14 * y
        return (u * u + v * v - 1) ** 3 <= u * u * v**3
    raise ValueError(f"shape {shape!r} is not one of circle, square, triangle, star, heart")


@lru_cache(maxsize=8192)
def coverage(shape: str, radius: float, dx: float, dy: float) -> Floats:
    """(side, side, 1) float32: the covered fraction of each pixel.

    `radius` in pixels. The centre lies (dx, dy) pixels from the corner shared by the four middle pixels.
    """
    half = int(np.ceil(radius * REACH)) + 1
    ticks = (np.arange(2 * half * _SAMPLES, dtype=np.float32) + 0.5) / _SAMPLES - half
    x, y = (ticks[None, :] - dx) / radius, (ticks[:, None] - dy) / radius
    hits = covers(shape, *np.broadcast_arrays(x, y))
    mask = hits.reshape(2 * half, _SAMPLES, 2 * half, _SAMPLES).mean(axis=(1, 3), dtype=np.float32)
    return mask[:, :, None]


def render(
    scene: Scene, width: int = 96, height: int = 96, colours: Mapping[str, tuple[int, int, int]] = COLOURS
) -> NDArray[np.uint8]:
    """Draw the scene as (height, width, 3) sRGB bytes; `width` and `height` in pixels, `colours` by name."""
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = colours[scene.background]
    for thing in scene.things:
        _draw(canvas, thing, colours[thing.colour])
    return (canvas + 0.5).astype(np.uint8)


def _draw(canvas: Floats, thing: Thing, colour: tuple[int, int, int]) -> None:
    height, width, _ = canvas.shape
    column, dx = _snap(thing.x * width)
    row, dy = _snap(thing.y * height)
    radius = round(thing.radius * min(width, height) * _STEPS) / _STEPS
    mask = coverage(thing.shape, radius, dx, dy)
    half = mask.shape[0] // 2
    top, left = max(0, row - half), max(0, column - half)
    window = canvas[top : row + half, left : column + half]
    mask = mask[top - row + half :, left - column + half :][: window.shape[0], : window.shape[1]]
    window += mask * (np.asarray(colour, np.float32) - window)


def _snap(position: float) -> tuple[int, float]:
    whole, part = divmod(round(position * _STEPS), _STEPS)
    return whole, part / _STEPS
