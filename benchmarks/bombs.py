"""Pictures that are harmless, and small files that are large once they are decoded."""

import io
import struct
import zlib
from functools import cache
from typing import Any

from PIL import Image


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A picture as a file."""
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@cache
def small_png() -> bytes:
    """A picture of one colour."""
    return saved(Image.new("RGB", (64, 64), (200, 30, 30)), "PNG")


@cache
def webp_bomb() -> bytes:
    """64 megapixels of one colour in some hundred bytes."""
    return saved(Image.new("RGB", (8000, 8000)), "WEBP", lossless=True, method=0)


@cache
def jpeg_bomb() -> bytes:
    """A progressive JPEG whose last scan comes again and again; each is another pass over the picture."""
    data = saved(Image.new("RGB", (4000, 4000), (9, 9, 9)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 200 + data[-2:]


@cache
def chunk_bomb() -> bytes:
    """A PNG with a million empty chunks."""
    png = small_png()
    empty = struct.pack(">I4sI", 0, b"prVt", zlib.crc32(b"prVt"))
    return png[:33] + empty * 1_000_000 + png[33:]


@cache
def png_bomb() -> bytes:
    """A PNG of 64 megapixels in some kilobytes."""
    return saved(Image.new("L", (8000, 8000)), "PNG")


BOMBS = (webp_bomb, jpeg_bomb, chunk_bomb, png_bomb)
