"""What files hold besides their picture: dropped, and said so; the picture is taken all the same."""

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from storage import ImageStore, Limits
from storage.containers import MAX_PARTS, MAX_SCANS, size, survey, trailing_bytes
from storage.errors import ImageRejected
from storage.ingest import ingest
from tests.storage.fuzz_ingest import CORPUS
from tests.storage.test_ingest import encoded

SHARED = Path(__file__).parents[2] / "../shared/cases"
needs_cases = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs shared/cases, a folder beside the checkout"
)
MOVIE = struct.pack(">I4s4sI", 24, b"ftyp", b"mp42", 0) + b"isommp42" + bytes(range(1, 200))
TRAILERS = {"movie": MOVIE, "maker": b"SEFHe\0\0\0\x01SEFT", "picture": (CORPUS / "rgb.png").read_bytes()}


def chunk(name: bytes, body: bytes = b"") -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def with_chunks(png: bytes, *added: bytes) -> bytes:
    """`png` with more chunks behind its header."""
    return png[:33] + b"".join(added) + png[33:]


@pytest.mark.parametrize("trailer", TRAILERS)
@pytest.mark.parametrize(
    "name", ["rgb.png", "baseline.jpg", "progressive.jpg", "lossy.webp", "plain.gif", "rgb.bmp", "raw.tiff"]
)
def test_what_follows_a_picture_is_dropped_and_noted(tmp_path: Path, name: str, trailer: str):
    plain = (CORPUS / name).read_bytes()
    with ImageStore(tmp_path) as store:
        clean = store.put(plain)
        image = store.put(plain + TRAILERS[trailer])
        assert image.id == clean.id and clean.notes == ()
        assert image.notes == (
            f"{len(TRAILERS[trailer])} bytes that follow the picture in the file were dropped.",
        )


def test_zeros_behind_a_picture_are_padding_and_not_noted():
    assert ingest((CORPUS / "baseline.jpg").read_bytes() + bytes(500), Limits()).notes == ()


@needs_cases
def test_a_phone_s_photo_and_a_cropped_screenshot_are_taken():
    for name in ("phone_trailer.jpg", "cropped_leftover.png"):
        assert "dropped" in "".join(ingest((SHARED / name).read_bytes(), Limits()).notes), name


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("animated.gif", "first of 2 frames"),
        ("animated.png", "first of 3 frames"),
        ("animated.webp", "first of 2 frames"),
        ("pages.tiff", "first of 2 pages"),
        ("pair.mpo", "first of 2 pictures"),
    ],
)
def test_the_frames_that_are_left_out_are_counted(name: str, note: str):
    assert note in "".join(ingest((CORPUS / name).read_bytes(), Limits()).notes)


def test_an_animated_avif_counts_too():
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    assert "first of 2 frames" in "".join(ingest(data, Limits()).notes)


@pytest.mark.parametrize("name", sorted(path.name for path in CORPUS.iterdir()))
def test_a_header_tells_the_size_that_the_reader_finds(name: str):
    data = (CORPUS / name).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        assert size(data) == image.size
    assert bool(trailing_bytes(data, survey(data, image.format or "").end)) == (name == "archive.png")


@pytest.mark.parametrize("name", [b"IDAT", b"tEXt", b"abCd"])
def test_a_png_of_a_million_chunks_is_refused_before_they_are_read(name: bytes):
    data = with_chunks((CORPUS / "rgb.png").read_bytes(), chunk(name) * (MAX_PARTS + 1))
    with pytest.raises(ImageRejected, match="more than 100,000 chunks"):
        ingest(data, Limits())


def test_a_jpeg_of_thousands_of_scans_is_refused():
    data = (CORPUS / "progressive.jpg").read_bytes()
    at = data.rindex(b"\xff\xda")
    with pytest.raises(ImageRejected, match=f"more than {MAX_SCANS} scans"):
        ingest(data[:at] + data[at:-2] * (MAX_SCANS + 1) + data[-2:], Limits())


def test_text_that_unpacks_to_gigabytes_is_never_unpacked():
    bomb = zlib.compress(bytes(100_000_000), 9)
    plain = (CORPUS / "rgb.png").read_bytes()
    texts = [chunk(b"zTXt", b"a\0\0" + bomb), chunk(b"iTXt", b"a\0\1\0\0\0" + bomb)] * 40
    assert ingest(with_chunks(plain, *texts), Limits()).png == ingest(plain, Limits()).png


def test_broken_exif_costs_the_turn_and_not_the_picture():
    plain = (CORPUS / "rgb.png").read_bytes()
    taken = ingest(with_chunks(plain, chunk(b"eXIf", b"II*\0\xff\xff\xff\xff")), Limits())
    assert taken.png == ingest(plain, Limits()).png


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG", "TIFF", "AVIF"])
def test_every_format_is_turned_upright(kind: str):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.new("RGB", (32, 16), "white")
    picture.paste("black", (0, 0, 16, 16))
    upright = Image.open(io.BytesIO(ingest(encoded(picture, kind, exif=exif), Limits()).png))
    assert upright.size == (16, 32)
    assert upright.getpixel((8, 4))[0] < 60 and upright.getpixel((8, 28))[0] > 200
