"""The memory a checkpoint needs in each mode, the memory its device has, and eviction of others to fit it."""

import gc
import re
from collections import Counter
from collections.abc import Callable, Mapping

import psutil
import torch

from omnigen2.checkpoints.headers import TensorInfo, read_headers
from omnigen2.checkpoints.locate import PARTS, Checkpoint
from omnigen2.memory.device import pick_device, pick_dtype
from omnigen2.memory.footprint import Footprint, token_bytes
from omnigen2.memory.placement import UNQUANTIZED, Kind, Placement, Quantization
from omnigen2.memory.quantize import is_quantized, quantized_bytes
from omnigen2.memory.residency import MODES, Mode
from omnigen2.task import OutOfMemory

SLOTS = 2
"""Blocks that are on the device at once while they are streamed."""

_BLOCK = re.compile(r".*?(?:layers|blocks|_refiner)\.\d+\.")


def needed_bytes(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    memory: Mode = "resident",
    quantize: Quantization = UNQUANTIZED,
) -> int:
    """Bytes that a checkpoint takes on the device: its weights in `dtype`, and what it needs to work.

    That is the largest common request (`Footprint.request_tokens`), alone; more at once waits for memory.

    `quantize`: how the weights of blocks are kept.

    Raises:
        ValueError: a file is damaged.
    """
    headers = {part: read_headers(checkpoint.folder / part) for part in PARTS}
    kinds: dict[str, Kind] = {"transformer": quantize.transformer, "mllm": quantize.language}
    sizes = {part: _sizes(header, dtype, kinds.get(part, "none")) for part, header in headers.items()}
    step = decode = 0
    if footprint := Footprint.of(headers["transformer"], headers["vae"]):
        limits = checkpoint.card.limits
        each = token_bytes(footprint.hidden, footprint.inner, dtype.itemsize)
        step = each * footprint.request_tokens(limits)
        decode = footprint.decode_bytes(limits.max_pixels, dtype.itemsize)
    return _most(sizes, memory, step, decode)


def _most(sizes: Mapping[str, Counter[str]], memory: Mode, step: int, decode: int) -> int:
    """The most that is on the device at once: weights (see `_sizes`), and what works with them meanwhile."""
    transformer, language, autoencoder = (sizes[part].total() for part in ("transformer", "mllm", "vae"))
    if memory == "resident":
        return transformer + language + autoencoder + max(step, decode)
    if memory == "offload":  # a part stays until another one comes; the autoencoder comes beside them
        return max(transformer + step, max(transformer, language) + autoencoder + decode)
    blocks = [size for own in sizes.values() for name, size in own.items() if name]
    present = SLOTS * max(blocks, default=0) + sizes["transformer"][""]
    return present + max(step, sizes["mllm"][""], autoencoder + decode)


def _sizes(header: Mapping[str, TensorInfo], dtype: torch.dtype, kind: Kind) -> Counter[str]:
    """Bytes of each block of a part on the device, by the block's prefix; `` is what is in no block."""
    counted: Counter[str] = Counter()
    for name, tensor in header.items():
        block = found[0] if (found := _BLOCK.match(name)) else ""
        if block and kind != "none" and is_quantized(name.removeprefix(block), tensor.shape):
            counted[block] += quantized_bytes(tensor.shape[0], tensor.shape[1], kind)
        else:
            counted[block] += tensor.values * dtype.itemsize
    return counted


def resting_dtype(checkpoint: Checkpoint, part: str, dtype: torch.dtype) -> torch.dtype:
    """The precision in which a part rests that is not resident: the stored one, if it is narrower."""
    stored = Counter[str]()
    for tensor in read_headers(checkpoint.folder / part).values():
        stored[tensor.dtype] += tensor.values
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    own = names.get(stored.most_common(1)[0][0], dtype)
    return own if own.itemsize < dtype.itemsize else dtype


def free_bytes(device: torch.device) -> int:
    """Bytes that can be taken on a device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def pick_memory(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    memory: str,
    free: int,
    quantize: Quantization = UNQUANTIZED,
) -> Mode:
    """The mode that `memory` names or, if it is `auto`, the quickest that fits `free` bytes, or `stream`.

    Raises:
        ValueError: `memory` is unknown, or a file is damaged.
    """
    modes = _modes(memory)
    fitting: list[Mode] = [mode for mode in modes if needed_bytes(checkpoint, dtype, mode, quantize) <= free]
    return fitting[0] if fitting else modes[-1]


def make_room(checkpoint: Checkpoint, placement: Placement, evict: Callable[[], bool]) -> Mode:
    """The mode to load a checkpoint in; other models are unloaded until it is the quickest there is.

    `evict` unloads another model, and returns whether it found one.

    Raises:
        OutOfMemory: it does not fit even alone.
        ValueError: `device`, `dtype` or `memory` is unknown, or a file is damaged.
    """
    place = pick_device(placement.device)
    kind = pick_dtype(placement.dtype, place)
    quickest = _modes(placement.memory)[0]
    while needed_bytes(checkpoint, kind, quickest, placement.quantize) > free_bytes(place) and evict():
        gc.collect()
        if place.type == "cuda":
            torch.cuda.empty_cache()
    free = free_bytes(place)
    mode = pick_memory(checkpoint, kind, placement.memory, free, placement.quantize)
    needed = needed_bytes(checkpoint, kind, mode, placement.quantize)
    if needed > free:
        raise OutOfMemory(
            f"the model in {checkpoint.folder} needs {_gb(needed)} on {place.type} (memory: {mode}), "
            f"where {_gb(free)} are free; "
            "free memory, quantise it (quantize: int8 or nf4), choose another device, or use a smaller model "
            "such as nano"
        )
    return mode


def _modes(memory: str) -> list[Mode]:
    """The modes that are allowed, the quickest first."""
    found: list[Mode] = [mode for mode in MODES if memory in ("auto", str(mode))]
    if not found:
        raise ValueError(f"memory: {memory!r} is unknown; allowed: auto, {', '.join(MODES)}")
    return found


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
