"""The checker: whether an output is correct, and why not.

A picture is correct if some one-to-one matching of recognised things to specified things satisfies every
constraint. A text is correct if it equals the answer up to case and punctuation.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from PIL import Image

from omnigen2.nano.world.read import Reading, read_scene
from omnigen2.nano.world.scene import Thing
from omnigen2.nano.world.spec import Example, Range, SceneSpec, ThingSpec

CLEAR = 0.05  # least distance of two centres along the axis of their relation


@dataclass(frozen=True)
class Verdict:
    """Whether an output is correct, and the reasons if it is not."""

    ok: bool
    reasons: tuple[str, ...] = ()


def judge(example: Example, output: Image.Image | str) -> Verdict:
    """The verdict on an output: a picture for generate, edit and compose, a text for describe and ask.

    Raises:
        TypeError: a text for a picture task, or the reverse.
    """
    if example.spec is None:
        if not isinstance(output, str):
            raise TypeError(f"{example.task} is answered by text, not by {type(output).__name__}")
        return _judge_text(example.answer or "", output)
    if isinstance(output, str):
        raise TypeError(f"{example.task} is answered by a picture, not by text")
    return judge_reading(example.spec, read_scene(output))


def judge_reading(spec: SceneSpec, reading: Reading) -> Verdict:
    """The verdict on a recognised scene."""
    reasons = list(reading.doubts)
    if spec.background not in (None, reading.background):
        reasons.append(f"background {reading.background}, expected {spec.background}")
    if len(reading.things) != len(spec.things):
        reasons.append(f"{len(reading.things)} things, expected {len(spec.things)}")
    else:
        # The reasons of the best matching are the most useful.
        reasons += min((_faults(spec, order) for order in permutations(reading.things)), key=len)
    return Verdict(not reasons, tuple(reasons))


def holds(relation: str, a: Thing, b: Thing) -> bool:
    """Whether `a` is in the relation to `b`: the distance along its axis is the larger one.

    `beside` is left of or right of, `stacked` is above or below.
    """
    dx, dy = b.x - a.x, b.y - a.y
    along, across = (dx, dy) if relation in ("left of", "right of", "beside") else (dy, dx)
    if relation in ("right of", "below"):
        along = -along
    elif relation in ("beside", "stacked"):
        along = abs(along)
    return along > CLEAR and along >= abs(across)


def _faults(spec: SceneSpec, things: Sequence[Thing]) -> list[str]:
    faults = [fault for own, thing in zip(spec.things, things, strict=True) for fault in _misses(own, thing)]
    faults += [
        f"{things[i].colour} {things[i].shape} is not {relation} {things[j].colour} {things[j].shape}"
        for i, relation, j in spec.relations
        if not holds(relation, things[i], things[j])
    ]
    return faults


def _misses(spec: ThingSpec, thing: Thing) -> list[str]:
    misses = []
    if spec.shape not in (None, thing.shape):
        misses.append(f"shape {thing.shape}, expected {spec.shape}")
    if spec.colour not in (None, thing.colour):
        misses.append(f"colour {thing.colour}, expected {spec.colour}")
    for name, limits in (("radius", spec.radius), ("x", spec.x), ("y", spec.y)):
        value = getattr(thing, name)
        if limits is not None and not _within(value, limits):
            misses.append(
                f"{name} {value:.2f} of the {thing.shape}, expected {limits[0]:.2f} to {limits[1]:.2f}"
            )
    return misses


def _within(value: float, limits: Range) -> bool:
    return limits[0] <= value <= limits[1]


def _judge_text(answer: str, output: str) -> Verdict:
    if _plain(answer) == _plain(output):
        return Verdict(True)
    return Verdict(False, (f"{output!r}, expected {answer!r}",))


def _plain(text: str) -> str:
    text = text.lower().replace("grey", "gray").replace("center", "centre").replace("\u2019", "'")
    return " ".join(re.sub(r"[^a-z0-9' ]+", " ", text).split())
