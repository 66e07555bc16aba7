"""Referring expressions for things of a scene: `the circle`, `the small red one`, `the star on the left`.

An expression is used only if it denotes exactly the intended things.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from omnigen2.nano.world.scene import Scene, Thing, pick
from omnigen2.nano.world.words import ANYTHING, Speaker

_PROPERTIES = (
    *((("shape",),) * 7),
    *((("colour", "shape"),) * 8),
    *((("colour",),) * 2),
    *((("size", "shape"),) * 2),
    ("size", "colour", "shape"),
    ("size",),
)
_SIDES = {"left": ("x", -1), "right": ("x", 1), "top": ("y", -1), "bottom": ("y", 1)}
_APART = 0.25  # least distance of the outermost thing from the next for it to be named by its side


@dataclass(frozen=True)
class Reference:
    """A referring expression and the indices of the things it denotes; `plural` when they are several."""

    words: str
    indices: tuple[int, ...]

    @property
    def plural(self) -> bool:
        return len(self.indices) > 1


def refer(speaker: Speaker, scene: Scene, free: Sequence[int], many: float = 0.0) -> Reference | None:
    """A reference to one random thing of the `free` indices, or with probability `many` to all of its kind.

    None if the expression drawn would be ambiguous.
    """
    if not free:
        return None
    chosen = free[int(speaker.rng.integers(len(free)))]
    if len(scene.things) == 1 and speaker.chance(0.15):
        return Reference(speaker.pick("it", "the shape", "the object", "the thing"), (0,))
    if speaker.chance(0.07):
        return _by_side(speaker, scene.things, chosen)
    return _by_properties(speaker, scene.things, chosen, free, many)


def name(speaker: Speaker, thing: Thing, properties: Sequence[str], plural: bool = False) -> str:
    """A noun phrase from some of the thing's properties, without article or quantifier."""
    size = thing.size if "size" in properties else None
    colour = thing.colour if "colour" in properties else None
    if "shape" in properties:
        return speaker.words(thing.shape, colour, size, plural)
    words = speaker.words(None, colour, size, plural)
    before, _, last = words.rpartition(" ")
    return f"{before} one".strip() if last in ANYTHING and not plural and speaker.chance(0.5) else words


def _by_properties(
    speaker: Speaker, things: Sequence[Thing], chosen: int, free: Sequence[int], many: float
) -> Reference | None:
    properties = pick(speaker.rng, _PROPERTIES)
    thing = things[chosen]
    alike = tuple(
        i for i, other in enumerate(things) if all(getattr(other, p) == getattr(thing, p) for p in properties)
    )
    if len(alike) == 1:
        return Reference(f"the {name(speaker, thing, properties)}", alike)
    if not speaker.chance(many) or not set(alike) <= set(free):
        return None
    every = (
        ("all", "all the", "the", "all of the")
        if len(alike) > 2
        else ("both", "both", "the", "both of the", "all")
    )
    return Reference(f"{pick(speaker.rng, every)} {name(speaker, thing, properties, plural=True)}", alike)


def _by_side(speaker: Speaker, things: Sequence[Thing], chosen: int) -> Reference | None:
    """A reference to the outermost of several things of one shape: `the left star`."""
    shape = things[chosen].shape
    alike = [i for i, thing in enumerate(things) if thing.shape == shape]
    side = pick(speaker.rng, tuple(_SIDES))
    axis, sign = _SIDES[side]
    order = sorted(alike, key=lambda i: sign * getattr(things[i], axis), reverse=True)
    if len(order) < 2 or order[0] != chosen:
        return None
    first, second = (getattr(things[i], axis) for i in order[:2])
    if abs(first - second) < _APART:
        return None
    noun, where = speaker.noun(shape), speaker.place(side)
    forms = [f"the {noun} {where}", f"the {side} {noun}"]
    if side in ("left", "right"):
        forms.append(f"the {side}most {noun}")
    return Reference(speaker.pick(*forms), (chosen,))
