"""Converts an untrusted image file to the PNG that is stored.

Stored images are 8-bit sRGB, upright, RGB, or RGBA if any pixel is not opaque. Everything else in a file
(frames, trailing bytes, bit depth, profiles, text) is dropped, with a note where this may matter. Runs in a
worker process (`storage/decoder.py`), because the decoders of image formats are exposed to hostile bytes.
"""

import io
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from PIL import Image, ImageFile, ImageOps, PngImagePlugin

from storage import containers, extraction
from storage.codec import Limits, check_size, encode
from storage.colours import Samples, flattened
from storage.containers import PNG_SIGNATURE, Survey, survey
from storage.errors import ImageRejected

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
"""Pillow's names of the accepted formats, as far as this build of Pillow supports them."""
_ONE_OF = {"TIFF": "pages", "JPEG": "pictures", "MPO": "pictures"}
_SRGB_CICP = (1, 13)
_BIT_DEPTH, _PHOTOMETRIC = 258, 262
"""TIFF tags."""

# Reject truncated files, even if other code in the process has relaxed this.
ImageFile.LOAD_TRUNCATED_IMAGES = False


@dataclass(frozen=True, slots=True)
class Ingested:
    """An image in stored form."""

    png: bytes
    notes: tuple[str, ...] = ()
    """Sentences on what was dropped, reduced or converted."""
    history: bytes = b""
    """Text of the history in the file, as it was found, see `history.from_text`."""


class LargerThanExpected(Exception):
    """The image has more pixels than expected."""

    def __init__(self, pixels: int) -> None:
        super().__init__(pixels)
        self.pixels = pixels


def ingest(data: bytes, limits: Limits, expected: int | None = None) -> Ingested:
    """The first picture in `data`, in stored form.

    Raises:
        ImageRejected: too large, damaged, or of an unknown format.
        LargerThanExpected: it has more than `expected` pixels; it was not decoded.
    """
    check_bytes(data, limits)
    try:
        picture, notes, history = decode(data, limits, limits.pixels if expected is None else expected)
        return Ingested(encode(picture), tuple(notes), history)
    except (ImageRejected, LargerThanExpected):
        raise
    except Image.DecompressionBombError as error:
        raise ImageRejected(f"The image is too large: {error}.", "Send a smaller image.") from error
    except MemoryError as error:
        raise ImageRejected(
            "The image needs too much memory to be decoded.", "Send a smaller image."
        ) from error
    # Pillow's decoders raise almost any built-in exception on damaged bytes.
    except Exception as error:
        reason = str(error).partition("<_io")[0].strip() or type(error).__name__
        raise ImageRejected(
            f"The image could not be read: {reason[:200]}.",
            f"Send a complete, undamaged file in one of these formats: {', '.join(_known_formats())}.",
        ) from error


def check_bytes(data: bytes, limits: Limits) -> None:
    """Check a file before decoding.

    Raises:
        ImageRejected: it is empty, has too many bytes, or its header states too large a size.
    """
    if not data:
        raise ImageRejected("The image is empty (0 bytes).", "Send the bytes of an image file.")
    if len(data) > limits.bytes:
        raise ImageRejected(
            f"The image has {len(data):,} bytes; at most {limits.bytes:,} are allowed.",
            "Send a smaller file.",
        )
    if size := containers.size(data):
        check_size(size, limits)


def decode(data: bytes, limits: Limits, expected: int) -> tuple[Image.Image, list[str], bytes]:
    """The normalised image in `data`, notes, and the text of its history.

    Raises as `ingest`, and any exception of Pillow.
    """
    facts = survey(data, "PNG") if data.startswith(PNG_SIGNATURE) else Survey()
    if data.startswith(PNG_SIGNATURE):
        source = containers.picture_chunks(data)
    else:
        source = data
    # Only the accepted formats: Pillow would otherwise try all of its decoders.
    with Image.open(io.BytesIO(source), formats=_known_formats()) as image:
        check_size(image.size, limits)
        if image.width * image.height > expected:
            raise LargerThanExpected(image.width * image.height)
        kind = image.format or ""
        if kind != "PNG":
            facts = survey(data, kind)
        samples = _samples(image, facts, source)
        notes = _dropped_content(data, facts, kind, image)
        image.load()
        check_size(image.size, limits)
        history, unread = _history(data, kind, image)
        notes += unread + _rotate_upright(image)
        # Keep only the pixels: the decoder may hold as much memory again.
        picture = cast(Any, image)._new(image.im)
    del image
    notes += _ignored_colour(picture, facts)
    colours, more = flattened(picture, samples)
    colours.info = {}
    return colours, notes + more, history


def is_stored_form(png: bytes, stored: bytes) -> bool:
    """Whether `png` can be stored unchanged, given `stored`, which was made from it.

    This requires the same pixel format, and no other chunks or data after the compressed pixels.
    """
    found = list(containers.chunks(png))
    names = [name for name, _, _ in found]
    plain = names[0] == b"IHDR" and set(names[1:-1]) == {b"IDAT"} and names[-1] == b"IEND"
    if not plain or png[24:29] != stored[24:29] or found[-1][2] != len(png):
        return False
    width, height = containers.size(png) or (0, 0)
    rows = height * (1 + width * {2: 3, 6: 4}[png[25]])
    unpacking, size = zlib.decompressobj(), 0
    for _, at, end in found[1:-1]:
        if end - at == 12 or unpacking.eof:
            return False
        packed = png[at + 8 : end - 4]
        while packed and not unpacking.eof:
            size += len(unpacking.decompress(packed, 1 << 20))
            packed = unpacking.unconsumed_tail
    return unpacking.eof and not unpacking.unused_data and size == rows


def _known_formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _dropped_content(data: bytes, facts: Survey, kind: str, image: Image.Image) -> list[str]:
    notes: list[str] = []
    pictures = max(facts.pictures, getattr(image, "n_frames", 1) if kind == "AVIF" else 1)
    if pictures > 1:
        notes.append(f"Only the first of {pictures} {_ONE_OF.get(kind, 'frames')} in the file was taken.")
    if more := containers.trailing_bytes(data, facts.end):
        notes.append(f"{more:,} bytes that follow the picture in the file were dropped.")
    return notes


def _history(data: bytes, kind: str, image: Image.Image) -> tuple[bytes, list[str]]:
    """The text of the history in a file, and notes if there is one that cannot be read."""
    try:
        if kind == "PNG":
            return extraction.history_of_png(data), []
        packet = image.info.get("xmp")
        return (extraction.history_of_xmp(packet) if isinstance(packet, bytes) else b""), []
    except extraction.Unreadable as error:
        return b"", [f"The history in the file could not be read: {error}."]


def _rotate_upright(image: Image.Image) -> list[str]:
    """Rotate `image` in place according to its EXIF data; notes."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    # Pillow's EXIF parser raises almost any exception too. The pixels do not depend on it.
    except MemoryError:
        raise
    except Exception:
        return ["The file's EXIF data is damaged; the picture was not rotated."]
    return []


def _samples(image: Image.Image, facts: Survey, source: bytes) -> Samples:
    kind = image.format
    if kind == "PNG":
        low = partial(_low_bytes, source) if source[24:26] == b"\x10\x02" else None
        return Samples(source[24] if source[25] != 3 else 8, low_bytes=low)
    if kind == "TIFF":
        tags = cast(Any, image).tag_v2
        bits = cast("tuple[int, ...]", tags.get(_BIT_DEPTH, (1,)))
        inverted = tags.get(_PHOTOMETRIC) == 0 and image.mode.startswith("I")
        return Samples(max(bits), inverted)
    return Samples(facts.bits)


def _low_bytes(png: bytes) -> Image.Image:
    """The low bytes of a PNG with 16 bits per channel, RGB."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        # In Pillow, the raw mode for the other byte order; it reads the second byte of each sample.
        image.tile = [part._replace(args="RGB;16L") for part in cast(Any, image).tile]
        image.load()
        return image.copy()


def _ignored_colour(picture: Image.Image, facts: Survey) -> list[str]:
    """Notes on colour information in the file that was ignored."""
    info = picture.info
    if facts.cicp and facts.cicp[:2] != _SRGB_CICP:
        return ["The picture is marked as HDR or wide gamut (cICP); its colours were taken as sRGB."]
    gamma = info.get("gamma")
    if gamma and "srgb" not in info and not info.get("icc_profile") and abs(gamma - 1 / 2.2) > 0.02:
        return [f"The file's gamma ({gamma:.3f}) was not applied; its colours were taken as sRGB."]
    return []


PngImagePlugin.MAX_TEXT_CHUNK = 1 << 23
"""Maximum size of an uncompressed colour profile; printer profiles exceed the default of Pillow."""
