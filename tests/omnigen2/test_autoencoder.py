"""Pictures to latents and back, against the reference."""

from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image

from omnigen2.checkpoints.load import load_autoencoder
from omnigen2.network import in_place, strips
from omnigen2.network.autoencoder import Autoencoder, flatten, to_image, to_pixels
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


QUANTISING = {"use_quant_conv": True, "use_post_quant_conv": True, "block_out_channels": (8, 8, 16)}


@pytest.mark.parametrize("changes", [{}, QUANTISING], ids=["golden", "quantising"])
@pytest.mark.parametrize("size", [(160, 96), (16, 400), (400, 16), (208, 176)])
def test_strips_are_the_whole_picture(
    autoencoder: Autoencoder, size: tuple[int, int], changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strips, "STRIP_PIXELS", 1024)
    monkeypatch.setattr(strips, "SCORES", 1024)
    vae: Any = autoencoder.vae
    if changes:
        torch.manual_seed(0)
        vae = AutoencoderKL.from_config({**vae.config, "down_block_types": ("DownEncoderBlock2D",) * 3,
                                         "up_block_types": ("UpDecoderBlock2D",) * 3, **changes})  # fmt: skip
    pixels = to_pixels(Image.effect_mandelbrot(size, (-2.0, -1.5, 1.0, 1.5), 90).convert("RGB"))[None]
    with torch.inference_mode():
        latents = vae.encode(pixels).latent_dist.mode()
        assert error(strips.encode(vae, pixels), latents) < 1e-5
        assert error(strips.decode(vae, latents), vae.decode(latents).sample) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", [{}, QUANTISING, {"block_out_channels": (32, 64, 128, 128)}])
def test_layers_computed_in_place_are_the_librarys(
    autoencoder: Autoencoder, changes: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = len(changes.get("block_out_channels", "four"))
    torch.manual_seed(0)
    vae: Any = AutoencoderKL.from_config({**autoencoder.vae.config, **changes,
                                          "down_block_types": ("DownEncoderBlock2D",) * levels,
                                          "up_block_types": ("UpDecoderBlock2D",) * levels})  # fmt: skip
    vae.to(dtype)
    pixels = to_pixels(Image.effect_noise((144, 96), 90).convert("RGB"))[None].to(dtype)
    with torch.inference_mode():
        latents = vae.encode(pixels).latent_dist.mode()
        decoded = vae.decode(latents).sample
        assert torch.equal(in_place.encode(vae, pixels), latents)
        assert torch.equal(in_place.decode(vae, latents), decoded)
        monkeypatch.setattr(in_place, "CONVOLVED_PIXELS", 2048)
        monkeypatch.setattr(in_place, "NORMED", 2048)
        assert error(in_place.encode(vae, pixels), latents) < 1e-5
        assert error(in_place.decode(vae, latents), decoded) < 1e-5


def test_a_picture_is_in_strips_only_above_a_size(
    autoencoder: Autoencoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = Image.effect_noise((48, 32), 90)
    whole = autoencoder.encode(picture, 6144, 128)
    used: list[str] = []
    for name in ("encode", "decode"):
        made = getattr(strips, name)
        monkeypatch.setattr(
            strips, name, lambda *given, made=made, name=name: used.append(name) or made(*given)
        )
    monkeypatch.setattr("omnigen2.network.autoencoder.WHOLE_PIXELS", 48 * 32)
    assert torch.equal(autoencoder.encode(picture, 6144, 128), whole)
    pixels = to_pixels(autoencoder.decode(whole))
    assert not used
    monkeypatch.setattr("omnigen2.network.autoencoder.WHOLE_PIXELS", 48 * 32 - 1)
    assert error(autoencoder.encode(picture, 6144, 128), whole) < 1e-5
    assert (to_pixels(autoencoder.decode(whole)) - pixels).abs().max() <= 1 / 127.5 + 1e-6
    assert used == ["encode", "decode"]


def test_sides_are_bounded_by_pixels_alone(autoencoder: Autoencoder) -> None:
    for size in [(2048, 2048), (3072, 1024), (1024, 4096)]:
        assert autoencoder.fit(*size, max_pixels=2048 * 2048) == size


def test_a_preview_is_small(autoencoder: Autoencoder) -> None:
    assert max(autoencoder.preview(torch.zeros(16, 128, 64)).size) <= 256
