"""Say whether an output is right, and if not, why.

A picture is right when some way of matching the things seen to the things wanted fulfils every
constraint and nothing is left over. A text is right when it is the answer, up to case and punctuation.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

from PIL import Image

from omnigen2.nano.world.read import Reading, read_scene
from omnigen2.nano.world.scene import Thing
from omnigen2.nano.world.wanted import Example, Range, Want, Wanted

CLEAR = 0.05  # least distance of two centres along a relation's axis


@dataclass(frozen=True)
class Verdict:
    """Whether an output is right; `reasons` say what is not, and are empty when it is."""

    ok: bool
    reasons: tuple[str, ...] = ()


def judge(example: Example, output: Image.Image | str) -> Verdict:
    """Judge a model's output: a picture for generate, edit and compose, a text for describe and ask.

    Raises:
        TypeError: a text for a picture task, or the reverse.
    """
    if example.wanted is None:
        if not isinstance(output, str):
            raise TypeError(f"{example.task} is answered by text, not by {type(output).__name__}")
        return _judge_text(example.answer or "", output)
    if isinstance(output, str):
        raise TypeError(f"{example.task} is answered by a picture, not by text")
    return judge_reading(example.wanted, read_scene(output))


def judge_reading(wanted: Wanted, reading: Reading) -> Verdict:
    """Judge what was read from a picture."""
    reasons = list(reading.doubts)
    if wanted.background not in (None, reading.background):
        reasons.append(f"background {reading.background}, wanted {wanted.background}")
    if len(reading.things) != len(wanted.things):
        reasons.append(f"{len(reading.things)} things, wanted {len(wanted.things)}")
    else:
        # The matching with the fewest faults explains best what is wrong.
        reasons += min((_faults(wanted, order) for order in permutations(reading.things)), key=len)
    return Verdict(not reasons, tuple(reasons))


def holds(relation: str, a: Thing, b: Thing) -> bool:
    """Say whether `a` stands in the relation to `b`, more so than in the other direction.

    `beside` is left or right of, `stacked` above or below.
    """
    dx, dy = b.x - a.x, b.y - a.y
    along, across = (dx, dy) if relation in ("left of", "right of", "beside") else (dy, dx)
    if relation in ("right of", "below"):
        along = -along
    elif relation in ("beside", "stacked"):
        along = abs(along)
    return along > CLEAR and along >= abs(across)


def _faults(wanted: Wanted, things: Sequence[Thing]) -> list[str]:
    faults = [
        fault for want, thing in zip(wanted.things, things, strict=True) for fault in _misses(want, thing)
    ]
    faults += [
        f"{things[i].colour} {things[i].shape} is not {relation} {things[j].colour} {things[j].shape}"
        for i, relation, j in wanted.relations
        if not holds(relation, things[i], things[j])
    ]
    return faults


def _misses(want: Want, thing: Thing) -> list[str]:
    misses = []
    if want.shape not in (None, thing.shape):
        misses.append(f"shape {thing.shape}, wanted {want.shape}")
    if want.colour not in (None, thing.colour):
        misses.append(f"colour {thing.colour}, wanted {want.colour}")
    for name, limits in (("radius", want.radius), ("x", want.x), ("y", want.y)):
        value = getattr(thing, name)
        if limits is not None and not _within(value, limits):
            misses.append(
                f"{name} {value:.2f} of the {thing.shape}, wanted {limits[0]:.2f} to {limits[1]:.2f}"
            )
    return misses


def _within(value: float, limits: Range) -> bool:
    return limits[0] <= value <= limits[1]


def _judge_text(answer: str, output: str) -> Verdict:
    if _plain(answer) == _plain(output):
        return Verdict(True)
    return Verdict(False, (f"said {output!r}, wanted {answer!r}",))


def _plain(text: str) -> str:
    text = text.lower().replace("grey", "gray").replace("center", "centre").replace("\u2019", "'")
    return " ".join(re.sub(r"[^a-z0-9' ]+", " ", text).split())
