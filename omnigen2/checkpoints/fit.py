"""The memory a checkpoint needs, the memory its device has, and eviction of other models to fit it."""

import gc
from collections.abc import Callable

import psutil
import torch

from omnigen2.checkpoints.headers import read_headers
from omnigen2.checkpoints.locate import PARTS, Checkpoint
from omnigen2.device import pick_device, pick_dtype
from omnigen2.task import OutOfMemory

WORKING_SHARE = 0.15
"""Assumed memory for activations, as a share of that for the weights; a lower bound."""


def needed_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """Bytes of a checkpoint's weights once loaded in `dtype`, and a floor of working memory.

    Raises:
        ValueError: a file is damaged.
    """
    headers = (read_headers(checkpoint.folder / part) for part in PARTS)
    values = sum(tensor.values for part in headers for tensor in part.values())
    return int(values * dtype.itemsize * (1 + WORKING_SHARE))


def free_bytes(device: torch.device) -> int:
    """Bytes that can be taken on a device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def make_room(checkpoint: Checkpoint, device: str, dtype: str, evict: Callable[[], bool]) -> None:
    """Unload other models with `evict`, which returns whether it found one, until the checkpoint fits.

    Raises:
        OutOfMemory: it does not fit even alone.
        ValueError: `device` or `dtype` is unknown, or a file is damaged.
    """
    place = pick_device(device)
    needed = needed_bytes(checkpoint, pick_dtype(dtype, place))
    while (free := free_bytes(place)) < needed:
        if not evict():
            raise OutOfMemory(
                f"the model in {checkpoint.folder} needs {_gb(needed)} on {place.type}, "
                f"where {_gb(free)} are free; "
                "free memory, choose another device, or use a smaller model such as nano"
            )
        gc.collect()
        if place.type == "cuda":
            torch.cuda.empty_cache()


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
