"""Preflight of a model: on which device and in which precision it would run, and whether it fits.

Loads nothing. `omnigen2-mcp doctor` prints it.
"""

import platform
from dataclasses import dataclass

import torch

from omnigen2.checkpoints.fit import choose_memory
from omnigen2.checkpoints.locate import Checkpoint
from omnigen2.memory.choice import MemoryChoice
from omnigen2.memory.device import pick_device, pick_dtype
from omnigen2.memory.placement import Placement


@dataclass(frozen=True)
class Preflight:
    """Where and how a checkpoint would run; `reason` is that of the device."""

    device: str
    device_name: str
    dtype: str
    reason: str
    memory: MemoryChoice
    torch_version: str


def preflight(checkpoint: Checkpoint, placement: Placement) -> Preflight:
    """How a checkpoint would run.

    Raises:
        ValueError: `device`, `dtype` or `memory` is unknown or not available, or a file is damaged.
    """
    place = pick_device(placement.device)
    kind = pick_dtype(placement.dtype, place)
    on_gpu = place.type == "cuda"
    return Preflight(
        device=str(place),
        device_name=torch.cuda.get_device_name(place) if on_gpu else _processor(),
        dtype=str(kind).removeprefix("torch."),
        reason=_reason(placement.device, on_gpu),
        memory=choose_memory(checkpoint, kind, place, placement.memory, placement.quantize),
        torch_version=torch.__version__,
    )


def _processor() -> str:
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def _reason(asked: str, on_gpu: bool) -> str:
    if asked != "auto":
        return f"the settings ask for {asked}"
    if on_gpu:
        return "torch sees a GPU"
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return f"torch is built for CUDA {torch.version.cuda} and sees no GPU"
