"""The training loop of any `Task`, with checkpoints from which an interrupted run resumes.

A batch depends on the seed and its number alone. With weights, optimisers and moving average restored, a
resumed run has the same losses as an uninterrupted one.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from omnigen2.memory.device import has_bfloat16
from omnigen2.training.config import Schedule
from omnigen2.training.optimizer import MovingAverage, make_optimizers, rate_at
from omnigen2.training.plot import plot_losses

METRICS = "metrics.jsonl"
LOG_EVERY = 10
PREFETCHED = 24
"""Batches prepared ahead by all workers together."""


class Task(Protocol):
    """What is trained, and on what."""

    name: str

    @property
    def module(self) -> nn.Module:
        """Has the weights to train; called with a batch, it returns losses by name.

        The sum of those with a gradient is minimised; the others are only logged.
        """
        ...

    def batch(self, number: int) -> Any:
        """The batch with that number, on the CPU; a function of the number alone. Called in worker
        processes."""
        ...


class _Numbered(Dataset[Any]):
    """The batches of one rank as a data set for the workers of a `DataLoader`; ranks take turns."""

    def __init__(self, task: Task, first: int, end: int, rank: int, ranks: int):
        self.task, self.first, self.end = task, first, end
        self.rank, self.ranks = rank, ranks

    def __len__(self) -> int:
        return max(0, self.end - self.first)  # the configuration may have fewer steps now than are done

    def __getitem__(self, index: int) -> Any:
        return self.task.batch((self.first + index) * self.ranks + self.rank)


def train(task: Task, schedule: Schedule, folder: Path, precision: str) -> nn.Module:
    """Train a task, or resume an interrupted training; its module with the averaged weights, on the CPU.

    Writes `metrics.jsonl`, `loss.png` and the newest checkpoint to `folder`. `precision` is that of
    Accelerate: `no` or `bf16`.
    """
    accelerator = Accelerator(mixed_precision=precision if has_bfloat16() else "no")
    average = MovingAverage(task.module, schedule.ema)
    optimizers = make_optimizers(task.module, schedule)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    module, *prepared = accelerator.prepare(task.module, *optimizers)
    average.weights = {name: weight.to(accelerator.device) for name, weight in average.weights.items()}
    accelerator.register_for_checkpointing(average)
    step = _resume(accelerator, folder)
    loader = _loader(task, step, schedule, accelerator)
    with _Log(task.name, folder, schedule.steps, step, accelerator.is_main_process) as log:
        while step < schedule.steps:
            for optimizer in prepared:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * rate_at(step, schedule)
            losses = _gradients(accelerator, module, loader, schedule.accumulate)
            norm = accelerator.clip_grad_norm_(module.parameters(), schedule.clip)
            assert norm is not None
            for optimizer in prepared:
                optimizer.step()
                optimizer.zero_grad()
            average.update(accelerator.unwrap_model(module), step)
            step += 1
            log.add(step, losses | {"gradient_norm": norm})
            if step % schedule.save_every == 0 or step == schedule.steps:
                _save(accelerator, folder, step)
    trained = accelerator.unwrap_model(module)
    average.copy_to(trained)
    return trained.cpu().eval()


def _gradients(
    accelerator: Accelerator, module: nn.Module, loader: Iterator[Any], count: int
) -> dict[str, Tensor]:
    """Accumulate the gradients of `count` batches; the mean of each named loss."""
    totals: dict[str, Tensor] = {}
    for _ in range(count):
        with accelerator.autocast():
            losses: Mapping[str, Tensor] = module(_moved(next(loader), accelerator.device))
        loss = torch.stack([value for value in losses.values() if value.requires_grad]).sum()
        accelerator.backward(loss / count)
        for name, value in losses.items():
            totals[name] = totals.get(name, 0) + value.detach().float() / count
    return totals


def _moved(value: Any, device: torch.device) -> Any:
    """The batch with all its tensors on the device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, dict):
        return {key: _moved(own, device) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(own, device) for own in value)
    return value


def _loader(task: Task, step: int, schedule: Schedule, accelerator: Accelerator) -> Iterator[Any]:
    count = schedule.accumulate
    numbered = _Numbered(
        task,
        step * count,
        schedule.steps * count,
        accelerator.process_index,
        accelerator.num_processes,
    )
    workers = max(1, (os.cpu_count() or 1) // (2 * accelerator.num_processes))
    loader = DataLoader(
        numbered,
        batch_size=None,
        num_workers=workers,
        pin_memory=accelerator.device.type == "cuda",
        prefetch_factor=max(2, PREFETCHED // workers),
        worker_init_fn=_lower_priority,
    )
    return iter(loader)


def _lower_priority(worker: int) -> None:
    """Lower a worker's priority, so that it never slows down the training step."""
    os.nice(10)


def _save(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Save the state beside the old one, then replace it: at any moment, one of them is complete."""
    accelerator.wait_for_everyone()
    temporary = folder / "state.new"
    accelerator.save_state(str(temporary), safe_serialization=True)
    if accelerator.is_main_process:
        (temporary / "step").write_text(str(step), encoding="utf-8")
        final = folder / f"state-{step}"
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in folder.glob("state-*"):
            if old != final:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _resume(accelerator: Accelerator, folder: Path) -> int:
    """Restore the newest checkpoint; the number of steps done."""
    folder.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        shutil.rmtree(folder / "state.new", ignore_errors=True)
    states = sorted(folder.glob("state-*"), key=lambda path: int(path.name.partition("-")[2]))
    if not states:
        return 0
    accelerator.load_state(str(states[-1]))
    return int((states[-1] / "step").read_text(encoding="utf-8"))


class _Log:
    """Writes metrics to a file and a progress bar to stderr. A resumed run drops the lines after its step."""

    def __init__(self, name: str, folder: Path, steps: int, step: int, active: bool):
        self.path, self.active, self.step = folder / METRICS, active, step
        self.sums: dict[str, Tensor] = {}  # on the device: reading them would wait for it
        self.count = 0
        console = Console(stderr=True)
        self.bar = Progress(
            TextColumn(name),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[losses]}"),
            console=console,
            disable=not (active and console.is_terminal),
        )
        self.row = self.bar.add_task(name, total=steps, completed=step, losses="")

    def __enter__(self) -> "_Log":
        if self.active:
            lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
            kept = [line for line in lines if json.loads(line)["step"] <= self.step]
            self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.bar.start()
        self.since = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()
        if self.active:
            plot_losses(self.path, self.path.with_name("loss.png"))

    def add(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Add the values of one step; the means of every `LOG_EVERY` steps become a line."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value
        self.count += 1
        if step % LOG_EVERY:
            return
        now = time.perf_counter()
        means = {name: round(float(total) / self.count, 5) for name, total in self.sums.items()}
        means |= {"seconds_per_step": round((now - self.since) / self.count, 4)}
        self.sums.clear()
        self.count, self.since = 0, now
        if self.active:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step} | means) + "\n")
        self.bar.update(self.row, completed=step, losses=" ".join(f"{k} {v}" for k, v in means.items()))
