"""Optimisers, learning-rate schedule and the moving average of weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from omnigen2.memory.device import has_bfloat16
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
            (Muon if has_bfloat16() else Float32Muon)(
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


class Float32Muon(Muon):
    """`Muon` with the orthogonalisation in float32; the library's is in bfloat16 on any hardware."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the weights by the orthogonalised momentum of their gradients (Jordan et al. 2024)."""
        loss = closure and torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                momentum = state.setdefault("momentum_buffer", torch.zeros_like(weight))
                momentum.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                rate = group["lr"] * 0.2 * max(weight.shape) ** 0.5  # as `match_rms_adamw` has it
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(_orthogonal(update, group["ns_coefficients"], group["ns_steps"]), alpha=-rate)
        return loss


def _orthogonal(update: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """(rows, columns) with singular values near 1, by Newton-Schulz iteration (Jordan et al. 2024)."""
    wide = update.T if update.shape[0] > update.shape[1] else update
    wide = wide / wide.norm().clamp(min=1e-7)
    a, b, c = coefficients
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if update.shape[0] > update.shape[1] else wide


def _in_block(name: str, weight: Tensor) -> bool:
    """Whether this is a matrix of a repeated block; their names have a number: `layers.3.attn.to_q`."""
    return weight.ndim == 2 and any(part.isdigit() for part in name.split(".")[:-2])


def rate_at(step: int, schedule: Schedule) -> float:
    """The learning rate at a step as a share of the peak: linear warm-up, constant, linear decay to 0."""
    rising = (step + 1) / schedule.warmup if schedule.warmup else 1.0
    falling = (schedule.steps - step) / max(1.0, schedule.decay * schedule.steps)
    return min(1.0, rising, falling)


class MovingAverage:
    """An exponential moving average of a module's trainable weights.

    The decay at a step is the smaller of `most` and (1 + step) / (20 + step).
    """

    def __init__(self, module: nn.Module, most: float):
        self.most = most
        self.weights = {
            name: weight.detach().clone()
            for name, weight in module.named_parameters()
            if weight.requires_grad
        }

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Update the average with the module's weights after that step."""
        share = 1 - min(self.most, (1 + step) / (20 + step))
        own, now = [], []
        for name, weight in module.named_parameters():
            if name in self.weights:
                own.append(self.weights[name])
                now.append(weight.detach())
        torch._foreach_lerp_(own, now, share)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Set the module's weights to the average."""
        for name, weight in module.named_parameters():
            if name in self.weights:
                weight.copy_(self.weights[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by name."""
        return self.weights

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a saved average."""
        for name, weight in state.items():
            self.weights[name].copy_(weight)
