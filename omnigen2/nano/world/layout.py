"""Canonical positions of things whose position the prompt leaves open.

A small model learns one canonical answer far sooner than a distribution, so the only randomness in a target
is a small common shift, without which different seeds would give equal pictures. Positions are (x, y)
fractions of the width and height.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from omnigen2.nano.world.scene import MARGIN, Thing, fits

Spot = tuple[float, float]

SHIFT = 0.012  # largest shift of a whole arrangement
_LOW, _HIGH = 0.265, 0.735
_NEAR, _FAR = 0.25, 0.75  # side by side: two large things just fit
_SIDES = {"left": _LOW, "right": _HIGH, "top": _LOW, "bottom": _HIGH}
SPOTS: dict[str, Spot] = {
    "centre": (0.5, 0.5),
    "right": (_HIGH, 0.5),
    "left": (_LOW, 0.5),
    "top": (0.5, _LOW),
    "bottom": (0.5, _HIGH),
    "top right": (_HIGH, _LOW),
    "top left": (_LOW, _LOW),
    "bottom right": (_HIGH, _HIGH),
    "bottom left": (_LOW, _HIGH),
}
_ARRANGEMENTS: dict[int, tuple[Spot, ...]] = {
    1: ((0.5, 0.5),),
    2: ((_NEAR, 0.5), (_FAR, 0.5)),
    3: ((0.5, _NEAR), (_NEAR, _FAR), (_FAR, _FAR)),
    4: ((_NEAR, _NEAR), (_FAR, _NEAR), (_NEAR, _FAR), (_FAR, _FAR)),
}
# More than two in a row stand in a zigzag: apart, and still in order from left to right.
_ROWS: dict[int, tuple[Spot, ...]] = {
    2: _ARRANGEMENTS[2],
    3: ((0.18, 0.5), (0.5, 0.5), (0.82, 0.5)),
    4: ((0.15, 0.36), (0.38, 0.64), (0.62, 0.36), (0.85, 0.64)),
    5: ((0.14, 0.34), (0.32, 0.66), (0.5, 0.34), (0.68, 0.66), (0.86, 0.34)),
}
_PAIRS: dict[str, tuple[Spot, Spot]] = {
    "left of": ((_NEAR, 0.5), (_FAR, 0.5)),
    "right of": ((_FAR, 0.5), (_NEAR, 0.5)),
    "above": ((0.5, _NEAR), (0.5, _FAR)),
    "below": ((0.5, _FAR), (0.5, _NEAR)),
}


def arrangement(count: int) -> tuple[Spot, ...]:
    """The spots of one to four things without a named position, in the order of mention."""
    return _ARRANGEMENTS[count]


def row(count: int) -> tuple[Spot, ...]:
    """The spots of two to five things side by side, left to right."""
    return _ROWS[count]


def column(count: int) -> tuple[Spot, ...]:
    """The spots of two to five things one above the other, top to bottom."""
    return tuple((y, x) for x, y in _ROWS[count])


def pair(relation: str) -> tuple[Spot, Spot]:
    """The spots of two things that stand in the relation."""
    return _PAIRS[relation]


def shifted(rng: np.random.Generator, things: Sequence[Thing]) -> tuple[Thing, ...]:
    """The arrangement, randomly shifted as a whole by up to `SHIFT`."""
    dx, dy = rng.uniform(-SHIFT, SHIFT, 2).tolist()
    return tuple(Thing(t.shape, t.colour, t.size, t.x + dx, t.y + dy, t.scale) for t in things)


def plain_background(colours: Iterable[str]) -> str:
    """The background colour of a prompt that names none: the first of a fixed list that is not taken."""
    taken = set(colours)
    return next(
        colour for colour in ("white", "gray", "black", "blue", "yellow", "green") if colour not in taken
    )


def beside(relation: str, thing: Thing, reach: float) -> Spot:
    """The spot of something of that `reach` in the relation to the thing, at a fixed distance from it."""
    distance = thing.reach + reach + 0.07
    dx, dy = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}[relation]
    return thing.x + dx * distance, thing.y + dy * distance


def moved(thing: Thing, place: str) -> Spot:
    """The new spot of a thing moved to a named place; a coordinate that the name leaves open is kept."""
    if place == "centre":
        return 0.5, 0.5
    least = max(_LOW, thing.reach + MARGIN + 0.001)
    x, y = thing.x, thing.y
    for side in place.split():
        spot = least if _SIDES[side] == _LOW else 1 - least
        x, y = (spot, y) if side in ("left", "right") else (x, spot)
    return x, y


def first_free(thing: Thing, others: Sequence[Thing]) -> Thing | None:
    """The thing at the first of the nine spots where it fits, or None."""
    for x, y in SPOTS.values():
        there = Thing(thing.shape, thing.colour, thing.size, x, y)
        if fits(there, others):
            return there
    return None
