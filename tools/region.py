"""A part of an image, as a region or as a mask: checked, and an edit pasted back into it.

The model knows no parts: it edits the whole image. What it made is then put into the input, inside the part
only and with a soft border. Everywhere else the pixels are the input's.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from omnigen2.task import Outcome
from storage import StoredImage, StoreView
from tools.base import ToolError
from tools.fields import PartIn, Region

BORDER_SHARE = 32
"""The soft border is this part of the shorter side of the result."""
MAX_BORDER = 16
"""Pixels."""
TRANSPARENT = 128
"""Alpha below which a pixel of a mask counts as transparent, and brightness from which it counts as white."""

Bytes = NDArray[np.uint8]


class Sized(Protocol):
    """What has a size in pixels."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...


def check_region(region: Region, image: Sized) -> None:
    """Raise ToolError if a region is empty or does not lie inside the image."""
    x, y, width, height = region
    if min(x, y) < 0 or min(width, height) < 1 or x + width > image.width or y + height > image.height:
        raise ToolError(
            "invalid_argument",
            f"region: {list(region)} given; the image has {image.width}x{image.height} pixels.",
            "Give [x, y, width, height] that lies inside.",
        )


def check_part(request: PartIn, inputs: Sequence[StoredImage], store: StoreView) -> None:
    """Check the part that an edit is held to; its `inputs` are the image and the mask, if there is one.

    Reads the mask: not for the event loop.

    Raises:
        ToolError: both a region and a mask are given, or one that does not fit the image or is empty.
    """
    image = inputs[0]
    if request.region is not None:
        check_region(request.region, image)
    if request.mask is None:
        return
    mask = inputs[1]
    if request.region is not None:
        raise ToolError("invalid_argument", "region: given together with a mask.", "Give one of them.")
    if (mask.width, mask.height) != (image.width, image.height):
        raise ToolError(
            "invalid_argument",
            f"mask: it has {mask.width}x{mask.height} pixels; the image has {image.width}x{image.height}.",
            "Give a mask of the image's size.",
        )
    if not _marked(store.open(mask.id)).any():
        raise ToolError(
            "invalid_argument",
            "mask: nothing in it is transparent or white, so nothing would change.",
            "Make transparent (or white, in a mask that is opaque) what is to change.",
        )


def pasted_back(
    outcome: Outcome, request: PartIn, inputs: Sequence[StoredImage], store: StoreView
) -> Outcome:
    """An edit held to its part: the pictures of `outcome` inside it, the input everywhere else.

    A picture of another size than the input is put into the input at its own size.
    """
    original = store.open(inputs[0].id)
    part = _marked(store.open(inputs[1].id)) if request.mask else _rectangle(request.region, original.size)
    size = outcome.pictures[0].size
    border = max(1, min(MAX_BORDER, min(size) // BORDER_SHARE))
    scaled = ""
    if size != original.size:
        scaled = f", scaled from {original.width}x{original.height} to {size[0]}x{size[1]}"
        original = original.resize(size, Image.Resampling.LANCZOS)
        part = np.asarray(Image.fromarray(part).resize(size, Image.Resampling.NEAREST))
    weights = Image.fromarray(softened(part, border))
    pictures = tuple(
        Image.composite(picture.convert(original.mode), original, weights) for picture in outcome.pictures
    )
    note = (
        f"The model edited the whole image; only the {'masked part' if request.mask else 'region'} of it was "
        f"taken over, with a soft border of {border} pixels inside. Everywhere else the pixels are the "
        f"input's{scaled}."
    )
    return replace(outcome, pictures=pictures, notes=(*outcome.notes, note))


def softened(part: Bytes, border: int) -> Bytes:
    """Weights from 0 outside of a part (0 or 1) to 255 inside, which rise over `border` pixels from its edge.

    A place that is thinner than two borders has 255 in its middle all the same. At the edge of the image
    there is no border.
    """
    depth, left = np.zeros_like(part), part
    for _ in range(border):
        depth += left
        left = _around(left, _smaller)
    deepest = depth  # in the neighbourhood: how far the weights can rise there
    for _ in range(border):
        deepest = _around(deepest, _larger)
    rising = 255 * depth.astype(np.uint16) // np.maximum(deepest, np.uint8(1))
    return rising.astype(np.uint8)


def _around(field: Bytes, chosen: Callable[[Bytes, Bytes], Bytes]) -> Bytes:
    """For each pixel the `chosen` value of itself and its eight neighbours."""
    padded = np.pad(field, 1, mode="edge")
    rows = chosen(chosen(padded[:-2], padded[1:-1]), padded[2:])
    return chosen(chosen(rows[:, :-2], rows[:, 1:-1]), rows[:, 2:])


def _smaller(one: Bytes, other: Bytes) -> Bytes:
    return np.minimum(one, other)


def _larger(one: Bytes, other: Bytes) -> Bytes:
    return np.maximum(one, other)


def _marked(mask: Image.Image) -> Bytes:
    """1 where a mask is transparent; where it is white, if it is opaque."""
    if mask.mode == "RGBA":
        return (np.asarray(mask.getchannel("A")) < TRANSPARENT).astype(np.uint8)
    return (np.asarray(mask.convert("L")) >= TRANSPARENT).astype(np.uint8)


def _rectangle(region: Region | None, size: tuple[int, int]) -> Bytes:
    assert region is not None
    x, y, width, height = region
    drawn = np.zeros((size[1], size[0]), np.uint8)
    drawn[y : y + height, x : x + width] = 1
    return drawn
