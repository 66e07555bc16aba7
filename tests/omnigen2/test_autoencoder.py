"""Pictures to latents and back, against the reference."""

import pytest
import torch
from PIL import Image

from omnigen2.autoencoder import Autoencoder, flatten, to_image, to_pixels
from omnigen2.checkpoints.load import load_autoencoder
from tests.omnigen2.golden import BAR, PIPELINE, STEPS, described, error, needs_steps, tensors

PICTURES = sorted(path.name for path in (PIPELINE / "images").glob("*.png"))


@pytest.fixture(scope="module")
def autoencoder() -> Autoencoder:
    return load_autoencoder(PIPELINE / "checkpoint", torch.float32, patch_size=2)


@pytest.mark.golden
@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_becomes_the_latents_of_the_reference(autoencoder: Autoencoder, name: str) -> None:
    picture = Image.open(PIPELINE / "images" / name)
    latents = autoencoder.encode(picture, max_pixels=6144, max_side=128)
    assert error(latents, tensors(PIPELINE / "vae")[f"{name}.latents"]) < BAR


@pytest.mark.golden
def test_latents_become_the_picture_of_the_reference(autoencoder: Autoencoder) -> None:
    stored = tensors(PIPELINE / "vae")
    # as stored, these latents are decoded without the quantisation to 8 bits that a picture has
    golden = to_pixels(to_image(stored["decode.pixels"][0]))
    ours = to_pixels(autoencoder.decode(stored["decode.latents"][0]))
    assert (ours - golden).abs().max() <= 1 / 127.5 + 1e-6
    assert (ours - golden).abs().mean() < 1e-4


SIZES = described(STEPS / "cases" / "image_sizes") if (STEPS / "cases").is_dir() else []


@pytest.mark.golden
@needs_steps
@pytest.mark.parametrize("row", SIZES, ids=lambda row: "{width}x{height}-{max_pixels}".format_map(row))
def test_sizes_are_fitted_as_by_the_reference(autoencoder: Autoencoder, row: dict[str, int]) -> None:
    fitted = autoencoder.fit(row["width"], row["height"], row["max_pixels"], row["max_side_length"])
    assert [fitted[1], fitted[0]] == row["new_height_width"]


def test_a_side_shorter_than_a_patch_is_refused(autoencoder: Autoencoder) -> None:
    with pytest.raises(ValueError, match=r"size: 4000 x 20 pixels leaves a side under 16 pixels"):
        autoencoder.fit(4000, 20, 6144)


def test_transparency_becomes_white() -> None:
    picture = Image.new("RGBA", (16, 16), (255, 0, 0, 0))
    assert flatten(picture).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["L", "P", "LA", "I;16", "CMYK", "1"])
def test_pictures_of_every_mode_can_be_encoded(autoencoder: Autoencoder, mode: str) -> None:
    assert autoencoder.encode(Image.new(mode, (32, 16)), 1024, 32).shape == (16, 2, 4)


def test_the_same_picture_always_gives_the_same_latents(autoencoder: Autoencoder) -> None:
    picture = Image.effect_noise((48, 32), 90)
    assert torch.equal(autoencoder.encode(picture, 6144, 128), autoencoder.encode(picture, 6144, 128))


def test_a_preview_is_small(autoencoder: Autoencoder) -> None:
    assert max(autoencoder.preview(torch.zeros(16, 128, 64)).size) <= 256
