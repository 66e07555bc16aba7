"""Where a model runs and in which precision."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch


class Placed(Protocol):
    """What computes on one device."""

    @property
    def device(self) -> torch.device: ...


S = TypeVar("S", bound=Placed)
P = ParamSpec("P")
R = TypeVar("R")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
"""Parts of the messages by which the CPU's allocator, the CUDA driver and its libraries say so."""


def pick_device(device: str) -> torch.device:
    """`auto` is the first GPU if there is one. Raises ValueError if the device cannot be used."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device: {device!r} is unknown; allowed: auto, cpu, cuda, cuda:N") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device: {device!r} was asked for, but torch sees no GPU; use auto or cpu")
    return place


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on a GPU and float32 on a CPU. Raises ValueError if it is unknown."""
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise ValueError(f"dtype: {dtype!r} is unknown; allowed: auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def has_bfloat16() -> bool:
    """Whether this machine has instructions for bfloat16.

    A CPU without them computes in it fifty times slower than in float32.
    """
    return torch.accelerator.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the device's or the host's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def isolated(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Run a method without gradients and autocast, and with the CPU as torch's default device.

    Libraries make tensors on the default device, and under autocast all is computed in another dtype. The
    default dtype is left alone: it is the process's, and another thread may change it at any time; whoever
    makes a tensor says its dtype.
    """

    @wraps(method)
    def apart(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        changed = torch.get_default_device().type != "cpu"
        with (
            torch.inference_mode(),
            torch.autocast(self.device.type, enabled=False),
            torch.device("cpu") if changed else nullcontext(),
        ):
            return method(self, *args, **kwargs)

    return apart
