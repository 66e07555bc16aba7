"""Parses the container formats of image files without decoding: size, number of pictures, end of the data.

Used on untrusted bytes before decoding, so every loop is bounded. Results are not trusted for safety: `size`
is used for queueing, and checked later against the size that the decoder finds.

Formats: PNG 3rd edition section 5 and 11.3, GIF89a appendix A, ITU T.81 annex B, RFC 9649, ISO 14496-12
section 4.2 and ISO 23008-12 section 6.5.3 (ispe), TIFF 6.0 section 2, BMP version 3.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from storage.errors import ImageRejected

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
MAX_PARTS = 100_000
"""Maximum number of chunks, segments or boxes in a file; more than the largest photograph needs."""
MAX_SCANS = 100
"""Maximum number of scans in a JPEG. Each is a pass over the whole image; encoders make about 10."""
_PICTURE_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"eXIf"}
_JPEG_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
_NOT_PADDING = re.compile(rb"[^\x00]")
_HEAD = 1 << 20
"""Number of leading bytes that are searched for the size of the image."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The structure of an image file."""

    end: int | None = None
    """Offset of the end of the last picture; None if the format does not tell."""
    pictures: int = 1
    """Number of frames, pages or embedded pictures."""
    bits: int = 8
    """Bits per channel."""
    cicp: tuple[int, ...] = ()
    """Colour primaries, transfer function and matrix (ITU-T H.273) of a PNG with a cICP chunk."""


def survey(data: bytes, kind: str) -> Survey:
    """The structure of `data`, a file of Pillow's format `kind`.

    Raises:
        ImageRejected: it has more than `MAX_PARTS` parts.
    """
    return _surveys.get(kind, lambda _: Survey())(data)


def trailing_bytes(data: bytes, end: int | None) -> int:
    """Number of bytes after the end of the picture; 0 if all are zero, as in padding by cameras."""
    if end is None or end >= len(data) or not _NOT_PADDING.search(data, end):
        return 0
    return len(data) - end


def picture_chunks(png: bytes) -> bytes:
    """A PNG reduced to the chunks that affect its pixels and colours. Raises as `survey`."""
    kept = [png[at:end] for name, at, end in chunks(png) if name in _PICTURE_CHUNKS]
    return b"".join([PNG_SIGNATURE, *kept])


def chunks(png: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and end of every chunk, up to IEND or the end of a truncated file.

    Raises:
        ImageRejected: it has more than `MAX_PARTS` chunks.
    """
    at = len(PNG_SIGNATURE)
    for _ in range(MAX_PARTS):
        if at + 8 > len(png):
            return
        name = png[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        yield name, at, end
        if name == b"IEND":
            return
        at = end
    raise _too_many("chunks")


def _too_many(parts: str, most: int = MAX_PARTS) -> ImageRejected:
    return ImageRejected(
        f"The image file has more than {most:,} {parts}.", "Save it again as a plain image file."
    )


# -- structure ----------------------------------------------------------------------------------------


def _survey_png(data: bytes) -> Survey:
    ends, pictures, cicp = None, 1, ()
    for name, at, end in chunks(data):
        if name == b"acTL":
            pictures = max(1, int.from_bytes(data[at + 8 : at + 12], "big"))
        elif name == b"cICP":
            cicp = tuple(data[at + 8 : at + 11])
        elif name == b"IEND":
            ends = end
    return Survey(ends, pictures, data[24], cicp)


def _survey_gif(data: bytes) -> Survey:
    pictures = 0
    at = 13 + _palette_size(data[10])
    while at < len(data):
        block = data[at]
        if block == 0x3B:
            return Survey(at + 1, pictures)
        if block == 0x21:
            at += 2
        elif block == 0x2C and at + 9 < len(data):
            at += 11 + _palette_size(data[at + 9])  # descriptor, palette, code size
            pictures += 1
        else:
            break
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return Survey(None, max(1, pictures))


def _palette_size(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _survey_jpeg(data: bytes) -> Survey:
    end, pictures = _jpeg_end(data, 0), 1
    # Further JPEGs after the first are previews or gain maps (MPO, Ultra HDR).
    while end is not None and (after := _NOT_PADDING.search(data, end)):
        if not data.startswith(b"\xff\xd8\xff", after.start()) or pictures >= MAX_SCANS:
            break
        following = _jpeg_end(data, after.start())
        if following is None:
            break
        end, pictures = following, pictures + 1
    return Survey(end, pictures)


def _jpeg_end(data: bytes, start: int) -> int | None:
    scans = 0
    for marker, at in _segments(data, start):
        if marker == 0xD9:
            return at
        scans += marker == 0xDA
        if scans > MAX_SCANS:
            raise _too_many("scans", MAX_SCANS)
    return None


def _segments(data: bytes, start: int) -> Iterator[tuple[int, int]]:
    """Every marker of a JPEG except restarts, and the offset of its length field."""
    at = start + 2
    for _ in range(MAX_PARTS):
        match = _JPEG_MARKER.search(data, at)
        if match is None:
            return
        at = match.end()
        marker = match[1][0]
        yield marker, at
        if marker not in (0x01, 0xD8):  # these two have no body
            at += max(2, int.from_bytes(data[at : at + 2], "big"))
    raise _too_many("segments")


def _survey_webp(data: bytes) -> Survey:
    size = int.from_bytes(data[4:8], "little")
    end = 8 + size + size % 2
    at, frames = 12, 0
    for _ in range(MAX_PARTS):
        if at + 8 > min(end, len(data)):
            return Survey(end, max(1, frames))
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        frames += data[at : at + 4] == b"ANMF"
        at += 8 + length + length % 2
    raise _too_many("chunks")


def _survey_boxes(data: bytes) -> Survey:
    at = 0
    for _ in range(MAX_PARTS):
        if at + 8 > len(data):
            return Survey(min(at, len(data)))
        size = int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if size == 0:  # the last box extends to the end of the file
            return Survey(len(data))
        if size == 1:
            size = int.from_bytes(data[at + 8 : at + 16], "big")
        if size < 8 or not re.fullmatch(rb"[ -~]{4}", name):
            return Survey(at)
        at += size
    raise _too_many("boxes")


def _survey_bmp(data: bytes) -> Survey:
    size = int.from_bytes(data[2:6], "little")
    return Survey(size if size > 14 else None)  # some encoders write 0


def _survey_tiff(data: bytes) -> Survey:
    """The number of pages, and the highest offset referred to by any field."""
    order = "<" if data[:2] == b"II" else ">"
    end, pages, waiting, seen = 8, 0, list[tuple[int, bool]](), set[int]()
    if struct.unpack_from(f"{order}H", data, 2)[0] == 42:
        waiting.append((struct.unpack_from(f"{order}I", data, 4)[0], True))
    entries = 0
    while waiting:
        at, is_page = waiting.pop()
        if at in seen or not 8 <= at <= len(data) - 2:
            continue
        seen.add(at)
        pages += is_page
        count = struct.unpack_from(f"{order}H", data, at)[0]
        entries += count
        if entries > MAX_PARTS:
            raise _too_many("fields")
        fields = _tiff_fields(data, at, order)
        end = max(end, at + 2 + 12 * count + 4, *(reach for reach, _ in fields.values()))
        end = max(end, _tiff_pixels_end(fields))
        waiting += [
            (place, False) for tag in (330, 34665, 34853, 40965) for place in fields.get(tag, (0, ()))[1]
        ]
        follows = data[at + 2 + 12 * count : at + 6 + 12 * count]
        if is_page and len(follows) == 4:
            waiting.append((struct.unpack(f"{order}I", follows)[0], True))
    return Survey(end if pages else None, max(1, pages))


def _tiff_pixels_end(fields: dict[int, tuple[int, tuple[int, ...]]]) -> int:
    none: tuple[int, tuple[int, ...]] = (0, ())
    end = 0
    for offsets, sizes in ((273, 279), (324, 325), (513, 514)):  # strips, tiles, a JPEG preview
        pairs = zip(fields.get(offsets, none)[1], fields.get(sizes, none)[1], strict=False)
        end = max(end, *(offset + size for offset, size in pairs), 0)
    return end


def _tiff_fields(data: bytes, at: int, order: str) -> dict[int, tuple[int, tuple[int, ...]]]:
    """By tag: end offset of the field's data (0 if inside the entry), and its integer values."""
    found: dict[int, tuple[int, tuple[int, ...]]] = {}
    numbers = 0
    for place in range(at + 2, at + 2 + 12 * struct.unpack_from(f"{order}H", data, at)[0], 12):
        if place + 12 > len(data):
            break
        tag, kind, count = struct.unpack_from(f"{order}HHI", data, place)
        size = count * {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}.get(kind, 1)
        start = place + 8 if size <= 4 else struct.unpack_from(f"{order}I", data, place + 8)[0]
        reach = 0 if size <= 4 else start + size
        values: tuple[int, ...] = ()
        form = {3: "H", 4: "I", 13: "I"}.get(kind)
        if form and start + size <= len(data) and (numbers := numbers + count) <= MAX_PARTS:
            values = struct.unpack_from(f"{order}{count}{form}", data, start)
        found[tag] = reach, values
    return found


_surveys: dict[str, Callable[[bytes], Survey]] = {
    "PNG": _survey_png,
    "GIF": _survey_gif,
    "JPEG": _survey_jpeg,
    "MPO": _survey_jpeg,
    "WEBP": _survey_webp,
    "AVIF": _survey_boxes,
    "HEIF": _survey_boxes,
    "BMP": _survey_bmp,
    "TIFF": _survey_tiff,
}


# -- size ---------------------------------------------------------------------------------------------


def size(data: bytes) -> tuple[int, int] | None:
    """Width and height in pixels according to the header of a file; None if not found."""
    head = data[:_HEAD]
    for signature, read in _sizes:
        if re.match(signature, head, re.DOTALL):
            try:
                return read(head)
            except (struct.error, ValueError, ImageRejected):
                return None
    return None


def _size_jpeg(head: bytes) -> tuple[int, int] | None:
    for marker, at in _segments(head, 0):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", head, at + 3)
            return width, height
    return None


def _size_webp(head: bytes) -> tuple[int, int] | None:
    kind = head[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    if kind == b"VP8L":
        packed = int.from_bytes(head[21:25], "little")
        return 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", head, 26)
    return width & 0x3FFF, height & 0x3FFF


def _size_bmp(head: bytes) -> tuple[int, int]:
    if head[14:18] == b"\x0c\0\0\0":
        return struct.unpack_from("<HH", head, 18)
    width, height = struct.unpack_from("<ii", head, 18)
    return abs(width), abs(height)


def _size_tiff(head: bytes) -> tuple[int, int] | None:
    order = "<" if head[:2] == b"II" else ">"
    fields = _tiff_fields(head, struct.unpack_from(f"{order}I", head, 4)[0], order)
    (_, width), (_, height) = fields.get(256, (0, ())), fields.get(257, (0, ()))
    return (width[0], height[0]) if width and height else None


def _size_boxes(head: bytes) -> tuple[int, int] | None:
    found = [struct.unpack(">II", match[1]) for match in re.finditer(rb"ispe\0{4}(.{8})", head, re.DOTALL)]
    return max(found, key=lambda size: size[0] * size[1], default=None)


_sizes: tuple[tuple[bytes, Callable[[bytes], tuple[int, int] | None]], ...] = (
    (re.escape(PNG_SIGNATURE), lambda head: struct.unpack_from(">II", head, 16)),
    (rb"GIF8[79]a", lambda head: struct.unpack_from("<HH", head, 6)),
    (rb"\xff\xd8\xff", _size_jpeg),
    (rb"RIFF....WEBP", _size_webp),
    (rb"BM", _size_bmp),
    (rb"II\*\0|MM\0\*", _size_tiff),
    (rb"....ftyp", _size_boxes),
)
