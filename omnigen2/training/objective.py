"""Rectified flow (Liu et al. 2022) as OmniGen2 was trained: times, noised latents, target velocity, loss.

`data` and `noise` are latents (..., C, H, W); `time` is 0-d for one picture, (n,) for a batch of n; 0 is
noise, 1 is data. The golden tests compare all of it with the reference implementation.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omnigen2.network.transformer import OmniGen2Transformer2DModel, patchify

FULL_SIZE = 128 * 128
"""Latent pixels of a picture of 1024 x 1024, for which times are shifted where no size is given."""


def shift_v1(latent_pixels: float) -> float:
    """exp(mu), mu linear in the number of 2 x 2 patches: 0.5 at 256 patches, 1.15 at 4096."""
    return math.exp(0.5 + (1.15 - 0.5) * (latent_pixels / 4 - 256) / (4096 - 256))


def shift_v2(latent_pixels: float) -> float:
    """The shift with which pictures are sampled (`omnigen2.schedule.time_grid`)."""
    return math.sqrt(latent_pixels) / 40


SHIFTS: Mapping[str, Callable[[float], float]] = {"v1": shift_v1, "v2": shift_v2}


def shifted(time: Tensor, shift: float | Tensor) -> Tensor:
    """Times in (0, 1), moved towards the noise where the shift is above 1, towards the data below it."""
    return time / (shift - shift * time + time)


def draw_times(latent_pixels: Sequence[int], rng: np.random.Generator, version: str = "v1") -> Tensor:
    """(n,) float32: one logit-normal time per picture (Esser et al. 2024, arXiv:2403.03206, section 3.1),
    shifted by the picture's size.

    Raises:
        ValueError: there is no such version of the shift.
    """
    if version not in SHIFTS:
        raise ValueError(f"version: {version!r} is unknown; allowed: {', '.join(SHIFTS)}")
    plain = draw_normal([len(latent_pixels)], rng).sigmoid()
    return shifted(plain, torch.tensor([SHIFTS[version](pixels) for pixels in latent_pixels]))


def draw_normal(shape: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Standard normal noise of that shape, float32."""
    return torch.from_numpy(rng.standard_normal(tuple(shape), dtype=np.float32))


def noised(data: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t = t * data + (1 - t) * noise."""
    return torch.lerp(noise, data, time.reshape(time.shape + (1,) * (data.ndim - time.ndim)))


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """What the model predicts at every time: d x_t / dt."""
    return data - noise


class VelocityLoss(nn.Module):
    """The mean squared error of the predicted velocity, over all latent values of a batch of any sizes.

    A batch of n pictures holds `texts` (n tensors (L, text_feat_dim)), `references` (n lists of latents),
    `data` and `noise` (n latents (C, h, w)) and `time` (n,). Optional are `weights`, n tensors (h, w) that
    multiply the squared error of each place, and `tasks` and `counts`: names of consecutive groups of
    pictures and their numbers of pictures, whose errors are reported under these names.
    """

    def __init__(self, transformer: OmniGen2Transformer2DModel):
        super().__init__()
        self.transformer = transformer

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        lengths, predicted = self.predict(batch)
        error = (predicted - self.target(batch)).square()
        if "weights" in batch:
            error = error * self._patches(own[None] for own in batch["weights"]).mean(dim=1, keepdim=True)
        losses = {"velocity": error.mean()}
        if "tasks" in batch:
            each = iter(lengths)
            groups = [sum(itertools.islice(each, count)) for count in batch["counts"]]
            own = error.detach().split(groups)
            losses |= {name: part.mean() for name, part in zip(batch["tasks"], own, strict=True)}
        return losses

    def predict(self, batch: dict[str, Any]) -> tuple[Sequence[int], Tensor]:
        """The number of patches of each picture, and the predicted velocity of all patches, one picture after
        the other: (sum of patches, p * p * C) float32."""
        pictures = list(zip(batch["data"], batch["noise"], batch["time"], strict=True))
        packed = self.transformer.condition(
            batch["texts"], batch["references"], [(data.shape[-2], data.shape[-1]) for data, _, _ in pictures]
        )
        noisy = self._patches(noised(*picture) for picture in pictures)
        return packed.pictures.lengths, self.transformer(noisy, batch["time"], packed).float()

    def target(self, batch: dict[str, Any]) -> Tensor:
        """The target velocity, of the same shape as the prediction."""
        return self._patches(map(velocity, batch["data"], batch["noise"]))

    def _patches(self, pictures: Iterable[Tensor]) -> Tensor:
        """(sum of patches, p * p * C): the patches of all pictures, one picture after the other."""
        return torch.cat([patchify(one, self.transformer.config["patch_size"]) for one in pictures])
