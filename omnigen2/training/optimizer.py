"""Optimisers, learning-rate schedule and the moving average of weights."""

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from omnigen2.training.config import Schedule

BETAS = (0.9, 0.98)


def make_optimizers(module: nn.Module, schedule: Schedule) -> list[Optimizer]:
    """Muon for matrices inside blocks, AdamW for the rest: embeddings, heads, norms, convolutions."""
    inside, outside = [], []
    for name, weight in module.named_parameters():
        if weight.requires_grad:
            (inside if schedule.muon and _in_block(name, weight) else outside).append(weight)
    made: list[Optimizer] = []
    if inside:
        made.append(
            Muon(
                inside,
                lr=schedule.rate,
                weight_decay=schedule.weight_decay,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if outside:
        made.append(
            AdamW(outside, lr=schedule.rate, betas=BETAS, weight_decay=schedule.weight_decay, fused=True)
        )
    return made


def _in_block(name: str, weight: Tensor) -> bool:
    """Matrices of repeated blocks, whose number stands in the name of the module: `layers.3.attn.to_q`."""
    return weight.ndim == 2 and any(part.isdigit() for part in name.split(".")[:-2])


def rate_at(step: int, schedule: Schedule) -> float:
    """The share of the peak rate at a step: rises linearly, stays, falls linearly to 0."""
    rising = (step + 1) / schedule.warmup if schedule.warmup else 1.0
    falling = (schedule.steps - step) / max(1.0, schedule.decay * schedule.steps)
    return min(1.0, rising, falling)


class MovingAverage:
    """An exponential average of a module's weights that starts short and grows long."""

    def __init__(self, module: nn.Module, most: float):
        self.most = most
        self.weights = {
            name: weight.detach().clone()
            for name, weight in module.named_parameters()
            if weight.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the weights that the module has after that step."""
        share = 1 - min(self.most, (1 + step) / (20 + step))
        own, now = [], []
        for name, weight in module.named_parameters():
            if name in self.weights:
                own.append(self.weights[name])
                now.append(weight.detach())
        torch._foreach_lerp_(own, now, share)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Give the module the averaged weights."""
        for name, weight in module.named_parameters():
            if name in self.weights:
                weight.copy_(self.weights[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return self.weights

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up an average that was saved."""
        for name, weight in state.items():
            self.weights[name].copy_(weight)
