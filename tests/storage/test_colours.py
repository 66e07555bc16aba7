"""Colour profiles, transparency and depth count in every mode of pixels, and what they cost is noted."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from storage import Limits
from storage.colours import NO_CMYK_PROFILE, PROFILE_APPLIED, PROFILE_IGNORED
from storage.ingest import ingest
from tests.storage.test_ingest import encoded, swapped_profile
from tests.storage.test_leftovers import SHARED, chunk, needs_cases, with_chunks

SWAPPED = swapped_profile().getvalue()
"""Exchanges red and blue, so that what was applied shows."""
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
COLOUR = (200, 90, 10)
EXCHANGED = (10, 90, 200)


def taken(data: bytes) -> tuple[Image.Image, tuple[str, ...]]:
    result = ingest(data, Limits())
    return Image.open(io.BytesIO(result.png)), result.notes


def close(pixel: object, wanted: tuple[int, ...]) -> bool:
    assert isinstance(pixel, tuple)
    return len(pixel) == len(wanted) and all(abs(a - b) <= 2 for a, b in zip(pixel, wanted, strict=True))


def curve_profile(gamma: float) -> bytes:
    """A profile of grey with this gamma."""
    tags = {
        b"desc": b"desc\0\0\0\0\0\0\0\2g\0" + bytes(80),
        b"wtpt": b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061),
        b"kTRC": b"curv\0\0\0\0\0\0\0\1" + struct.pack(">H", round(gamma * 256)) + b"\0\0",
    }
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        value += bytes(-len(value) % 4)
        table += name + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(value))
        body += value
    head = struct.pack(
        ">I4sI4s4s4s", 132 + len(table) - 4 + len(body), b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ "
    )
    head += (
        struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp")
        + bytes(28)
        + struct.pack(">3i", 63190, 65536, 54061)
    )
    return head + bytes(128 - len(head)) + table + body


def png(depth: int, colour_type: int, row: bytes, *added: bytes, width: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + row))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(added) + pixels + chunk(b"IEND")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_a_profile_counts_in_every_mode_of_colour(mode: str, kind: str):
    picture = Image.new("RGB", (4, 4), COLOUR).convert(mode)
    if mode == "P":
        picture = Image.new("RGB", (4, 4), COLOUR).quantize(4)
        if kind == "WEBP":
            picture = picture.convert("RGB")
    data = encoded(picture, kind, icc_profile=SWAPPED, **({"lossless": True} if kind == "WEBP" else {}))
    result, notes = taken(data)
    assert close(result.getpixel((0, 0)), EXCHANGED) and PROFILE_APPLIED in notes


def test_transparency_and_a_profile_go_together():
    for picture, settings in [
        (Image.new("RGB", (4, 4), COLOUR), {"transparency": COLOUR}),
        (Image.new("RGB", (4, 4), COLOUR).quantize(4), {"transparency": 0}),
        (Image.new("RGBA", (4, 4), (*COLOUR, 0)), {}),
    ]:
        result, notes = taken(encoded(picture, icc_profile=SWAPPED, **settings))
        assert close(result.getpixel((0, 0)), (*EXCHANGED, 0)) and PROFILE_APPLIED in notes


@needs_cases
def test_the_shared_cases_have_their_right_values():
    images = {}
    for name in ("icc_palette", "icc_rgb", "icc_trns", "trns_noicc"):
        images[name] = taken((SHARED / f"{name}.png").read_bytes())[0]
    assert images["icc_palette"].getpixel((64, 64)) == (30, 220, 30)
    assert images["icc_palette"].tobytes() == images["icc_rgb"].tobytes()
    assert (
        images["icc_trns"].mode == "RGBA" and images["icc_trns"].tobytes() == images["trns_noicc"].tobytes()
    )


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_grey_profile_counts_in_every_mode_of_grey(mode: str):
    linear = curve_profile(1.0)
    if mode == "I;16":
        picture = Image.fromarray(np.full((4, 4), 55 * 257, np.uint16))
    else:
        picture = Image.new(mode, (4, 4), (55, 128)[: len(mode)] if mode == "LA" else 55)
    result, notes = taken(encoded(picture, icc_profile=linear))
    assert (
        close(result.getpixel((0, 0)), (128, 128, 128, 128)[: len(result.mode)]) and PROFILE_APPLIED in notes
    )


def test_grey_described_by_a_profile_of_rgb_is_taken_as_that_rgb():
    result, notes = taken(encoded(Image.new("L", (4, 4), 55), icc_profile=SRGB))
    assert result.getpixel((0, 0)) == (55, 55, 55) and notes == ()


@pytest.mark.parametrize("icc", [b"garbage", SWAPPED[:200], curve_profile(2.2)])
def test_a_profile_that_does_not_fit_is_ignored_and_noted(icc: bytes):
    result, notes = taken(encoded(Image.new("RGB", (4, 4), COLOUR), icc_profile=icc))
    assert result.getpixel((0, 0)) == COLOUR and notes == (PROFILE_IGNORED,)


def test_a_profile_that_cannot_be_unpacked_is_ignored_and_noted():
    data = with_chunks(encoded(Image.new("RGB", (4, 4), COLOUR)), chunk(b"iCCP", b"a\0\0no zlib at all"))
    result, notes = taken(data)
    assert result.getpixel((0, 0)) == COLOUR and notes == (PROFILE_IGNORED,)


def test_a_profile_of_srgb_changes_nothing():
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    result, notes = taken(encoded(Image.fromarray(noise), icc_profile=SRGB))
    assert result.tobytes() == noise.tobytes() and notes == ()


@pytest.mark.parametrize(
    ("depth", "row", "clear"), [(1, b"\x40", 1), (2, b"\x60", 1), (4, b"\x5a", 5), (8, b"\5\6", 5)]
)
def test_the_transparent_grey_counts_at_every_depth(depth: int, row: bytes, clear: int):
    result, _ = taken(png(depth, 0, row, chunk(b"tRNS", struct.pack(">H", clear))))
    alphas = [result.getpixel((x, 0))[3] for x in (0, 1)]
    assert sorted(alphas) == [0, 255] and alphas[0 if depth != 1 else 1] == 0


def test_the_transparent_colour_of_sixteen_bits_is_compared_in_all_of_them():
    same_high_byte = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x1235, 0x5678, 0x9ABC)
    result, notes = taken(png(16, 2, same_high_byte, chunk(b"tRNS", same_high_byte[:6])))
    assert [result.getpixel((x, 0))[3] for x in (0, 1)] == [0, 255]
    assert "16 bits per channel" in notes[0]
    grey, _ = taken(png(16, 0, b"\x12\x34\x12\x35", chunk(b"tRNS", b"\x12\x34")))
    assert [grey.getpixel((x, 0))[3] for x in (0, 1)] == [0, 255]


@pytest.mark.parametrize("colour_type", [0, 2, 4, 6])
def test_sixteen_bits_are_scaled_not_cut_and_noted(colour_type: int):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[colour_type]
    row = struct.pack(f">{2 * channels}H", *[0xFFFF] * channels, *[0x8000] * channels)
    result, notes = taken(png(16, colour_type, row))
    assert result.getpixel((0, 0))[0] == 255 and result.getpixel((1, 0))[0] == 128
    assert notes == ("The picture has 16 bits per channel; it was reduced to 8.",)


@pytest.mark.parametrize("inverted", [False, True])
def test_grey_of_a_scanner_is_scaled_by_its_depth(inverted: bool):
    values = np.array([[0, 0x8000, 0xFFFF]], np.uint16)
    data = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0 if inverted else 1})
    result, _ = taken(data)
    greys = [result.getpixel((x, 0))[0] for x in range(3)]
    assert greys == ([255, 127, 0] if inverted else [0, 128, 255])


def test_premultiplied_colours_are_divided_again():
    data = encoded(Image.new("RGBA", (4, 4), (100, 50, 25, 128)), "TIFF")
    associated = data.replace(struct.pack("<HHIHH", 338, 3, 1, 2, 0), struct.pack("<HHIHH", 338, 3, 1, 1, 0))
    assert associated != data
    result, _ = taken(associated)
    assert close(result.getpixel((0, 0)), (199, 99, 49, 128))


def test_cmyk_and_lab_have_a_meaning():
    result, notes = taken(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert close(result.getpixel((0, 0)), (255, 0, 0)) and notes == (NO_CMYK_PROFILE,)
    result, notes = taken(encoded(Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF"))
    assert close(result.getpixel((0, 0)), (255, 255, 255))
    _, notes = taken(encoded(Image.new("CMYK", (8, 8)), "JPEG", icc_profile=SWAPPED))
    assert notes == (PROFILE_IGNORED,)


def test_colour_chunks_that_are_not_followed_are_noted():
    plain = encoded(Image.new("RGB", (4, 4), COLOUR))
    for added, word in [
        ([chunk(b"gAMA", struct.pack(">I", 100_000))], "gamma"),
        ([chunk(b"cICP", bytes((9, 16, 0, 1)))], "HDR"),
        ([chunk(b"gAMA", struct.pack(">I", 45_455))], None),
        ([chunk(b"sRGB", b"\0"), chunk(b"gAMA", struct.pack(">I", 100_000))], None),
        ([chunk(b"cICP", bytes((1, 13, 0, 1)))], None),
    ]:
        notes = "".join(taken(with_chunks(plain, *added))[1])
        assert (word in notes) if word else not notes
