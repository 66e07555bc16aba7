"""Denoising of many pictures at once, each at its own step, size, guidance and sampler.

A `Denoiser` holds the pictures in flight, packed as tokens. One `step` runs every branch of every picture,
combines the branches and applies each picture's own update, and those of the following steps that compute
nothing. Pictures join and leave between steps; only then is anything packed anew.

On a CPU each picture has a forward of its own, and so comes out bit for bit as it does alone: products of
matrices round differently with the number of rows. On a GPU, where small pictures alone would leave it idle,
all pictures share one forward, and company may change a few pixels by one level.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch
from torch import Tensor

from omnigen2.guidance import Branch, Guidance
from omnigen2.lru_cache import LruCache
from omnigen2.memory.device import isolated
from omnigen2.network.packing import Batch, Condition, Segments
from omnigen2.network.positions import Grid
from omnigen2.network.transformer import OmniGen2Transformer2DModel
from omnigen2.schedule import Step

LAYOUTS = 4
"""Layouts kept for each forward of a step: where guidance starts or ends, they change."""


@dataclass(eq=False)
class Sample:
    """One picture being made.

    `tokens` (N, p * p * C) float32 are its patchified latents, noise at first and current after every step;
    of the same shape are `estimate`, the data predicted at the last step, and `velocity`, the last one that
    was computed. `guidance` and `plan` have one entry per step.
    """

    tokens: Tensor
    conditions: dict[Branch, Condition]
    guidance: list[Guidance]
    plan: list[Step]
    index: int = 0
    estimate: Tensor = field(init=False)
    velocity: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.estimate = self.velocity = torch.zeros_like(self.tokens)

    @property
    def grid(self) -> Grid:
        """Rows and columns of the picture, in tokens."""
        return self.conditions[Branch.FULL].grid

    @property
    def done(self) -> bool:
        """Whether every step was made."""
        return self.index == len(self.plan)

    def move(self, velocity: Tensor) -> None:
        """Make the next step with the velocity computed at it, and those after it that compute none."""
        first, *later = self.plan[self.index :]
        steps = [first, *takewhile(lambda step: step.ahead is not None, later)]
        change = velocity - self.velocity
        tokens, estimate = self.tokens, self.estimate
        for step in steps:
            own = velocity if step.ahead is None else velocity + step.ahead * change
            tokens, estimate = (
                step.x_coef * tokens + step.v_coef * own + step.history_coef * estimate,
                tokens + (1 - step.time) * own,
            )
        self.tokens, self.estimate, self.velocity = tokens, estimate, velocity
        self.index += len(steps)


@dataclass(frozen=True, eq=False)
class _Layout:
    """How branches map to pictures: N packed picture tokens, M packed tokens of all branches, n pictures.

    `rows` (N, 3) and `weights` (N, 3, 1): where a picture token's branches are in M, and their weights.
    """

    batch: Batch
    rows: Tensor
    weights: Tensor


class Denoiser:
    """The pictures in flight and the transformer that moves them."""

    def __init__(self, transformer: OmniGen2Transformer2DModel, together: bool | None = None):
        """`together`: whether one forward serves all pictures; None is the better choice for the device."""
        self.transformer = transformer
        self.samples: list[Sample] = []
        self.together = transformer.device.type != "cpu" if together is None else together
        """Whether one forward serves all pictures."""
        self._layouts: LruCache[_Layout] = LruCache(LAYOUTS)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.transformer.device

    def add(self, samples: Iterable[Sample]) -> None:
        """Let pictures join at the next step."""
        self.samples = [*self.samples, *samples]
        self.forget()

    def remove(self, samples: Iterable[Sample]) -> None:
        """Let pictures leave, finished or not."""
        leaving = set(map(id, samples))
        self.samples = [sample for sample in self.samples if id(sample) not in leaving]
        self.forget()

    def forget(self) -> None:
        """Drop the packed layouts, to free memory."""
        self._layouts = LruCache(LAYOUTS if self.together else LAYOUTS * len(self.samples))

    @isolated
    def step(self, chosen: Sequence[Sample] | None = None) -> list[Sample]:
        """Move some or all pictures to their next step that computes something; returns and lets go
        those that are finished.

        If it raises, each picture has either been moved or not been touched.
        """
        moving = [sample for sample in (self.samples if chosen is None else chosen) if not sample.done]
        for samples in [moving] if self.together else [[sample] for sample in moving]:
            for sample, velocity in zip(samples, self._velocities(samples), strict=True):
                sample.move(velocity)
        finished = [sample for sample in self.samples if sample.done]
        if finished:
            self.remove(finished)
        return finished

    def _velocities(self, samples: list[Sample]) -> Sequence[Tensor]:
        """The guided velocity of each picture, as its tokens."""
        if not samples:
            return ()
        layout = self._layout(samples)
        times = [sample.plan[sample.index].time for sample in samples]
        timestep = torch.tensor(times, dtype=torch.float32, device="cpu").to(layout.rows.device)
        tokens = torch.cat([sample.tokens for sample in samples]).to(layout.batch.dtype)
        velocity = self.transformer(tokens, timestep, layout.batch).float()
        guided = (velocity[layout.rows] * layout.weights).sum(dim=1)
        return guided.split([len(sample.tokens) for sample in samples])

    def _layout(self, samples: list[Sample]) -> _Layout:
        """The layout of this step; it changes with the company and where guidance starts or ends."""
        active = [sample.guidance[sample.index] for sample in samples]
        key = (*map(id, samples), *active)
        return self._layouts.get(key, lambda: self._make_layout(samples, active))

    def _make_layout(self, samples: list[Sample], active: list[Guidance]) -> _Layout:
        device = samples[0].tokens.device
        lengths = tuple(len(sample.tokens) for sample in samples)
        segments = Segments(lengths, device)
        starts: list[list[int]] = []  # where the tokens of each branch start
        scales: list[list[float]] = []
        pictures: list[int] = []
        conditions: list[Condition] = []
        start = 0
        for n, (sample, guidance) in enumerate(zip(samples, active, strict=True)):
            # An absent branch has weight 0 and points at the picture's own full branch, never at another's.
            full = start + lengths[n] * [branch for branch, _ in guidance.weights].index(Branch.FULL)
            starts.append([full] * len(Branch))
            scales.append([0.0] * len(Branch))
            for branch, weight in guidance.weights:
                starts[n][branch], scales[n][branch] = start, weight
                start += lengths[n]
                pictures.append(n)
                conditions.append(sample.conditions[branch])
        own = segments.rows([0] * len(samples))
        table = torch.tensor(scales, dtype=torch.float32, device="cpu").to(device)
        owner = segments.owner
        return _Layout(
            batch=self.transformer.pack(conditions, pictures),
            rows=torch.tensor(starts, device=device)[owner] + own[:, None],
            weights=table[owner, :, None],
        )
