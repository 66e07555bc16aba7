"""Rectified flow as OmniGen2 was trained: which times are drawn, what the model sees, what it must predict.

Pure functions of tensors. `data` and `noise` are latents (..., C, H, W); `time` is 0-d for one picture, (n,)
for a batch of n.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

FULL_SIZE = 128 * 128
"""Latent pixels of a picture of 1024 x 1024, the size that times are shifted for where none is given."""


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


def draw_times(
    latent_pixels: list[int], version: str = "v1", generator: torch.Generator | None = None
) -> Tensor:
    """One logit-normal time per picture (Esser et al. 2024, arXiv:2403.03206, section 3.1), shifted by size.

    Raises:
        ValueError: there is no such version of the shift.
    """
    if version not in SHIFTS:
        raise ValueError(f"version: {version!r} is unknown; allowed: {', '.join(SHIFTS)}")
    plain = torch.randn(len(latent_pixels), generator=generator).sigmoid()
    return shifted(plain, torch.tensor([SHIFTS[version](pixels) for pixels in latent_pixels]))


def noised(data: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """x_t = t * data + (1 - t) * noise."""
    time = time.reshape(time.shape + (1,) * (data.ndim - time.ndim))
    return time * data + (1 - time) * noise


def velocity(data: Tensor, noise: Tensor) -> Tensor:
    """What the model predicts at every time: d x_t / dt."""
    return data - noise


def squared_error(predicted: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """The loss of pictures of any sizes: squared errors summed, over the number of latent values of all."""
    pairs = list(zip(predicted, wanted, strict=True))
    total = torch.stack([(ours - theirs).float().square().sum() for ours, theirs in pairs]).sum()
    return total / sum(theirs.numel() for _, theirs in pairs)
