"""Examples, and the specification that a correct answer must satisfy.

A picture is specified by constraints, not by pixels: what a prompt leaves open may be drawn in any way.
`target` is one correct picture, the canonical one used in training; `spec` accepts all correct ones.
"""

from dataclasses import dataclass

from omnigen2.nano.world.scene import SIZES, Scene, Thing

Range = tuple[float, float]
Combination = tuple[str, str, str]  # colour, shape, situation

RELATIONS = ("left of", "right of", "above", "below")
_LOW, _MIDDLE, _HIGH = (0.0, 0.42), (0.34, 0.66), (0.58, 1.0)
_ANY = (0.0, 1.0)
PLACES: dict[str, tuple[Range, Range]] = {
    "left": (_LOW, _ANY),
    "right": (_HIGH, _ANY),
    "top": (_ANY, _LOW),
    "bottom": (_ANY, _HIGH),
    "centre": (_MIDDLE, _MIDDLE),
    "top left": (_LOW, _LOW),
    "top right": (_HIGH, _LOW),
    "bottom left": (_LOW, _HIGH),
    "bottom right": (_HIGH, _HIGH),
}
"""The ranges of x and of y in which a thing counts as being at the place."""

_STEP = (SIZES["medium"] / SIZES["small"]) ** 0.5  # half way to the next size
SIZE_RANGES: dict[str, Range] = {
    "small": (0.0, SIZES["small"] * _STEP),
    "medium": (SIZES["medium"] / _STEP, SIZES["medium"] * _STEP),
    "large": (SIZES["large"] / _STEP, 1.0),
}
NEAR = 0.06  # largest displacement of an unmoved thing, as a fraction of the width or height
SAME = 1.2  # largest factor by which the radius of an unresized thing may change


@dataclass(frozen=True)
class ThingSpec:
    """Constraints on one thing of a picture; None leaves the property open.

    `radius` in fractions of the shorter side, `x` and `y` of the width and of the height, as (minimum,
    maximum).
    """

    shape: str | None = None
    colour: str | None = None
    radius: Range | None = None
    x: Range | None = None
    y: Range | None = None


@dataclass(frozen=True)
class SceneSpec:
    """Constraints on a picture: exactly these things, `relations` between them by index (i, relation, j), and
    the background colour, or None for any."""

    background: str | None
    things: tuple[ThingSpec, ...]
    relations: tuple[tuple[int, str, int], ...] = ()


@dataclass(frozen=True)
class Example:
    """One input for a model, with its correct answer and the constraints that define correctness.

    `task` is generate, edit, compose, describe or ask; `kind` is finer. `inputs` are the reference scenes.
    Picture tasks have `target` and `spec`, text tasks have `answer`. `combos` names the combinations of
    colour, shape and situation that the example exercises; the splits are made from them.
    """

    task: str
    kind: str
    text: str
    inputs: tuple[Scene, ...] = ()
    target: Scene | None = None
    answer: str | None = None
    spec: SceneSpec | None = None
    combos: tuple[Combination, ...] = ()


def kind_spec(thing: Thing, sized: bool = False, place: str | None = None) -> ThingSpec:
    """A thing of this shape and colour; of its size if `sized`, and at the place if one is named."""
    x, y = PLACES[place] if place else (None, None)
    return ThingSpec(thing.shape, thing.colour, SIZE_RANGES[thing.size] if sized else None, x, y)


def unchanged_spec(thing: Thing) -> ThingSpec:
    """The thing unchanged, within `NEAR` and `SAME`."""
    return ThingSpec(
        thing.shape,
        thing.colour,
        (thing.radius / SAME, thing.radius * SAME),
        (thing.x - NEAR, thing.x + NEAR),
        (thing.y - NEAR, thing.y + NEAR),
    )
