"""Where a picture ends in its file, and whether the file is something else besides.

Knows the frames of the formats, not their pixels. Used on untrusted bytes before they are decoded: a file
that goes on after its picture, or that also opens as an archive or a document, is a polyglot, sent by
mistake or in the hope that somebody serves it as what it is not.

Formats: PNG 3rd edition section 5, GIF89a appendix A, ITU T.81 annex B, RFC 9649, ISO 14496-12 section 4.2,
PKWARE APPNOTE 4.3.16.
"""

import re
from collections.abc import Callable

_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_NOT_PADDING = re.compile(rb"[^\x00]")
_DOCUMENT_HEAD = 1024
"""Bytes within which readers of PDF look for its signature."""
_ARCHIVE_TAIL = 22 + 0xFFFF
"""Bytes in which a ZIP's end record and its comment lie."""


def surplus(data: bytes, kind: str) -> str | None:
    """Why `data`, a file of Pillow's format `kind`, holds more than a picture; None if it does not."""
    end = _ends.get(kind, _whole)(data)
    if end is not None and _after_padding(data, end) < len(data):
        return f"the picture ends at byte {end}, but {len(data) - end} more bytes follow"
    if b"%PDF-" in data[:_DOCUMENT_HEAD]:
        return "it is also a PDF document"
    if _is_archive(data):
        return "it is also a ZIP archive"
    return None


def _after_padding(data: bytes, at: int) -> int:
    """Where the zeros that cameras and GIF writers pad with come to an end."""
    match = _NOT_PADDING.search(data, at)
    return match.start() if match else len(data)


def _is_archive(data: bytes) -> bool:
    """Whether a ZIP reader, which starts at the end, would find its directory. Reads none of its entries."""
    at = data.rfind(b"PK\5\6", max(0, len(data) - _ARCHIVE_TAIL))
    if at < 0:
        return False
    if data[at - 20 : at - 16] == b"PK\6\7":  # the 64-bit form keeps its numbers elsewhere
        return True
    size = int.from_bytes(data[at + 12 : at + 16], "little")
    return 0 < size <= at and data[at - size : at - size + 4] == b"PK\1\2"


def _whole(data: bytes) -> int | None:
    return None  # TIFF and BMP have no end of their own


def _png_end(data: bytes) -> int | None:
    at = 8
    while at + 12 <= len(data):
        name = data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if name == b"IEND":
            return at
    return None


def _gif_end(data: bytes) -> int | None:
    if len(data) < 13:
        return None
    at = 13 + _palette_size(data[10])
    while at < len(data):
        block = data[at]
        if block == 0x3B:
            return at + 1
        if block == 0x21:
            at += 2
        elif block == 0x2C and at + 9 < len(data):
            at += 11 + _palette_size(data[at + 9])  # descriptor, palette, code size
        else:
            return None
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return None


def _palette_size(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _jpeg_end(data: bytes) -> int | None:
    end = _one_jpeg_end(data, 0)
    # A picture after the picture is a preview or a gain map (MPO, Ultra HDR).
    while end is not None and data.startswith(b"\xff\xd8", after := _after_padding(data, end)):
        following = _one_jpeg_end(data, after)
        if following is None:
            break
        end = following
    return end


def _one_jpeg_end(data: bytes, start: int) -> int | None:
    at = start + 2
    while match := _JPEG_MARKER.search(data, at):
        at = match.end()
        marker = match[1][0]
        if marker == 0xD9:
            return at
        if marker not in (0x01, 0xD8):  # these two have no body
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    return None


def _riff_end(data: bytes) -> int | None:
    size = int.from_bytes(data[4:8], "little")
    return 8 + size + size % 2


def _boxes_end(data: bytes) -> int | None:
    at = 0
    while at + 8 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if size == 0:  # the last box takes the rest
            return len(data)
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8 or not re.fullmatch(rb"[ -~]{4}", name):
            return at
        at += size
    return at


_ends: dict[str, Callable[[bytes], int | None]] = {
    "PNG": _png_end,
    "GIF": _gif_end,
    "JPEG": _jpeg_end,
    "MPO": _jpeg_end,
    "WEBP": _riff_end,
    "AVIF": _boxes_end,
    "HEIF": _boxes_end,
}
