"""Bytes to pictures and back: what comes in is checked first, what is kept is pixels and nothing else.

Knows Pillow, not the store. Everything is kept as 8-bit sRGB, upright, as RGB, or as RGBA where something is
transparent, in a PNG with fixed settings and no metadata: so equal pixels give equal bytes (for one build of
Pillow; another zlib may pack the same pixels differently). Limits are checked on the header, before any
pixel is decoded.
"""

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from PIL import Image, ImageCms, ImageFile, ImageOps

from storage.containers import surplus
from storage.errors import ImageRejected

MIME_TYPE = "image/png"
"""The type of every stored image."""
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
"""Pillow's names of the formats that are read, where this build of Pillow has them."""

_COMPRESSION = zlib.Z_RLE
"""zlib's strategy: of repeats, it finds only runs, and those are what a PNG's filters leave. Against level 4,
photographs are as small in less than half of the time, screenshots up to 15 % larger."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may be at most when it comes in."""

    bytes: int = 50_000_000
    """Of the encoded file."""
    pixels: int = 64_000_000
    """Width times height."""
    side: int = 16_384
    """Longest side in pixels."""


def decode(data: bytes, limits: Limits) -> Image.Image:
    """The picture in `data`, first frame, normalised as `normal` says.

    Raises:
        ImageRejected: too large, broken, of an unknown format, or more than a picture; it says which.
    """
    if not data:
        raise ImageRejected("The image is empty (0 bytes).", "Send the bytes of a picture.")
    if len(data) > limits.bytes:
        raise ImageRejected(
            f"The image has {len(data):,} bytes; at most {limits.bytes:,} are taken.", "Send a smaller file."
        )
    try:
        # One reader per format: Pillow would otherwise try all of its formats, the obscure ones too.
        with Image.open(io.BytesIO(data), formats=_known_formats()) as image:
            _check_size(image, limits)
            _check_container(data, image.format or "")
            image.load()
            return normal(image)
    except ImageRejected:
        raise
    except Image.DecompressionBombError as error:
        raise ImageRejected(f"The image is too large: {error}.", "Send a smaller picture.") from error
    # Pillow's readers meet hostile bytes with nearly every built-in exception; all mean "not decodable".
    except Exception as error:
        reason = str(error).partition("<_io")[0].strip() or type(error).__name__
        raise ImageRejected(
            f"The image could not be read: {reason}.",
            f"Send a whole, undamaged file in one of these formats: {', '.join(_known_formats())}.",
        ) from error


def normal(image: Image.Image) -> Image.Image:
    """`image` as stored: upright, sRGB, mode RGB, or RGBA if any pixel is not opaque; without metadata.

    Raises:
        ImageRejected: it has no pixels, or its kind of pixel has no sRGB meaning.
    """
    if 0 in image.size:
        raise ImageRejected(f"The image has no pixels: {image.width}x{image.height}.", "Send a picture.")
    upright = ImageOps.exif_transpose(image)
    colours = _eight_bit(_in_srgb(upright))
    if colours.mode == "RGBA" and colours.getchannel("A").getextrema() == (255, 255):
        colours = colours.convert("RGB")
    bare = Image.new(colours.mode, colours.size)
    bare.paste(colours)  # pixels only: neither `info` nor a palette comes along
    return bare


def admit(picture: Image.Image, limits: Limits) -> Image.Image:
    """A picture in memory, or opened and not yet read, within `limits` and normalised.

    Raises:
        ImageRejected: it is beyond the limits, or the file behind it is broken.
    """
    _check_size(picture, limits)
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
    if png[:8] != _SIGNATURE or png[12:16] != b"IHDR" or len(png) < 24:
        raise ImageRejected("The stored bytes are no PNG.")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def is_stored_form(png: bytes, pixels: Image.Image) -> bool:
    """Whether `png` holds the normalised `pixels` as they are: 8-bit RGB or RGBA, not interlaced."""
    colour_type = {"RGB": 2, "RGBA": 6}[pixels.mode]
    return png[24:29] == bytes((8, colour_type, 0, 0, 0))


def open_stored(png: bytes) -> Image.Image:
    """The picture in bytes that this module encoded and whose digest was checked."""
    image = Image.open(io.BytesIO(png), formats=("PNG",))
    image.load()
    return image


def preview(image: Image.Image, max_side: int = 512, max_bytes: int = 150_000) -> tuple[bytes, str]:
    """A small copy for looking at: `(bytes, mime type)`, JPEG, or WebP where something is transparent.

    The longest side is at most `max_side` pixels; quality, then size, give way until `max_bytes` are kept.
    """
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


def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _check_size(image: Image.Image, limits: Limits) -> None:
    width, height = image.size
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


def _check_container(data: bytes, kind: str) -> None:
    if reason := surplus(data, kind):
        raise ImageRejected(
            f"The {kind} file holds more than a picture: {reason}.", "Save it again as a plain picture."
        )


def _in_srgb(image: Image.Image) -> Image.Image:
    """Apply the embedded colour profile, if it is readable and fits the pixels."""
    icc = image.info.get("icc_profile")
    if not isinstance(icc, bytes) or image.mode not in ("RGB", "RGBA", "L", "CMYK"):
        return image
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
        colours = image.convert("RGB") if image.mode == "RGBA" else image
        converted = ImageCms.profileToProfile(colours, profile, _srgb(), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image  # a profile that cannot be applied says nothing about the pixels: take them as sRGB
    result = cast(Image.Image, converted)
    if image.mode == "RGBA":
        result.putalpha(image.getchannel("A"))
    return result


def _srgb() -> ImageCms.ImageCmsProfile:
    create = cast("Callable[[str], Any]", vars(ImageCms)["createProfile"])  # untyped in Pillow
    return ImageCms.ImageCmsProfile(create("sRGB"))


def _eight_bit(image: Image.Image) -> Image.Image:
    """`image` as RGB or RGBA of 8 bits."""
    if image.mode.startswith("I"):  # 16 bits, sometimes carried in 32
        deep = np.asarray(image).astype(np.int64)
        if deep.min() < 0 or deep.max() > 0xFFFF:
            raise ImageRejected(
                f"The image has grey values from {deep.min()} to {deep.max()}; at most 16 bits are taken.",
                "Convert it to 8 bits per channel.",
            )
        return Image.fromarray(((deep * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ImageRejected("The image has floating-point pixels.", "Convert it to 8 bits per channel.")
    transparent = image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


# Half a picture is not a picture; state it here, as other code in the process may have relaxed it.
ImageFile.LOAD_TRUNCATED_IMAGES = False
