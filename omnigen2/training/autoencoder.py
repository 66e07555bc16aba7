"""Stage 1: the autoencoder learns to draw flat shapes with crisp edges from 8 x 8 times fewer places. Then
the decoder learns on alone (`decoder`): whole pictures, from latents as noisy as a flow leaves them.

Loss: absolute error, squared error, absolute error of the differences between neighbouring pixels (which
makes edges sharp), and a small pull of the posterior towards the standard normal (Kingma & Welling 2014).
Many pictures are in any colours, and the pull is weak: nine colours known by heart and a strong pull made
nine codes, different on every background, from which the transformer hardly learnt to copy a thing. Others
are faint, and what is faint weighs more: an outline between purple and gray adds little to the errors, and
was left blurred.
"""

from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from omnigen2.autoencoder import Autoencoder
from omnigen2.shapeworld import COLOURS, Scene, render, sample_scene
from omnigen2.training.config import Stage

SQUARED, EDGES, PRIOR = 2.0, 0.5, 1e-6
EVENED = 256  # pictures over which the latent channels are evened out
ANY_COLOURS = 0.35  # share of pictures in any colours
FAINT = 0.3  # share of pictures whose things are close to the background's colour
CLOSE = (50, 130)  # how close, in 8-bit sRGB; ShapeWorld's closest two, yellow and orange, are 73 apart
CONTRAST, HEAVIEST = 200, 4.0  # a picture of less contrast weighs more in proportion, up to a limit
COMMONEST = 0.75  # share of batches whose pictures have the first side of the stage
BLURRED = 0.22  # most noise that the decoder learns to draw from, in deviations of the latents
CROP = 64  # pixels: an autoencoder is local, so parts of pictures teach it at a fraction of the cost


class AutoencoderLoss(nn.Module):
    """Reconstruction losses of `pixels` (n, 3, height, width) in [-1, 1], each times its `weight` (n,)."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        pixels = batch["pixels"]
        posterior = self.vae.encode(pixels).latent_dist  # pyright: ignore
        latents = posterior.mean + posterior.std * batch["noise"]
        return _drawn(self.vae, latents, batch) | {"prior": PRIOR * posterior.kl().mean()}


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
        return _drawn(self.vae, modes + batch["noise"], batch)


def _drawn(vae: AutoencoderKL, latents: Tensor, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    error = vae.decode(latents).sample.float() - batch["pixels"]  # pyright: ignore
    weighed = error * batch["weight"][:, None, None, None]
    edges = weighed.diff(dim=-1).abs().mean() + weighed.diff(dim=-2).abs().mean()
    return {
        "absolute": weighed.abs().mean(),
        "squared": SQUARED * (weighed * error).mean(),
        "edges": EDGES * edges,
        "psnr": 10 * torch.log10(4 / error.detach().square().mean()),
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
        crops, weights = zip(*(self._crop(rng) for _ in range(self.stage.batch["scenes"])), strict=True)
        pixels = np.stack(crops)
        return {
            "pixels": to_tensor(pixels),
            "weight": torch.tensor(weights),
            "noise": _noise(self.module.vae, pixels, rng),
        }

    def even_out(self) -> None:
        """Even out the latent channels over scenes that no step has seen; see `even_out`."""
        rng = np.random.default_rng([self.seed, 1])
        side = self.stage.sides[0]
        pixels = np.stack([render(sample_scene(rng), side, side) for _ in range(EVENED)])
        even_out(self.module.vae, to_tensor(pixels))

    def _crop(self, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        width, height = (int(rng.choice(self.stage.sides)) for _ in range(2))
        pixels, weight = _picture(rng, width, height)
        # At whole latents, since that is where pictures begin.
        left, top = (
            int(rng.integers((side - CROP) // self.factor + 1)) * self.factor for side in (width, height)
        )
        return pixels[top : top + CROP, left : left + CROP], weight


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
        pictures, weights = zip(*(_picture(rng, width, height) for _ in range(count)), strict=True)
        pixels = np.stack(pictures)
        amount = torch.from_numpy(rng.uniform(0, BLURRED, (count, 1, 1, 1)).astype(np.float32))
        return {
            "pixels": to_tensor(pixels),
            "weight": torch.tensor(weights),
            "noise": amount * _noise(self.module.vae, pixels, rng),
        }


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


def _picture(rng: np.random.Generator, width: int, height: int) -> tuple[np.ndarray, float]:
    """A random scene, (height, width, 3) bytes, and its weight: the fainter a thing in it, the heavier."""
    scene = sample_scene(rng)
    colours = _colours(rng, scene)
    background = np.array(colours[scene.background])
    contrast = min(float(np.linalg.norm(colours[thing.colour] - background)) for thing in scene.things)
    return render(scene, width, height, colours), min(max(CONTRAST / max(contrast, 1.0), 1.0), HEAVIEST)


def _colours(rng: np.random.Generator, scene: Scene) -> dict[str, tuple[int, int, int]]:
    """ShapeWorld's colours, or any, or some that lie close to the background's."""
    drawn = rng.random()
    if drawn >= ANY_COLOURS + FAINT:
        return COLOURS
    values = rng.integers(0, 256, (len(COLOURS), 3))
    if drawn < FAINT:
        background = values[list(COLOURS).index(scene.background)].copy()
        away = rng.normal(size=values.shape)
        away *= rng.uniform(*CLOSE, (len(values), 1)) / np.linalg.norm(away, axis=1, keepdims=True)
        away[list(COLOURS).index(scene.background)] = 0
        values = (background + away).round().clip(0, 255).astype(int)
    red, green, blue = values.T.tolist()
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
