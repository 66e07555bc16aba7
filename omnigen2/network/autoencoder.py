"""Pictures to latents and back, with the size rules of the reference, around diffusers' `AutoencoderKL`.

A reference image is reduced (never enlarged) to the pixel budget and the side limit, then to whole patches.
Its latents are the mode of the posterior: the same picture always gives the same latents. Pictures pass
through layer by layer, those of more than `WHOLE_PIXELS` in strips, to save memory.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor

from omnigen2.memory.device import isolated
from omnigen2.memory.weights import HERE, with_weights
from omnigen2.network import in_place, strips
from omnigen2.params import InvalidTask
from omnigen2.sizes import WHOLE_PIXELS

PREVIEW_SIDE = 32  # latent pixels; 256 px for an autoencoder that reduces by 8


class Autoencoder:
    """`AutoencoderKL` with this project's conventions; `multiple` is the side of a patch in pixels."""

    def __init__(self, vae: AutoencoderKL, patch_size: int):
        self.vae = vae
        self.factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.multiple = self.factor * patch_size
        self.shift: float = vae.config.get("shift_factor") or 0.0
        self.scale: float = vae.config["scaling_factor"]
        self.weights = HERE

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.vae.device

    def fit(self, width: int, height: int, max_pixels: int, max_side: int | None = None) -> tuple[int, int]:
        """The (width, height) in pixels at which a picture of that size is made, or encoded (`max_side`).

        Raises:
            ValueError: a side would be shorter than one patch.
        """
        ratio = min(math.sqrt(max_pixels / (width * height)), 1.0)
        if max_side is not None:
            ratio = min(ratio, max_side / max(width, height))
        fitted = tuple(int(side * ratio) // self.multiple * self.multiple for side in (width, height))
        if min(fitted) == 0:
            field = "size" if max_side is None else "images"
            raise InvalidTask(
                f"{field}: {width} x {height} pixels leaves a side under {self.multiple} pixels; "
                f"both sides need at least {self.multiple} within {max_pixels} pixels"
            )
        return fitted[0], fitted[1]

    @isolated
    @with_weights
    def encode(self, image: Image.Image, max_pixels: int, max_side: int) -> Tensor:
        """Latents (C, h, w) float32 of a picture."""
        size = self.fit(*image.size, max_pixels, max_side)
        pixels = to_pixels(flatten(image).resize(size, Image.Resampling.LANCZOS))
        pixels = pixels.to(self.vae.device, self.vae.dtype)
        way = strips if size[0] * size[1] > WHOLE_PIXELS else in_place
        mode = way.encode(self.vae, pixels[None])
        return (mode[0].float() - self.shift) * self.scale

    @isolated
    @with_weights
    def decode(self, latents: Tensor, size: tuple[int, int] | None = None) -> Image.Image:
        """The picture of latents (C, h, w), stretched bilinearly to `size` (width, height) if it differs."""
        latents = (latents / self.scale + self.shift).to(self.vae.device, self.vae.dtype)
        way = strips if latents[0].numel() * self.factor**2 > WHOLE_PIXELS else in_place
        pixels = way.decode(self.vae, latents[None]).float()
        if size is not None and size != (pixels.shape[-1], pixels.shape[-2]):
            pixels = F.interpolate(pixels, size=(size[1], size[0]), mode="bilinear")
        return to_image(pixels[0])

    def preview(self, latents: Tensor) -> Image.Image:
        """A small picture of latents (C, h, w), cheap enough to make while others are denoised."""
        ratio = min(1.0, PREVIEW_SIDE / max(latents.shape[-2:]))
        side = [max(1, round(length * ratio)) for length in latents.shape[-2:]]
        return self.decode(F.interpolate(latents[None], size=side, mode="area")[0])


def flatten(image: Image.Image) -> Image.Image:
    """RGB; what is transparent becomes white."""
    if image.mode == "RGB":
        return image
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    white = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(white, layered).convert("RGB")


def to_pixels(image: Image.Image) -> Tensor:
    """(3, height, width) float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(127.5).sub_(1)


def to_image(pixels: Tensor) -> Image.Image:
    """The inverse of `to_pixels`, for values that may lie outside [-1, 1]."""
    levels = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte()
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())
