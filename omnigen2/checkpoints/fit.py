"""The memory a checkpoint needs in each mode, the memory its device has, and eviction of others to fit it."""

import gc
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

import psutil
import torch

from omnigen2.checkpoints.headers import TensorInfo, read_headers
from omnigen2.checkpoints.locate import PARTS, Checkpoint
from omnigen2.memory.choice import BY_HOST, MODES, MemoryChoice, Mode, Need
from omnigen2.memory.device import pick_device, pick_dtype
from omnigen2.memory.footprint import Footprint, token_bytes
from omnigen2.memory.placement import UNQUANTIZED, Kind, Placement, Quantization
from omnigen2.memory.quantize import is_quantized, multiplies_fp8, quantized_bytes
from omnigen2.task import OutOfMemory

SLOTS = 2
"""Blocks that are on the device at once while they are streamed."""

_BLOCK = re.compile(r".*?(?:layers|blocks|_refiner)\.\d+\.")


def needs(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, quantize: Quantization = UNQUANTIZED
) -> dict[Mode, Need]:
    """What a checkpoint takes in each mode: its weights in `dtype`, and what it needs to work.

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
        in_fp8 = quantize.transformer == "fp8" and multiplies_fp8(device)
        each = token_bytes(footprint.hidden, footprint.inner, dtype.itemsize, in_fp8=in_fp8)
        step = each * footprint.request_tokens(limits)
        decode = footprint.decode_bytes(limits.max_pixels, dtype.itemsize)
    if device.type == "cpu":  # there only quantised weights rest in memory, the others in their files
        own = [_quantized_bytes(headers[part], kind) for part, kind in kinds.items()]
        host: dict[Mode, int] = {"resident": 0, "offload": max(own), "stream": sum(own)}
    else:
        resting = [
            _sizes(header, resting_dtype(checkpoint, part, dtype), kinds.get(part, "none")).total()
            for part, header in headers.items()
        ]
        host = {"resident": 0, "offload": sum(resting), "stream": sum(resting)}
    return {mode: Need(_most(sizes, mode, step, decode), host[mode]) for mode in MODES}


def needed_bytes(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    memory: Mode = "resident",
    quantize: Quantization = UNQUANTIZED,
) -> int:
    """Bytes that a checkpoint takes on its device in a mode, as `needs` has them."""
    return needs(checkpoint, dtype, torch.device("cpu"), quantize)[memory].device_bytes


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
        block, quantized = _quantized(name, tensor, kind)
        counted[block] += tensor.values * dtype.itemsize if quantized is None else quantized
    return counted


def _quantized(name: str, tensor: TensorInfo, kind: Kind) -> tuple[str, int | None]:
    """The prefix of a tensor's block, and its bytes if it is quantised."""
    block = found[0] if (found := _BLOCK.match(name)) else ""
    if block and kind != "none" and is_quantized(name.removeprefix(block), tensor.shape):
        return block, quantized_bytes(tensor.shape[0], tensor.shape[1], kind)
    return block, None


def _quantized_bytes(header: Mapping[str, TensorInfo], kind: Kind) -> int:
    """Bytes of the tensors that are quantised."""
    return sum(_quantized(name, tensor, kind)[1] or 0 for name, tensor in header.items())


def resting_dtype(checkpoint: Checkpoint, part: str, dtype: torch.dtype) -> torch.dtype:
    """The precision in which a part rests that is not resident: the stored one, if it is narrower."""
    stored = Counter[str]()
    for tensor in read_headers(checkpoint.folder / part).values():
        stored[tensor.dtype] += tensor.values
    names = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    own = names.get(stored.most_common(1)[0][0], dtype) if stored else dtype
    return own if own.itemsize < dtype.itemsize else dtype


def free_bytes(device: torch.device) -> int:
    """Bytes that can be taken on a device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def held_bytes(device: torch.device) -> int:
    """Bytes of a device that this process has taken: more does not become free, whatever it unloads."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return psutil.Process().memory_info().rss


def choose_memory(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    memory: str,
    quantize: Quantization = UNQUANTIZED,
) -> MemoryChoice:
    """The mode that `memory` names or, if it is `auto`, the quickest that fits what is free now, or `stream`.

    Raises:
        ValueError: `memory` is unknown, or a file is damaged.
    """
    modes = _modes(memory)
    needed = needs(checkpoint, dtype, device, quantize)
    free = Need(free_bytes(device), free_bytes(torch.device("cpu")))
    fitting: list[Mode] = [mode for mode in modes if _fits(needed[mode], free, device, quantize)]
    mode = fitting[0] if fitting else modes[-1]
    against = _against(needed[mode], free, device)
    if memory != "auto":
        reason = BY_HOST
    elif mode == modes[0]:
        reason = f"the quickest mode fits: it {against}"
    else:
        quicker = modes[modes.index(mode) - 1]
        words = "the quickest that fits" if fitting else "no mode fits"
        reason = f"{words}: it {against}; {quicker} {_against(needed[quicker], None, device)}"
    return MemoryChoice(mode, reason, bool(fitting), needed)


def make_room(checkpoint: Checkpoint, placement: Placement, evict: Callable[[], bool]) -> MemoryChoice:
    """The mode to load a checkpoint in; other models are unloaded until it is the quickest there is.

    `evict` unloads another model, and returns whether it found one.

    Raises:
        OutOfMemory: it does not fit even alone.
        ValueError: `device`, `dtype` or `memory` is unknown, or a file is damaged.
    """
    place = pick_device(placement.device)
    kind = pick_dtype(placement.dtype, place)
    quickest = _modes(placement.memory)[0]

    def choose() -> MemoryChoice:
        return choose_memory(checkpoint, kind, place, placement.memory, placement.quantize)

    choice = choose()
    while not (choice.fits and choice.mode == quickest) and evict():
        gc.collect()
        if place.type == "cuda":
            torch.cuda.empty_cache()
        choice = choose()
    if not choice.fits:
        need, free = choice.needs[choice.mode], Need(free_bytes(place), free_bytes(torch.device("cpu")))
        most = replace(free, device_bytes=free.device_bytes + held_bytes(place))
        raise OutOfMemory(
            f"the model in {checkpoint.folder} {_against(need, free, place)} "
            f"(memory: {choice.mode}); "
            "free memory, quantise it (quantize: int8 or nf4), choose another device, or use a smaller model "
            "such as nano",
            final=not _fits(need, most, place, placement.quantize),
        )
    return choice


def _fits(need: Need, free: Need, device: torch.device, quantize: Quantization) -> bool:
    if device.type == "cpu":
        return need.device_bytes + need.host_bytes <= free.device_bytes
    mapped = not quantize  # then what the host has no room for stays in its files
    return need.device_bytes <= free.device_bytes and (mapped or need.host_bytes <= free.host_bytes)


def _against(need: Need, free: Need | None, device: torch.device) -> str:
    """What a mode needs and, if it is given, how much of that is free, in words."""
    places = [(device.type, need.device_bytes, free and free.device_bytes)]
    if device.type == "cpu":
        places = [("cpu", need.device_bytes + need.host_bytes, free and free.device_bytes)]
    elif need.host_bytes:
        places.append(("the host", need.host_bytes, free and free.host_bytes))
    parts = [
        f"{_gb(size)} on {place}" + ("" if there is None else f", where {_gb(there)} are free")
        for place, size, there in places
    ]
    return f"needs {', and '.join(parts)}"


def _modes(memory: str) -> list[Mode]:
    """The modes that are allowed, the quickest first."""
    found: list[Mode] = [mode for mode in MODES if memory in ("auto", str(mode))]
    if not found:
        raise ValueError(f"memory: {memory!r} is unknown; allowed: auto, {', '.join(MODES)}")
    return found


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
