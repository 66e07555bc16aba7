"""The time grid and the samplers, as tables of coefficients made before the first step.

Flow time t runs from 0 (noise) to 1 (data); x_t = t * data + (1 - t) * noise, and the model predicts the
velocity v = data - noise. Every sampler here is one linear update

    x <- x_coef * x + v_coef * v + history_coef * d,  d <- x + (1 - t) * v

where d is the data predicted at this step. The loop that applies it knows no sampler by name, and pictures
with different samplers share one update.
"""

import math
from dataclasses import dataclass

import numpy as np

from omnigen2.params import Scheduler


@dataclass(frozen=True)
class Step:
    """One update at flow time `time`; see the module's formula. `index` counts from 0 to `total` - 1."""

    index: int
    total: int
    time: float
    x_coef: float
    v_coef: float
    history_coef: float


def time_grid(steps: int, latent_pixels: int) -> list[float]:
    """`steps` + 1 flow times from 0 to 1, denser near the noise the larger the picture is.

    t = u / (m - m u + u) with m = sqrt(latent_pixels) / 40: the reference's token-dependent shift, where
    `latent_pixels` is latent height x latent width. Computed in float32, as there.
    """
    u = np.linspace(0, 1, steps + 1, dtype=np.float32)[:-1]
    m = np.float32(math.sqrt(latent_pixels) / 40)
    return [*(u / (m - m * u + u)).tolist(), 1.0]


def plan(scheduler: Scheduler, steps: int, latent_pixels: int) -> list[Step]:
    """The updates of a whole run.

    Raises:
        ValueError: `scheduler` is unknown.
    """
    if scheduler not in SAMPLERS:
        raise ValueError(f"scheduler: {scheduler!r} is unknown; allowed: {', '.join(SAMPLERS)}")
    grid = time_grid(steps, latent_pixels)
    return [Step(k, steps, grid[k], *SAMPLERS[scheduler](grid, k)) for k in range(steps)]


def euler(grid: list[float], k: int) -> tuple[float, float, float]:
    """Straight along the velocity."""
    return 1.0, grid[k + 1] - grid[k], 0.0


def dpmsolver_multistep(grid: list[float], k: int) -> tuple[float, float, float]:
    """DPM-Solver++ 2M, midpoint form (Lu et al. 2022, arXiv:2211.01095, algorithm 2) for rectified flow.

    With alpha = t and sigma = 1 - t. The first and the last step are of first order, as is the second one:
    the step before it starts at infinite noise.
    """
    alpha, sigma = grid[k], 1 - grid[k]
    next_alpha, next_sigma = grid[k + 1], 1 - grid[k + 1]
    x_coef = next_sigma / sigma
    data = next_alpha - alpha * next_sigma / sigma  # next_alpha * (1 - exp(-h)), written without the infinity
    history_coef = 0.0
    if 1 < k < len(grid) - 2:
        half_step = _log_snr(grid[k + 1]) - _log_snr(grid[k])
        history_coef = -0.5 * data * half_step / (_log_snr(grid[k]) - _log_snr(grid[k - 1]))
    # data * d_now + history_coef * (d_before - d_now), and d_now = x + sigma * v
    now = data - history_coef
    return x_coef + now, now * sigma, history_coef


def _log_snr(time: float) -> float:
    return math.log(time) - math.log(1 - time)


SAMPLERS = {"euler": euler, "dpmsolver++": dpmsolver_multistep}
