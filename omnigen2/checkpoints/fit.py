"""How much memory a checkpoint needs, how much its device has, and making room for it."""

import gc
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from safetensors import safe_open

from omnigen2.checkpoints.locate import PARTS
from omnigen2.device import pick_device, pick_dtype
from omnigen2.task import OutOfMemory

WORKING_SHARE = 0.15
"""Memory for activations while a picture is made, as a share of the weights' (a floor for planning)."""


def weight_bytes(folder: Path, dtype: torch.dtype) -> int:
    """Bytes of a checkpoint's weights once loaded in `dtype`, read from the headers of its files."""
    values = 0
    for part in PARTS:
        for file in (folder / part).glob("*.safetensors"):
            with safe_open(file, "pt") as tensors:
                values += sum(_values(tensors.get_slice(name).get_shape()) for name in tensors.keys())
    return values * dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Bytes that can be taken on a device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def make_room(folder: Path, device: str, dtype: str, evict: Callable[[], bool]) -> None:
    """Unload other models by `evict`, which says whether it found one, until the checkpoint fits.

    Raises:
        OutOfMemory: it does not fit even alone.
        ValueError: `device` or `dtype` is unknown.
    """
    place = pick_device(device)
    needed = int(weight_bytes(folder, pick_dtype(dtype, place)) * (1 + WORKING_SHARE))
    while (free := free_bytes(place)) < needed:
        if not evict():
            raise OutOfMemory(
                f"the model in {folder} needs {_gb(needed)} on {place.type}, where {_gb(free)} are free; "
                "free memory, choose another device, or use a smaller model such as nano"
            )
        gc.collect()
        if place.type == "cuda":
            torch.cuda.empty_cache()


def _values(shape: list[int]) -> int:
    return torch.Size(shape).numel()


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
