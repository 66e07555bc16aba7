"""Stage 1: the autoencoder learns to draw flat shapes with crisp edges from 8 x 8 times fewer places. Then
the decoder learns on alone (`decoder`): whole pictures, from latents as noisy as a flow leaves them.

Loss: absolute error, squared error, absolute error of the differences between neighbouring pixels (which
makes edges sharp), and a small pull of the posterior towards the standard normal (Kingma & Welling 2014).
Half of the pictures are in any colours, and the pull is weak: nine colours known by heart and a strong pull
made nine codes, different on every background, from which the transformer hardly learnt to copy a thing.
"""

from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from omnigen2.autoencoder import Autoencoder
from omnigen2.shapeworld import COLOURS, render, sample_scene
from omnigen2.training.config import Stage

SQUARED, EDGES, PRIOR = 2.0, 0.5, 1e-6
EVENED = 256  # pictures over which the latent channels are evened out
ANY_COLOURS = 0.5  # share of pictures in any colours
COMMONEST = 0.75  # share of batches whose pictures have the first side of the stage
BLURRED = 0.22  # most noise that the decoder learns to draw from, in deviations of the latents
CROP = 64  # pixels: an autoencoder is local, so parts of pictures teach it at a fraction of the cost


class AutoencoderLoss(nn.Module):
    """Reconstruction losses of a batch of pixels (n, 3, height, width) in [-1, 1]."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        pixels = batch["pixels"]
        posterior = self.vae.encode(pixels).latent_dist  # pyright: ignore
        latents = posterior.mean + posterior.std * batch["noise"]
        return _drawn(self.vae, latents, pixels) | {"prior": PRIOR * posterior.kl().mean()}


class DecoderLoss(nn.Module):
    """As `AutoencoderLoss`, of the decoder alone: the encoder is frozen, and `noise` added as it is."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae.requires_grad_(False)
        vae.decoder.requires_grad_(True)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        pixels = batch["pixels"]
        with torch.no_grad():
            modes = self.vae.encode(pixels).latent_dist.mode()  # pyright: ignore
        return _drawn(self.vae, modes + batch["noise"], pixels)


def _drawn(vae: AutoencoderKL, latents: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    error = vae.decode(latents).sample.float() - pixels  # pyright: ignore
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    squared = error.square().mean()
    return {
        "absolute": error.abs().mean(),
        "squared": SQUARED * squared,
        "edges": EDGES * edges,
        "psnr": 10 * torch.log10(4 / squared.detach()),
    }


class AutoencoderTask:
    """Random scenes in parts, for the loop."""

    name = "autoencoder"

    def __init__(self, vae: AutoencoderKL, stage: Stage, seed: int):
        self.module = AutoencoderLoss(vae)
        self.stage, self.seed = stage, seed
        self.factor = Autoencoder(vae, 1).factor

    def batch(self, number: int) -> dict[str, Any]:
        """Crops of pictures of scenes, and the noise that samples the posterior."""
        rng = np.random.default_rng([self.seed, 1, number])
        pixels = np.stack([self._crop(rng) for _ in range(self.stage.batch["scenes"])])
        return {"pixels": to_tensor(pixels), "noise": _noise(self.module.vae, pixels, rng)}

    def even_out(self) -> None:
        """Even out the latent channels over scenes that no step has seen; see `even_out`."""
        rng = np.random.default_rng([self.seed, 1])
        side = self.stage.sides[0]
        pixels = np.stack([render(sample_scene(rng), side, side) for _ in range(EVENED)])
        even_out(self.module.vae, to_tensor(pixels))

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        width, height = (int(rng.choice(self.stage.sides)) for _ in range(2))
        pixels = render(sample_scene(rng), width, height, _colours(rng))
        # At whole latents, since that is where pictures begin.
        left, top = (
            int(rng.integers((side - CROP) // self.factor + 1)) * self.factor for side in (width, height)
        )
        return pixels[top : top + CROP, left : left + CROP]


class DecoderTask:
    """Whole pictures of random scenes, all of one size, for the loop."""

    name = "decoder"

    def __init__(self, vae: AutoencoderKL, stage: Stage, seed: int):
        self.module = DecoderLoss(vae)
        self.stage, self.seed = stage, seed

    def batch(self, number: int) -> dict[str, Any]:
        """Pictures, and the noise that is added to their latents: of every picture another amount."""
        rng = np.random.default_rng([self.seed, 8, number])
        width, height, share = draw_size(self.stage, rng)
        count = max(1, round(self.stage.batch["scenes"] * share))
        pixels = np.stack([render(sample_scene(rng), width, height, _colours(rng)) for _ in range(count)])
        amount = torch.from_numpy(rng.uniform(0, BLURRED, (count, 1, 1, 1)).astype(np.float32))
        return {"pixels": to_tensor(pixels), "noise": amount * _noise(self.module.vae, pixels, rng)}


def draw_size(stage: Stage, rng: np.random.Generator) -> tuple[int, int, float]:
    """Width and height of a batch's pictures, in pixels; most batches have the commonest side. And the share
    of the stage's examples that have as many pixels in all, whatever the size."""
    sides = stage.sides
    if rng.random() < COMMONEST:
        return sides[0], sides[0], 1.0
    width, height = int(rng.choice(sides)), int(rng.choice(sides))
    return width, height, sides[0] ** 2 / (width * height)


def _noise(vae: AutoencoderKL, pixels: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Standard normal noise as large as the latents of pictures (n, height, width, 3)."""
    count, height, width, _ = pixels.shape
    factor = Autoencoder(vae, 1).factor
    shape = (count, vae.config["latent_channels"], height // factor, width // factor)
    return torch.from_numpy(rng.standard_normal(shape, dtype=np.float32))


def _colours(rng: np.random.Generator) -> dict[str, tuple[int, int, int]]:
    """ShapeWorld's colours, or any."""
    if rng.random() >= ANY_COLOURS:
        return COLOURS
    red, green, blue = rng.integers(0, 256, (3, len(COLOURS))).tolist()
    return dict(zip(COLOURS, zip(red, green, blue, strict=True), strict=True))


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(n, height, width, 3) bytes as (n, 3, height, width) float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


@torch.no_grad()
def even_out(vae: AutoencoderKL, pixels: Tensor) -> None:
    """Give every latent channel deviation 1 over `pixels` (n, 3, h, w), without changing what comes out.

    `scaling_factor` is one number for all channels; here the channels are evened out inside the last layer of
    the encoder and the first of the decoder, so that the flow meets data of one size. What counts is the
    deviation of samples, not of modes: a channel that carries nothing stays small, and costs the flow
    nothing.
    """
    posterior = vae.encode(pixels).latent_dist  # pyright: ignore
    variance = posterior.mean.var(dim=(0, 2, 3)) + posterior.var.mean(dim=(0, 2, 3))
    deviation = variance.sqrt()
    last: Any = vae.encoder.conv_out
    first: Any = vae.decoder.conv_in
    count = len(deviation)
    last.weight[:count] /= deviation[:, None, None, None]
    last.bias[:count] /= deviation
    last.bias[count:] -= 2 * deviation.log()  # the log variances move with the means
    first.weight *= deviation[None, :, None, None]
