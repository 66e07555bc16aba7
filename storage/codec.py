"""Pictures to the bytes that are stored, and those to pictures again.

Knows Pillow, not the store. Everything is kept in a PNG with fixed settings and no metadata: so equal pixels
give equal bytes (for one build of Pillow; another zlib may pack the same pixels differently). Bytes from
outside come in through `storage/decoder.py`.
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
"""The type of every stored image."""

_COMPRESSION = zlib.Z_RLE
"""zlib's strategy: of repeats, it finds only runs, and those are what a PNG's filters leave. Against level 4,
photographs are as small in less than half of the time, screenshots up to 15 % larger."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may be at most when it comes in."""

    bytes: int = 50_000_000
    """Of the encoded file."""
    pixels: int = 64_000_000
    """Width times height."""
    side: int = 16_384
    """Longest side in pixels."""


def normal(image: Image.Image) -> Image.Image:
    """`image` as stored: upright, sRGB, mode RGB, or RGBA if any pixel is not opaque; without metadata.

    Raises:
        ImageRejected: it has no pixels, or its kind of pixel has no sRGB meaning.
    """
    if 0 in image.size:
        raise ImageRejected(f"The image has no pixels: {image.width}x{image.height}.", "Send a picture.")
    colours, _ = flattened(ImageOps.exif_transpose(image), Samples())
    colours.info = {}  # pixels only; this is a copy, whatever came in
    return colours


def check_size(size: tuple[int, int], limits: Limits) -> None:
    """Raises ImageRejected if a picture of `size`, width and height in pixels, is beyond `limits`."""
    width, height = size
    if width * height > limits.pixels:
        raise ImageRejected(
            f"The image is {width}x{height}, {width * height:,} pixels; at most {limits.pixels:,} are taken.",
            "Send a smaller picture.",
        )
    if max(width, height) > limits.side:
        raise ImageRejected(
            f"The image is {width}x{height} pixels; the longest side may have {limits.side:,}.",
            "Send a smaller picture.",
        )


def admit(picture: Image.Image, limits: Limits) -> Image.Image:
    """A picture in memory, or opened and not yet read, within `limits` and normalised.

    Raises:
        ImageRejected: it is beyond the limits, or the file behind it is broken.
    """
    check_size(picture.size, limits)
    try:
        picture.load()
        return normal(picture)
    except (OSError, ValueError) as error:
        raise ImageRejected(f"The image could not be read: {error}.", "Send an undamaged picture.") from error


def encode(image: Image.Image) -> bytes:
    """The PNG of a normalised picture; equal pixels give equal bytes."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_type=_COMPRESSION)
    return out.getvalue()


def size_of(png: bytes) -> tuple[int, int]:
    """Width and height in pixels of a stored PNG, read from its header.

    Raises:
        ImageRejected: `png` is no PNG.
    """
    if png[:8] != PNG_SIGNATURE or png[12:16] != b"IHDR" or len(png) < 24:
        raise ImageRejected("The stored bytes are no PNG.")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def open_stored(png: bytes, limits: Limits) -> Image.Image:
    """The picture in bytes that this module encoded and whose digest was checked.

    Raises:
        ImageRejected: it is beyond `limits`.
    """
    check_size(size_of(png), limits)
    image = Image.open(io.BytesIO(png), formats=("PNG",))
    image.load()
    return image


def preview(image: Image.Image, max_side: int = 512, max_bytes: int = 150_000) -> tuple[bytes, str]:
    """A small copy for looking at: `(bytes, mime type)`, JPEG, or WebP where something is transparent.

    The longest side is at most `max_side` pixels; quality, then size, give way until `max_bytes` are kept.
    """
    if image.mode in ("RGB", "RGBA") and (shrink := max(image.size) // (2 * max_side)) > 1:
        image = image.reduce(shrink)  # before it is copied
    small = normal(image)
    small.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    kind, mime = ("WEBP", "image/webp") if small.mode == "RGBA" else ("JPEG", "image/jpeg")
    while True:
        for quality in (90, 80, 65, 50):
            out = io.BytesIO()
            small.save(out, kind, quality=quality)
            if out.tell() <= max_bytes or small.size == (1, 1):
                return out.getvalue(), mime
        smaller = (max(1, small.width * 3 // 4), max(1, small.height * 3 // 4))
        small = small.resize(smaller, Image.Resampling.LANCZOS)
