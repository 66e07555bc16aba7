"""Stage 1: the autoencoder, whose latents are 8 times smaller than the picture; then `decoder` alone.

Losses: absolute and squared error, the absolute error of differences between neighbouring pixels (for sharp
edges), and a small KL divergence of the posterior from the standard normal (Kingma & Welling 2014). Many
pictures have random colours and the divergence has a small weight: with nine fixed colours and a large
weight, the latents became nine codes, different on every background, and the transformer hardly learnt to
copy a thing. Other pictures have little contrast, and the errors of faint things weigh more, since an outline
between purple and gray adds little to the mean error and stayed blurred.

The decoder trains on latents with as much noise as sampling leaves in them. An autoencoder that has been
trained before is held near its old latents, so that the transformer needs little further training, and it
too decodes noisy latents, so that the encoder separates what decoder noise would hide: on purple, a gray star
and a gray circle differed by less than the error of sampled latents.
"""

import copy
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from omnigen2.nano.stages.config import Stage
from omnigen2.nano.world import COLOURS, render, sample_scene
from omnigen2.network.autoencoder import Autoencoder

SQUARED, EDGES, PRIOR = 2.0, 0.5, 1e-6
EVENED = 256  # pictures over which the latent channels are normalised
ANY_COLOURS = 0.25  # share of pictures in random colours
FAINT = 0.4  # share of pictures where half of the colours are close to the background's
CLOSE = (50, 130)  # their distance in 8-bit sRGB; ShapeWorld's closest two, yellow and orange, have 73
CONTRAST, STEEPNESS, HEAVIEST = 250, 1.5, 12.0  # a thing of less contrast weighs more, up to HEAVIEST
AROUND = 1.3  # radii of a thing within which pixels have its weight
DISTILLATION = 0.01  # weight of the squared distance from the old latents, whose deviation is 1
COMMONEST = 0.75  # share of batches whose pictures have the first side of the stage
BLURRED = 0.3  # largest noise that a decoder trains on, in deviations of the latents
CROP = 64  # pixels; an autoencoder is local, so crops suffice at a fraction of the cost


class AutoencoderLoss(nn.Module):
    """Reconstruction losses of `pixels` (n, 3, height, width) in [-1, 1], each times its `weight`
    (n, height, width).

    With `trained`, also the distance from the latents of the encoder before training; and `noise` is then
    added to the latents as it is, otherwise scaled by the posterior's deviation.
    """

    def __init__(self, vae: AutoencoderKL, trained: bool):
        super().__init__()
        self.vae = vae
        # In a tuple, so that it is not a submodule, which would be trained and saved.
        self.before = (copy.deepcopy(vae).requires_grad_(False),) if trained else ()

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        pixels = batch["pixels"]
        posterior = self.vae.encode(pixels).latent_dist  # pyright: ignore
        latents = posterior.mean + (1 if self.before else posterior.std) * batch["noise"]
        losses = _reconstruction(self.vae, latents, batch) | {"prior": PRIOR * posterior.kl().mean()}
        for before in self.before:
            with torch.no_grad():
                known = before.to(pixels.device).encode(pixels).latent_dist.mode()  # pyright: ignore
            losses["distillation"] = DISTILLATION * (posterior.mean - known).square().mean()
        return losses


class DecoderLoss(nn.Module):
    """The reconstruction losses of `AutoencoderLoss` for the decoder alone; `noise` is added as it is."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae.requires_grad_(False)
        vae.decoder.requires_grad_(True)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        pixels = batch["pixels"]
        with torch.no_grad():
            modes = self.vae.encode(pixels).latent_dist.mode()  # pyright: ignore
        return _reconstruction(self.vae, modes + batch["noise"], batch)


def _reconstruction(vae: AutoencoderKL, latents: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    error = vae.decode(latents).sample.float() - batch["pixels"]  # pyright: ignore
    weighed = error * batch["weight"][:, None]
    edges = weighed.diff(dim=-1).abs().mean() + weighed.diff(dim=-2).abs().mean()
    return {
        "absolute": weighed.abs().mean(),
        "squared": SQUARED * (weighed * error).mean(),
        "edges": EDGES * edges,
        "psnr": 10 * torch.log10(4 / error.detach().square().mean()),
    }


class AutoencoderTask:
    """Batches of crops of random scenes, and the loss; `trained`: the autoencoder has been trained before."""

    name = "autoencoder"

    def __init__(self, vae: AutoencoderKL, stage: Stage, seed: int, trained: bool = False):
        self.module = AutoencoderLoss(vae, trained)
        self.stage, self.seed = stage, seed
        self.factor = Autoencoder(vae, 1).factor

    def batch(self, number: int) -> dict[str, Any]:
        """Crops of pictures of scenes, and the noise that samples the posterior."""
        rng = np.random.default_rng([self.seed, 1, number])
        crops, weights = zip(*(self._crop(rng) for _ in range(self.stage.batch["scenes"])), strict=True)
        pixels = np.stack(crops)
        noise = _noise(self.module.vae, pixels, rng)
        return {
            "pixels": to_tensor(pixels),
            "weight": torch.from_numpy(np.stack(weights)),
            "noise": _blur(noise, rng) if self.module.before else noise,
        }

    def even_out(self) -> None:
        """Normalise the latent channels over scenes not used in training; see `even_out`. Those of an
        autoencoder that has been trained before get their former deviations."""
        rng = np.random.default_rng([self.seed, 1])
        side = self.stage.sides[0]
        pixels = np.stack([render(sample_scene(rng), side, side) for _ in range(EVENED)])
        even_out(self.module.vae, to_tensor(pixels), *self.module.before)

    def _crop(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        width, height = (int(rng.choice(self.stage.sides)) for _ in range(2))
        pixels, weights = _picture(rng, width, height)
        # Aligned to latents, as whole pictures are.
        left, top = (
            int(rng.integers((side - CROP) // self.factor + 1)) * self.factor for side in (width, height)
        )
        crop = slice(top, top + CROP), slice(left, left + CROP)
        return pixels[crop], weights[crop]


class DecoderTask:
    """Batches of pictures of random scenes, all of one size, and the loss."""

    name = "decoder"

    def __init__(self, vae: AutoencoderKL, stage: Stage, seed: int):
        self.module = DecoderLoss(vae)
        self.stage, self.seed = stage, seed

    def batch(self, number: int) -> dict[str, Any]:
        """Pictures, and the noise that is added to their latents, with a random deviation for each."""
        rng = np.random.default_rng([self.seed, 8, number])
        width, height, share = draw_size(self.stage, rng)
        count = max(1, round(self.stage.batch["scenes"] * share))
        pictures, weights = zip(*(_picture(rng, width, height) for _ in range(count)), strict=True)
        pixels = np.stack(pictures)
        return {
            "pixels": to_tensor(pixels),
            "weight": torch.from_numpy(np.stack(weights)),
            "noise": _blur(_noise(self.module.vae, pixels, rng), rng),
        }


def draw_size(stage: Stage, rng: np.random.Generator) -> tuple[int, int, float]:
    """Width and height of a batch's pictures in pixels, mostly the first of the stage's sides; and the factor
    of the number of examples that keeps the number of pixels per batch constant."""
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


def _blur(noise: Tensor, rng: np.random.Generator) -> Tensor:
    """The noise of each picture times a random deviation up to `BLURRED`, as sampling may leave it."""
    return noise * torch.from_numpy(rng.uniform(0, BLURRED, (len(noise), 1, 1, 1)).astype(np.float32))


def _picture(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """A random scene, (height, width, 3) bytes, and the weights of its pixels, (height, width) float32, which
    are larger for things of less contrast."""
    scene = sample_scene(rng)
    colours = _colours(rng, scene.background)
    weights = np.ones((height, width), np.float32)
    rows, columns = np.ogrid[:height, :width]
    for thing in scene.things:
        contrast = np.linalg.norm(np.subtract(colours[thing.colour], colours[scene.background]))
        reach = AROUND * thing.radius * min(width, height)
        near = np.hypot(columns + 0.5 - thing.x * width, rows + 0.5 - thing.y * height) < reach
        weights[near] = np.clip((CONTRAST / max(contrast, 1)) ** STEEPNESS, weights[near], HEAVIEST)
    return render(scene, width, height, colours), weights


def _colours(rng: np.random.Generator, background: str) -> dict[str, tuple[int, int, int]]:
    """ShapeWorld's colours, or random ones; in some pictures half of them are close to the background's."""
    names = list(COLOURS)
    drawn = rng.random()
    known = drawn >= ANY_COLOURS + FAINT / 2
    values = np.array(list(COLOURS.values())) if known else rng.integers(0, 256, (len(names), 3))
    if drawn < FAINT / 2 or drawn >= 1 - FAINT / 2:
        away = rng.normal(size=values.shape)
        away *= rng.uniform(*CLOSE, (len(values), 1)) / np.linalg.norm(away, axis=1, keepdims=True)
        near = values[names.index(background)] + away
        close = rng.random(len(names)) < 0.5
        close[names.index(background)] = False
        values = np.where(close[:, None], near.round().clip(0, 255).astype(int), values)
    red, green, blue = values.T.tolist()
    return dict(zip(COLOURS, zip(red, green, blue, strict=True), strict=True))


def to_tensor(pixels: np.ndarray) -> Tensor:
    """(n, height, width, 3) bytes as (n, 3, height, width) float32 in [-1, 1]."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


@torch.no_grad()
def even_out(vae: AutoencoderKL, pixels: Tensor, like: AutoencoderKL | None = None) -> None:
    """Give every latent channel deviation 1 over `pixels` (n, 3, h, w), or the deviation it has with `like`,
    without changing the reconstruction.

    `scaling_factor` is one number for all channels; here each channel is scaled in the last layer of the
    encoder and the first of the decoder, so that the flow's data are of one scale. The deviation is that of
    samples, not of modes: a channel without information stays small and adds nothing to the flow's loss.
    """
    deviation = _deviations(vae, pixels)
    if like is not None:
        deviation /= _deviations(like, pixels)
    last: Any = vae.encoder.conv_out
    first: Any = vae.decoder.conv_in
    count = len(deviation)
    last.weight[:count] /= deviation[:, None, None, None]
    last.bias[:count] /= deviation
    last.bias[count:] -= 2 * deviation.log()  # the log variances move with the means
    first.weight *= deviation[None, :, None, None]


def _deviations(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    posterior = vae.encode(pixels).latent_dist  # pyright: ignore
    variance = posterior.mean.var(dim=(0, 2, 3)) + posterior.var.mean(dim=(0, 2, 3))
    return variance.sqrt()
