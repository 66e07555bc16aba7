"""The time grid and the samplers, as tables of coefficients made before the first step.

Flow time t runs from 0 (noise) to 1 (data); x_t = t * data + (1 - t) * noise, and the model predicts the
velocity v = data - noise. Every sampler here is one linear update

    x <- x_coef * x + v_coef * v + history_coef * d,  d <- x + (1 - t) * v

where d is the data predicted at this step. The loop that applies it knows no sampler by name.

The faster speeds do not compute the velocity at every step: in between it is extrapolated linearly in time
from the last two that were computed, v + ahead * (v - v_before). Which steps are computed is decided here
from the request alone: what a picture costs is known beforehand, and company changes nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from omnigen2.params import Scheduler, Speed


@dataclass(frozen=True)
class Step:
    """One update at flow time `time`; see the module's formulas. `index` counts from 0 to `total` - 1.

    `ahead` is None where the velocity is computed.
    """

    index: int
    total: int
    time: float
    x_coef: float
    v_coef: float
    history_coef: float
    ahead: float | None = None


@dataclass(frozen=True)
class Pace:
    """Which steps are computed: a share of them at the start, then every `period`-th, and the last one."""

    start: float
    period: int


PACES: dict[Speed, Pace] = {"exact": Pace(1.0, 1), "balanced": Pace(0.14, 2), "fast": Pace(0.14, 4)}
FIRST = 4
"""Steps at the start that are computed at every speed."""
SLOPE = 2
"""Steps that are computed where guidance starts or ends: the velocity jumps there, and a slope needs two."""


def computed_steps(speed: Speed, guidance: Sequence[object]) -> list[bool]:
    """Whether each step is computed; `guidance` has a value for each, which is equal where the step is."""
    pace, total = PACES[speed], len(guidance)
    until = max(FIRST, round(pace.start * total))
    computed: list[bool] = []
    skipped = 0
    for index, own in enumerate(guidance):
        if index and own != guidance[index - 1]:
            until = max(until, index + SLOPE)
        skips = index >= until and skipped + 1 < pace.period and index < total - 1
        computed.append(not skips)
        skipped = skipped + 1 if skips else 0
    return computed


def time_grid(steps: int, latent_pixels: int) -> list[float]:
    """`steps` + 1 flow times from 0 to 1, denser near the noise the larger the picture is.

    t = u / (m - m u + u) with m = sqrt(latent_pixels) / 40: the reference's token-dependent shift, where
    `latent_pixels` is latent height x latent width. Computed in float32, as there.
    """
    u = np.linspace(0, 1, steps + 1, dtype=np.float32)[:-1]
    m = np.float32(math.sqrt(latent_pixels) / 40)
    return [*(u / (m - m * u + u)).tolist(), 1.0]


def plan(scheduler: Scheduler, computed: Sequence[bool], latent_pixels: int) -> list[Step]:
    """The updates of a whole run, of which the first two are computed, if there are as many.

    Raises:
        ValueError: `scheduler` is unknown.
    """
    if scheduler not in SAMPLERS:
        raise ValueError(f"scheduler: {scheduler!r} is unknown; allowed: {', '.join(SAMPLERS)}")
    steps = len(computed)
    grid = time_grid(steps, latent_pixels)
    return [
        Step(
            k,
            steps,
            grid[k],
            *SAMPLERS[scheduler](grid, k),
            None if computed[k] else _ahead(grid, computed, k),
        )
        for k in range(steps)
    ]


def _ahead(grid: list[float], computed: Sequence[bool], k: int) -> float:
    """How far step `k` lies after the last computed one, in distances between that and the one before."""
    *_, before, last = [time for time, own in zip(grid[:k], computed, strict=False) if own]
    return (grid[k] - last) / (last - before)


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
