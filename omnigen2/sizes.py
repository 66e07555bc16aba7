"""Sizes of pictures, as (width, height) in pixels. Needs no torch."""

import re
from collections.abc import Sequence

from omnigen2.checkpoints.card import Limits
from omnigen2.params import MIN_SIDE, InvalidTask

Size = tuple[int, int]
WHOLE_PIXELS = 1024 * 1024
"""Pixels up to which a picture is encoded and decoded whole (`omnigen2.network.in_place`), not in strips
(`omnigen2.network.strips`)."""
CONVOLVED_PIXELS = 1 << 16
"""Pixels of a whole picture that a convolution computes at once: those of 64 rows of 1024."""
STRIP_PIXELS = 1 << 17
"""Pixels of a strip: those of 64 rows of 2048."""
_ORDINALS = ("first", "second", "third", "fourth", "fifth")
_EDITED = re.compile(
    rf"\s*edit (?:the )?(?:({'|'.join(_ORDINALS)}) (?:image|picture)|(?:image|picture) ([1-9]))\b",
    re.IGNORECASE,
)


def edited_image(instruction: str, count: int) -> int | None:
    """Index of the one of several images that an instruction says to edit: "Edit the first image: ..."."""
    found = _EDITED.match(instruction)
    if found is None or count < 2:
        return None
    index = _ORDINALS.index(found[1].lower()) if found[1] else int(found[2]) - 1
    return index if index < count else None


def output_size(
    width: int | None, height: int | None, inputs: Sequence[Size], limits: Limits
) -> tuple[Size, list[str]]:
    """The size of the result, and notes. A side that is None follows the first of the inputs.

    With both sides open the result has the input's size, reduced to `limits.max_side` if it is larger; with
    one side given, the other one keeps the input's aspect ratio.

    Raises:
        InvalidTask: a side is longer than `limits.max_side`.
        ValueError: a side is open and there is no input.
    """
    longest = limits.max_side
    for name, side in (("width", width), ("height", height)):
        if side is not None and side > longest:
            raise InvalidTask(f"{name}: {side} pixels asked for; this model makes at most {longest}")
    if width is not None and height is not None:
        return (width, height), []
    if not inputs:
        raise ValueError("a picture without input images needs a width and a height")
    own_width, own_height = inputs[0]
    if width is not None:
        return (width, _other_side(width, own_height / own_width, longest)), []
    if height is not None:
        return (_other_side(height, own_width / own_height, longest), height), []
    scale = min(1.0, longest / max(own_width, own_height))
    size = round(own_width * scale), round(own_height * scale)
    if scale == 1:
        return size, []
    note = (
        f"The image has {own_width}x{own_height} pixels, and the result {size[0]}x{size[1]}: "
        f"a side may have at most {longest}."
    )
    return size, [note]


def reduced(width: int, height: int, limits: Limits) -> Size:
    """The size of an input image within `limits.max_pixels` and `max_input_side`, in the same shape."""
    ratio = min(
        1.0, (limits.max_pixels / (width * height)) ** 0.5, limits.max_input_side / max(width, height)
    )
    return max(1, int(width * ratio)), max(1, int(height * ratio))


def _other_side(side: int, ratio: float, longest: int) -> int:
    return min(longest, max(MIN_SIDE, round(side * ratio)))
