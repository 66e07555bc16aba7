"""The size of a picture, decided in one place for the library and the tools. Needs no torch."""

from collections.abc import Sequence

from omnigen2.checkpoints.card import Limits
from omnigen2.params import InvalidTask, S

LEAST_SIDE = 16
"""Fewest pixels of a side that can be asked for."""


def sized(sampling: S, inputs: Sequence[tuple[int, int]], limits: Limits) -> tuple[S, list[str]]:
    """`sampling` with both sides, and notes: what is open follows the first of the `inputs`, (width, height).

    An edit has its input's size; with one side given, the other one follows the input's shape. Without inputs
    what is open stays open.

    Raises:
        ValueError: a side is longer than the model makes.
    """
    width, height, most = sampling.width, sampling.height, limits.max_side
    notes: list[str] = []
    if inputs:
        own_width, own_height = inputs[0]
        if width is None and height is None:
            scale = min(1.0, most / max(own_width, own_height))
            width, height = round(own_width * scale), round(own_height * scale)
            if scale < 1:
                notes.append(
                    f"The image has {own_width}x{own_height} pixels, and the result {width}x{height}: "
                    f"a side may have at most {most}."
                )
        elif width is None and height is not None:
            width = _follow(height, own_width / own_height, most)
        elif height is None and width is not None:
            height = _follow(width, own_height / own_width, most)
    for side, value in (("width", width), ("height", height)):
        if value is not None and value > most:
            raise InvalidTask(f"{side}: {value} pixels asked for; this model makes at most {most}")
    return sampling.model_copy(update={"width": width, "height": height}), notes


def _follow(side: int, ratio: float, most: int) -> int:
    return min(most, max(LEAST_SIDE, round(side * ratio)))


def reduced(width: int, height: int, limits: Limits) -> tuple[int, int]:
    """The (width, height) within the limits of an input of that size, of the same shape."""
    ratio = min(
        1.0, (limits.max_pixels / (width * height)) ** 0.5, limits.max_input_side / max(width, height)
    )
    return max(1, int(width * ratio)), max(1, int(height * ratio))
