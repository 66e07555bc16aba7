"""Denoising of many pictures at once, each at its own step, size, guidance and sampler.

A `Denoiser` holds the pictures in flight, packed as tokens. One `step` runs every branch of every picture,
combines the branches and applies each picture's own update. Pictures join and leave between steps; only then
is anything packed anew.

On a CPU each picture has a forward of its own, and so comes out bit for bit as it does alone: products of
matrices round differently with the number of rows. On a GPU, where small pictures alone would leave it idle,
all pictures share one forward, and company may change a few pixels by one level.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from omnigen2.attention import Segments
from omnigen2.device import isolated
from omnigen2.guidance import Branch, Guidance
from omnigen2.lru_cache import LruCache
from omnigen2.packing import Batch, Condition
from omnigen2.positions import Grid
from omnigen2.schedule import Step
from omnigen2.transformer import OmniGen2Transformer2DModel

LAYOUTS = 4
"""Layouts kept for each forward of a step: where guidance starts, ends or is reused, they take turns."""


@dataclass(eq=False)
class Sample:
    """One picture being made.

    `tokens` (N, p * p * C) float32 are its patchified latents, noise at first and current after every step;
    `estimate`, of the same shape, is the data predicted at the last step; `guidance_delta` is what guidance
    added to the velocity at the last guided step. `guidance` and `plan` have one entry per step.
    """

    tokens: Tensor
    conditions: dict[Branch, Condition]
    guidance: list[Guidance]
    plan: list[Step]
    index: int = 0
    estimate: Tensor = field(init=False)
    guidance_delta: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.estimate = torch.zeros_like(self.tokens)
        self.guidance_delta = torch.zeros_like(self.tokens)

    @property
    def grid(self) -> Grid:
        """Rows and columns of the picture, in tokens."""
        return self.conditions[Branch.FULL].grid

    @property
    def done(self) -> bool:
        """Whether every step was made."""
        return self.index == len(self.plan)


@dataclass(frozen=True, eq=False)
class _Layout:
    """How branches map to pictures: N packed picture tokens, M packed tokens of all branches, n pictures.

    `pictures`, and `sample` (branches,) on the device: the picture of each branch;
    `rows` (N, 3) and `weights` (N, 3, 1): where a picture token's branches are in M, and their weights;
    `reuse` (N, 1): whether the guidance of an earlier step is used; `owner` (N,): the picture of each token.
    """

    batch: Batch
    pictures: list[int]
    sample: Tensor
    rows: Tensor
    weights: Tensor
    reuse: Tensor
    owner: Tensor


class Denoiser:
    """The pictures in flight and the transformer that moves them."""

    def __init__(self, transformer: OmniGen2Transformer2DModel, together: bool | None = None):
        """`together`: whether one forward serves all pictures; None is the better choice for the device."""
        self.transformer = transformer
        self.samples: list[Sample] = []
        self._together = transformer.device.type != "cpu" if together is None else together
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
        self._layouts = LruCache(LAYOUTS if self._together else LAYOUTS * len(self.samples))

    @isolated
    def step(self) -> list[Sample]:
        """Move every picture by one step of its plan; returns and lets go those that are finished.

        If it raises, each picture has either been moved or not been touched.
        """
        moving = [sample for sample in self.samples if not sample.done]
        for samples in [moving] if self._together else [[sample] for sample in moving]:
            self._move(samples)
        finished = [sample for sample in self.samples if sample.done]
        if finished:
            self.remove(finished)
        return finished

    def _move(self, samples: list[Sample]) -> None:
        """Move pictures by one step, in a single forward."""
        layout = self._layout(samples)
        steps = [sample.plan[sample.index] for sample in samples]
        updates = [(s.time, s.x_coef, s.v_coef, s.history_coef) for s in steps]
        table = torch.tensor(updates, dtype=torch.float32, device="cpu").to(layout.owner.device)
        tokens = torch.cat([sample.tokens for sample in samples])
        before = torch.cat([sample.estimate for sample in samples])

        branches = torch.cat([samples[n].tokens for n in layout.pictures]).to(layout.batch.dtype)
        velocity = self.transformer(branches, table[layout.sample, 0], layout.batch).float()
        plain = velocity[layout.rows[:, Branch.FULL]]
        velocity = (velocity[layout.rows] * layout.weights).sum(dim=1)
        stored = torch.cat([sample.guidance_delta for sample in samples])
        delta = torch.where(layout.reuse, stored, velocity - plain)
        velocity = torch.where(layout.reuse, plain + delta, velocity)
        time, x_coef, v_coef, history_coef = table[layout.owner].unsqueeze(-1).unbind(dim=1)
        estimate = tokens + (1 - time) * velocity
        tokens = x_coef * tokens + v_coef * velocity + history_coef * before

        lengths = [len(sample.tokens) for sample in samples]
        parts = zip(tokens.split(lengths), estimate.split(lengths), delta.split(lengths), strict=True)
        for sample, (own_tokens, own_estimate, own_delta) in zip(samples, parts, strict=True):
            sample.tokens, sample.estimate, sample.guidance_delta = own_tokens, own_estimate, own_delta
            sample.index += 1

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
            batch=self.transformer.pack(conditions),
            pictures=pictures,
            sample=torch.tensor(pictures, device=device),
            rows=torch.tensor(starts, device=device)[owner] + own[:, None],
            weights=table[owner, :, None],
            reuse=torch.tensor([guidance.reuse for guidance in active], device=device)[owner, None],
            owner=owner,
        )
