"""What comes in: every format, upright, in sRGB, 8 bits, pixels only; or refused with the reason."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from storage import ImageStore, Limits, codec
from storage.errors import ImageRejected
from storage.ingest import ingest
from tests.storage import fuzz_ingest

CORPUS = fuzz_ingest.CORPUS
REFUSED = {"float.tiff"}
ROWS, COLUMNS = np.mgrid[0:13, 0:17]
PIXELS = np.stack([COLUMNS * 15, ROWS * 19, (COLUMNS * ROWS) % 256], -1).astype(np.uint8)
"""What the pictures of the corpus show."""


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path)


def encoded(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **settings)
    return out.getvalue()


@pytest.mark.parametrize("name", sorted({path.name for path in CORPUS.iterdir()} - REFUSED))
def test_every_format_is_read(store: ImageStore, name: str):
    image = store.put((CORPUS / name).read_bytes())
    picture = store.open(image.id)
    assert (image.width, image.height) == ((13, 17) if name == "turned.jpg" else (17, 13))
    exact = name in {
        "rgb.png",
        "text.png",
        "profile.png",
        "animated.png",
        "exported.png",
        "rgb.bmp",
        "raw.tiff",
        "archive.png",
    }
    if exact or name == "pages.tiff":
        assert np.array_equal(np.asarray(picture), PIXELS)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_pixels_without_meaning_are_refused(store: ImageStore, name: str):
    with pytest.raises(ImageRejected, match="floating-point"):
        store.put((CORPUS / name).read_bytes())
    assert store.usage().images == 0


def test_a_camera_held_sideways_gives_an_upright_picture(store: ImageStore):
    picture = Image.fromarray(PIXELS)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = store.open(store.put(encoded(picture, exif=exif)).id)
    assert turned.tobytes() == picture.transpose(Image.Transpose.ROTATE_270).tobytes()
    plain = store.put(picture).id
    assert plain == store.put(encoded(picture)).id
    picture.getexif()[0x0112] = 6  # said of pixels that came from no file
    assert store.put(picture).id == store.put(turned).id != plain


def test_a_colour_profile_is_applied_and_left_behind(store: ImageStore):
    profile = ImageCms.ImageCmsProfile(swapped_profile())
    store_id = store.put(encoded(Image.new("RGB", (4, 4), (200, 10, 10)), icc_profile=profile.tobytes())).id
    picture = store.open(store_id)
    red, _, blue = picture.getpixel((0, 0))
    assert blue > 150 > red, "red and blue trade places in this profile"
    assert "icc_profile" not in picture.info


def test_a_profile_that_is_garbage_leaves_the_pixels(store: ImageStore):
    picture = Image.fromarray(PIXELS)
    assert store.open(store.put(encoded(picture, icc_profile=b"garbage")).id).tobytes() == picture.tobytes()


def test_sixteen_bits_become_eight_by_rounding(store: ImageStore):
    deep = np.array([[0, 128, 129, 32768, 65535]], np.uint16)
    picture = store.open(store.put(encoded(Image.fromarray(deep))).id)
    assert [picture.getpixel((x, 0))[0] for x in range(5)] == [0, 0, 1, 128, 255]


def test_transparency_is_kept_where_there_is_any(store: ImageStore):
    clear = Image.new("RGBA", (4, 4), (1, 2, 3, 0))
    assert store.open(store.put(clear).id).mode == "RGBA"
    palette = Image.new("P", (4, 4))
    assert store.open(store.put(encoded(palette, transparency=0)).id).mode == "RGBA"
    opaque = Image.new("RGBA", (4, 4), (1, 2, 3, 255))
    assert store.put(opaque).id == store.put(opaque.convert("RGB")).id


def test_metadata_does_not_reach_the_store(store: ImageStore):
    data = store.read(store.put((CORPUS / "text.png").read_bytes()).id)
    assert set(fuzz_ingest.chunk_names(data)) == {b"IHDR", b"IDAT", b"IEND"}
    plain = store.put((CORPUS / "rgb.png").read_bytes())
    assert store.put((CORPUS / "text.png").read_bytes()).id == plain.id


def _png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(1000)))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"empty \(0 bytes\)"),
        (b"no picture at all, only words", "could not be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "could not be read"),
        (_png_header(30_000, 30_000), "too large|pixels; at most 64,000,000"),
        (_png_header(2**31 - 1, 2**31 - 1), "at most 64,000,000 are allowed"),
        (_png_header(20_000, 2), "longest side may be at most 16,384"),
        (_png_header(0, 5), "could not be read|no pixels"),
        (_png_header(500, 500), "could not be read"),
        ((CORPUS / "rgb.png").read_bytes()[:100], "could not be read"),
        ((CORPUS / "baseline.jpg").read_bytes()[:300], "could not be read"),
        (b"\xff\xd8\xff" + bytes(60_000_000), "60,000,003 bytes; at most 50,000,000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_a_picture_is_refused_with_the_reason(store: ImageStore, data: bytes, reason: str):
    with pytest.raises(ImageRejected, match=reason) as caught:
        store.put(data)
    assert caught.value.advice and caught.value.code == "image_rejected"
    assert not list((store.path / "blobs").rglob("*"))


def test_a_bomb_is_refused_before_it_is_decoded(store: ImageStore, monkeypatch: pytest.MonkeyPatch):
    def decode(*_: object) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    with pytest.raises(ImageRejected, match="at most"):
        store.put(_png_header(8_001, 8_000))


@pytest.mark.parametrize(
    "picture",
    [
        Image.new("RGB", (0, 5)),
        Image.new("F", (3, 3)),
        Image.new("RGB", (17_000, 1)),
        Image.new("I", (2, 2), 70_000),
    ],
    ids=["empty", "float", "long", "deep"],
)
def test_pictures_in_memory_pass_the_same_gate(store: ImageStore, picture: Image.Image):
    with pytest.raises(ImageRejected):
        store.put(picture)


def test_a_preview_fits_its_bounds():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (900, 1400, 3), dtype=np.uint8))
    data, mime = codec.preview(noise)
    assert len(data) <= 150_000 and mime == "image/jpeg"
    assert max(Image.open(io.BytesIO(data)).size) <= 512
    clear = noise.copy()
    clear.putalpha(100)
    assert codec.preview(clear)[1] == "image/webp"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_pixels_of_any_size_and_mode_come_back(data: st.DataObject):
    mode = data.draw(st.sampled_from(["RGB", "RGBA", "L", "LA", "1", "P", "CMYK"]))
    size = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    seed = data.draw(st.integers(0, 2**32 - 1))
    picture = _noise(mode, size, seed)
    png = codec.encode(codec.admit(picture, Limits()))
    again = codec.open_stored(png, Limits())
    assert again.size == size == codec.size_of(png)
    wanted = picture.convert("RGBA" if "A" in mode else "RGB")
    assert again.convert("RGBA").tobytes() == wanted.convert("RGBA").tobytes()
    assert ingest(png, Limits()).png == png, "equal pixels, other bytes"
    assert ingest(encoded(wanted), Limits()).png == png


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 60), st.integers(1, 3600))
def test_limits_are_exact(width: int, height: int, side: int, pixels: int):
    fits = max(width, height) <= side and width * height <= pixels
    limits = Limits(side=side, pixels=pixels)
    decode: Callable[[], object] = lambda: ingest(encoded(Image.new("RGB", (width, height))), limits)  # noqa: E731
    if fits:
        decode()
    else:
        with pytest.raises(ImageRejected, match=f"{width}x{height}"):
            decode()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_picture_or_refused(data: bytes):
    with pytest.raises(ImageRejected) as caught:
        ingest(data, Limits())
    assert caught.value.message and caught.value.advice


def test_thousands_of_hostile_files_through_workers_and_store(tmp_path: Path):
    target = fuzz_ingest.fuzz(tmp_path, 3_000)  # many more of them in tests/attacks, without a store
    assert target.stored > 300 and target.refused.total() > 1_500
    assert target.stored + target.refused.total() == 3_000


def _noise(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    if mode in ("1", "P"):
        return Image.fromarray(values[..., 0]).convert(mode)
    return Image.frombytes(mode, size, values.tobytes())


def swapped_profile() -> io.BytesIO:
    """sRGB with the primaries of red and blue exchanged."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack_from(">I", data, 128)[0]
    places = {bytes(data[132 + 12 * at : 136 + 12 * at]): 132 + 12 * at for at in range(count)}
    data[places[b"rXYZ"] : places[b"rXYZ"] + 4] = b"bXYZ"
    data[places[b"bXYZ"] : places[b"bXYZ"] + 4] = b"rXYZ"
    return io.BytesIO(bytes(data))
