"""What a ShapeWorld scene is, and how a random one is drawn.

Lengths are fractions: `x` of the width, `y` of the height (down), radii of the shorter side. So one
scene fits every picture size, and what keeps its distance in a square keeps it in any rectangle.
Shapes live in a box of about one radius around their centre; things never share a box, which keeps
connected components a sound way to read a picture back.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (50, 90, 220),
    "yellow": (245, 210, 50),
    "purple": (145, 60, 180),
    "orange": (245, 140, 30),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
    "gray": (135, 135, 135),
}
SHAPES = ("circle", "square", "triangle", "star", "heart")
# A geometric series, so that a size is recognised by the nearest logarithm; four large things still fit.
SIZES: dict[str, float] = {"small": 0.11, "medium": 0.16, "large": 0.23}
GAP = 0.045  # least distance between two boxes: about 3 pixels at 64 px
MARGIN = 0.02  # least distance of a box to the border
JITTER = 0.08  # how far a freely drawn radius departs from its norm
REACH = 1.06  # half side of the box that holds every shape, in radii


@dataclass(frozen=True)
class Thing:
    """One shape of a scene; `x`, `y` are its centre as fractions of the width and of the height.

    `scale` is how far its radius departs from the size's norm: pictures drawn by others are not ours.
    """

    shape: str
    colour: str
    size: str
    x: float
    y: float
    scale: float = 1.0

    @property
    def radius(self) -> float:
        """Its radius as a fraction of the picture's shorter side."""
        return SIZES[self.size] * self.scale

    @property
    def reach(self) -> float:
        """Half the side of the box that holds it, as a fraction of the picture's shorter side."""
        return self.radius * REACH


@dataclass(frozen=True)
class Scene:
    """A plain background colour and the things on it, none touching another or the border."""

    background: str
    things: tuple[Thing, ...]


def inside(thing: Thing, margin: float = MARGIN) -> bool:
    """Whether the thing keeps its distance from the border of a square picture."""
    least, most = thing.reach + margin, 1 - thing.reach - margin
    return least <= thing.x <= most and least <= thing.y <= most


def apart(a: Thing, b: Thing, gap: float = GAP) -> bool:
    """Whether the boxes of two things keep their distance in a square picture."""
    return max(abs(a.x - b.x), abs(a.y - b.y)) >= a.reach + b.reach + gap


def fits(thing: Thing, others: Iterable[Thing], gap: float = GAP) -> bool:
    """Whether the thing can stand among the others."""
    return inside(thing) and all(apart(thing, other, gap) for other in others)


def place_freely(
    rng: np.random.Generator, shape: str, colour: str, size: str, others: Sequence[Thing], tries: int = 12
) -> Thing | None:
    """The thing at a random free spot, or None when none was found in so many tries."""
    scale = float(rng.uniform(1 - JITTER, 1 + JITTER))
    low = SIZES[size] * scale * REACH + MARGIN
    for x, y in rng.uniform(low, 1 - low, (tries, 2)).tolist():
        thing = Thing(shape, colour, size, x, y, scale)
        if fits(thing, others):
            return thing
    return None


def sample_scene(
    rng: np.random.Generator, least: int = 1, most: int = 4, background: str | None = None
) -> Scene:
    """A scene of `least` to `most` things of any shape, colour, size and free position.

    Crowded scenes hold fewer large things, because they would not fit. Half of the scenes with several
    things reuse a shape or a colour, so that "the red circle" must be distinguished from "the red
    square".
    """
    if background is None:
        background = pick(rng, tuple(COLOURS))
    colours = tuple(c for c in COLOURS if c != background)
    count = int(rng.integers(least, most + 1))
    while True:
        things: list[Thing] = []
        shapes, tints = (SHAPES, colours) if rng.random() < 0.5 else (_few(rng, SHAPES), _few(rng, colours))
        for _ in range(count):
            size = pick(rng, tuple(SIZES) if count < 3 else ("small", "small", "medium", "large"))
            thing = place_freely(rng, pick(rng, shapes), pick(rng, tints), size, things)
            if thing is None:
                break
            things.append(thing)
        if len(things) == count:
            return Scene(background, tuple(things))


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices, each as likely."""
    return choices[int(rng.integers(len(choices)))]


def _few(rng: np.random.Generator, values: Sequence[str]) -> tuple[str, ...]:
    chosen = rng.choice(len(values), size=2, replace=False)
    return tuple(values[int(i)] for i in chosen)
