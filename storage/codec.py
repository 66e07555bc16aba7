"""Encodes images as stored PNG bytes, decodes stored bytes, and makes previews.

Images are stored as PNG with fixed settings and no metadata, so equal pixels give equal bytes (for one build
of Pillow; another zlib may compress the same pixels differently). Untrusted bytes go through
`storage/decoder.py`.
"""

import io
import struct
import zlib
from dataclasses import dataclass

from PIL import Image, ImageOps

from storage.colours import Samples, flattened
from storage.containers import PNG_SIGNATURE
from storage.errors import ImageRejected

MIME_TYPE = "image/png"
"""MIME type of all stored images."""

_COMPRESSION = zlib.Z_RLE
"""zlib strategy that matches runs only, which is what PNG filters produce. Compared with level 4, photographs
take less than half of the time at the same size; screenshots are up to 15 % larger."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Maximum size of an incoming image."""

    bytes: int = 50_000_000
    """Size of the encoded file."""
    pixels: int = 64_000_000
    """Width times height."""
    side: int = 16_384
    """Longest side in pixels."""


def normal(image: Image.Image) -> Image.Image:
    """`image` as stored: upright, sRGB, mode RGB, or RGBA if any pixel is not opaque; without metadata.

    Raises:
        ImageRejected: it has no pixels, or its pixel format cannot be converted to sRGB.
    """
    if 0 in image.size:
        raise ImageRejected(
            f"The image has no pixels: {image.width}x{image.height}.", "Send an image with pixels."
        )
    colours, _ = flattened(ImageOps.exif_transpose(image), Samples())
    colours.info = {}  # `colours` is a copy, so the input keeps its metadata
    return colours


def check_size(size: tuple[int, int], limits: Limits) -> None:
    """Raise ImageRejected if `size`, width and height in pixels, exceeds `limits`."""
    width, height = size
    if width * height > limits.pixels:
        raise ImageRejected(
            f"The image is {width}x{height}, {width * height:,} pixels; "
            f"at most {limits.pixels:,} are allowed.",
            "Send a smaller image.",
        )
    if max(width, height) > limits.side:
        raise ImageRejected(
            f"The image is {width}x{height} pixels; the longest side may be at most {limits.side:,}.",
            "Send a smaller image.",
        )


def admit(picture: Image.Image, limits: Limits) -> Image.Image:
    """An image, loaded or lazily opened, checked against `limits` and normalised.

    Raises:
        ImageRejected: it exceeds the limits, or its file is damaged.
    """
    check_size(picture.size, limits)
    try:
        picture.load()
        return normal(picture)
    except (OSError, ValueError) as error:
        raise ImageRejected(f"The image could not be read: {error}.", "Send an undamaged image.") from error


def encode(image: Image.Image) -> bytes:
    """The PNG bytes of a normalised image; equal pixels give equal bytes."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_type=_COMPRESSION)
    return out.getvalue()


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height in pixels of a stored PNG, read from its header.

    Raises:
        ImageRejected: `png` is not a PNG.
    """
    if png[:8] != PNG_SIGNATURE or png[12:16] != b"IHDR" or len(png) < 24:
        raise ImageRejected("The stored bytes are not a PNG.")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def open_stored(png: bytes, limits: Limits) -> Image.Image:
    """The image in trusted bytes: encoded by this module, with a verified digest.

    Raises:
        ImageRejected: it exceeds `limits`.
    """
    check_size(size_of(png), limits)
    image = Image.open(io.BytesIO(png), formats=("PNG",))
    image.load()
    return image


def preview(image: Image.Image, max_side: int = 512, max_bytes: int = 150_000) -> tuple[bytes, str]:
    """A reduced copy as `(bytes, MIME type)`: JPEG, or WebP if any pixel is not opaque.

    The longest side is at most `max_side` pixels. Quality, then size, are reduced to fit into `max_bytes`.
    """
    if image.mode in ("RGB", "RGBA") and (shrink := max(image.size) // (2 * max_side)) > 1:
        image = image.reduce(shrink)  # cheap, and before the copy
    small = normal(image)
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    while True:
        for quality in (90, 80, 65, 50):
            data, mime_type = _compressed(small, quality)
            if len(data) <= max_bytes or small.size == (1, 1):
                return data, mime_type
        smaller = (max(1, small.width * 3 // 4), max(1, small.height * 3 // 4))
        small = small.resize(smaller, Image.Resampling.LANCZOS)


def resized(image: Image.Image, width: int) -> tuple[bytes, str]:
    """A copy that is `width` pixels wide, as `(bytes, MIME type)`: JPEG, or WebP if not opaque."""
    height = max(1, round(image.height * width / image.width))
    if image.mode in ("RGB", "RGBA") and (shrink := image.width // (2 * width)) > 1:
        image = image.reduce(shrink)  # cheap, and before the copy
    return _compressed(normal(image).resize((width, height), Image.Resampling.LANCZOS), 90)


def _compressed(image: Image.Image, quality: int) -> tuple[bytes, str]:
    """A normalised image as JPEG, or as WebP if any pixel is not opaque; and the MIME type."""
    kind, mime_type = ("WEBP", "image/webp") if image.mode == "RGBA" else ("JPEG", "image/jpeg")
    out = io.BytesIO()
    image.save(out, kind, quality=quality)
    return out.getvalue(), mime_type
