"""Encoded pixels: read back as they were by another decoder, equal bytes for equal pixels, and small."""

import io

import numpy as np
import pytest
from PIL import Image

from storage import png


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (33, 17), (300, 100)])
@pytest.mark.parametrize("samples", [3, 4])
def test_every_pixel_comes_back_and_equal_pixels_are_equal_bytes(size: tuple[int, int], samples: int) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], samples), dtype=np.uint8)
    ramp = np.arange(noise.size, dtype=np.uint8).reshape(noise.shape)
    for pixels in (noise, ramp, ramp // 64, np.full_like(noise, 255)):
        encoded = png.encoded(Image.fromarray(pixels))
        with Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
            image.verify()  # its checksums
        with Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
            assert image.mode == {3: "RGB", 4: "RGBA"}[samples] and not image.info
            assert np.array_equal(np.asarray(image), pixels)
        assert png.encoded(Image.fromarray(pixels.copy())) == encoded


def test_it_is_hardly_larger_than_what_pillow_makes() -> None:
    smooth = Image.effect_noise((64, 64), 60).resize((512, 512)).convert("RGB")
    theirs = io.BytesIO()
    smooth.save(theirs, "PNG", compress_type=3)
    assert len(png.encoded(smooth)) < 1.1 * len(theirs.getvalue())
