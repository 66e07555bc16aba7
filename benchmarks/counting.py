"""Counts what code does on a GPU, without one: tensors on torch's meta device stand for those of the GPU.

The real code runs, on tensors that have shapes and no values. Seen are the kernels that torch would launch,
what they read and write, and how long each tensor is held. Not seen are what libraries take inside of a
kernel (workspace of cuDNN and cuBLAS) and what torch's allocator loses to rounding.
"""

import contextlib
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

GPU = torch.device("meta")
aten = torch.ops.aten
_ATTENTION = ("attention", "attn", "attend")
"""Parts of the names of kernels that attend."""
_WRITTEN_ONLY = {aten.copy_, aten.zero_, aten.fill_}
"""Kernels that do not read their first argument."""
_GATHERS = {aten.index_select, aten.index, aten.embedding, aten.gather}
"""Kernels that read of their first argument only what they write."""
_LAUNCH_NOTHING = {aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty, aten.lift_fresh}


@dataclass
class Work:
    """What a stretch of code did on the device. A multiplication and an addition are two FLOP."""

    kernels: int = 0
    """Launches; views launch nothing."""
    product_flop: int = 0
    """Of products of matrices, and of convolutions."""
    attention_flop: int = 0
    """Of attention, by the exact lengths of the sequences."""
    product_bytes: int = 0
    """Read and written by products of matrices and by convolutions."""
    attention_bytes: int = 0
    elementwise_bytes: int = 0
    """Read and written by all other kernels."""
    copies: int = 0
    """From the host to the device, and back."""
    copied_bytes: int = 0
    syncs: int = 0
    """Times that the host waits for a value of the device."""
    peak_bytes: int = 0
    """Most memory of the device that was held at once, with what was held before."""
    peak_weights: int = 0
    """What weights had of it: memory that was copied from the host's."""

    def __add__(self, other: "Work") -> "Work":
        """Both, one after the other."""
        added = {
            name: max(value, getattr(other, name)) if "peak" in name else value + getattr(other, name)
            for name, value in vars(self).items()
        }
        return Work(**added)

    def __mul__(self, times: int) -> "Work":
        """The same as often, one after the other."""
        return Work(**{n: value if "peak" in n else value * times for n, value in vars(self).items()})


class Counter(TorchDispatchMode):
    """Counts everything that is done within it on `GPU`."""

    def __init__(self) -> None:
        super().__init__()
        self.work = Work()
        self.held_bytes = 0
        self.weight_bytes = 0
        self._held: dict[int, weakref.ref[Any]] = {}
        self._weights: set[int] = set()  # those of the storages that are held
        self._hosted: dict[int, weakref.ref[Any]] = {}
        self._values: dict[int, tuple[weakref.ref[Any], Tensor]] = {}  # of integers, where they are known

    @contextlib.contextmanager
    def counted(self) -> Iterator[Work]:
        """A count of its own for the block."""
        before, self.work = self.work, Work(peak_bytes=self.held_bytes, peak_weights=self.weight_bytes)
        try:
            yield self.work
        finally:
            self.work = before

    def host(self, tensors: Iterable[Tensor]) -> None:
        """Let these tensors on `GPU` stand for memory of the host."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if self._held.pop(storage._cdata, None):
                self.held_bytes -= storage.nbytes()
            self._hosted[storage._cdata] = weakref.ref(storage, partial(_drop, self._hosted, storage._cdata))

    def launch(self, tensors: Iterable[Tensor]) -> None:
        """Count a kernel that reads or writes these tensors."""
        self.work.kernels += 1
        self.work.elementwise_bytes += sum(map(_bytes, tensors))

    def made(self, values: Tensor) -> Tensor:
        """A tensor on `GPU` that a kernel wrote, and whose values, integers, are known."""
        made = torch.empty_like(values, device=GPU)
        self._know(made, values)
        self.launch([made])
        return made

    def hosted(self, tensor: Tensor) -> bool:
        """Whether a tensor was given to `host`."""
        return tensor.is_meta and tensor.untyped_storage()._cdata in self._hosted

    def on_gpu(self, tensor: Tensor) -> bool:
        """Whether a tensor stands for memory of the GPU."""
        return tensor.is_meta and not self.hosted(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func._overloadpacket not in flop_registry:
            with self:  # what is composed of others comes whole where nothing is differentiated
                made = func.decompose(*args, **given)
            if made is not NotImplemented:
                return made
        inputs = _tensors((args, given))
        values = self._computed(func, args, given, inputs)
        if func is aten._local_scalar_dense.default and self.on_gpu(inputs[0]):
            self.work.syncs += 1
            if values is None:
                raise ValueError("the code reads a number from the device that is not known here")
            return values
        if func is aten._to_copy.default and given.get("device", GPU) != GPU and inputs[0].device == GPU:
            known = isinstance(values, Tensor)
            made = (
                values if known else torch.zeros(inputs[0].shape, dtype=given.get("dtype", inputs[0].dtype))
            )
        else:
            made = func(*args, **given)
        outputs = _tensors(made)
        for output in outputs:
            self._hold(output)
        if isinstance(values, Tensor) and isinstance(made, Tensor) and made.device == GPU:
            self._know(made, values)
        self._count(func, args, given, inputs, outputs)
        return made

    def _hold(self, tensor: Tensor) -> None:
        """Count the memory of a tensor until it is freed."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._held or not self.on_gpu(tensor):
            return

        def freed(_: Any) -> None:
            del self._held[key]
            self.held_bytes -= size
            if key in self._weights:
                self._weights.remove(key)
                self.weight_bytes -= size

        self._held[key] = weakref.ref(storage, freed)
        self.held_bytes += size
        if self.held_bytes > self.work.peak_bytes:
            self.work.peak_bytes, self.work.peak_weights = self.held_bytes, self.weight_bytes

    def _is_weight(self, tensor: Tensor) -> None:
        """Count the memory of a tensor, which is held, as that of weights."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights:
            self._weights.add(storage._cdata)
            self.weight_bytes += storage.nbytes()
            if self.held_bytes == self.work.peak_bytes:
                self.work.peak_weights = self.weight_bytes

    def _computed(self, func: Any, args: Any, given: Any, inputs: list[Tensor]) -> Any:
        """The result of a kernel whose inputs are integers that are known, or None."""
        known = {id(tensor): self._known(tensor) for tensor in inputs}
        if any(value is None for value in known.values()) or not (
            inputs or func._overloadpacket is aten.arange
        ):
            return None
        if GPU not in (given.get("device"), *(tensor.device for tensor in inputs)):
            return None  # on the host, where it is computed anyway

        def swapped(value: Any) -> Any:
            return known[id(value)] if isinstance(value, Tensor) else value

        on_host = {"device": torch.device("cpu")} if "device" in given else {}
        return func(*tree_map(swapped, args), **tree_map(swapped, given) | on_host)

    def _know(self, tensor: Tensor, values: Tensor) -> None:
        key = id(tensor)
        self._values[key] = weakref.ref(tensor, partial(_drop, self._values, key)), values

    def _known(self, tensor: Tensor) -> Tensor | None:
        if tensor.is_floating_point() or tensor.is_complex() or self.hosted(tensor):
            return None
        if tensor.device != GPU:
            return tensor
        return self._values[id(tensor)][1] if id(tensor) in self._values else None

    def _count(self, func: Any, args: Any, given: Any, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        packet, work = func._overloadpacket, self.work
        if not any(map(self.on_gpu, (*inputs, *outputs))) or func.is_view or packet in _LAUNCH_NOTHING:
            return
        if packet is aten.clone and inputs[0].untyped_storage()._cdata in self._weights:
            self._is_weight(outputs[0])
        copies = packet in (aten.copy_, aten._to_copy, aten.clone)
        if copies and self.on_gpu(inputs[-1]) != self.on_gpu(outputs[0]):
            if self.hosted(inputs[-1]):
                self._is_weight(outputs[0])
            work.copies += 1
            work.copied_bytes += _bytes(outputs[0])
            work.syncs += self.on_gpu(inputs[-1])
            return
        work.kernels += 1
        moved = _moved(packet, inputs, outputs)
        if any(word in func.name() for word in _ATTENTION):
            work.attention_bytes += moved
            work.attention_flop += self._attention_flop(inputs)
        elif packet in flop_registry:
            work.product_bytes += moved
            work.product_flop += flop_registry[packet](*args, **given, out_val=outputs[0])
        else:
            work.elementwise_bytes += moved

    def _attention_flop(self, inputs: list[Tensor]) -> int:
        """Of queries (batch, heads, L, d), or (T, heads, d) with the bounds of sequences among the inputs."""
        query, key = inputs[:2]
        if query.ndim == 4:
            return 4 * query.numel() * key.shape[2]
        bounds = next(known for known in map(self._known, inputs) if known is not None and known.ndim == 1)
        pairs = int(bounds.long().diff().square().sum())
        return 4 * query.shape[1] * query.shape[2] * pairs


class CodeForGpu(TorchFunctionMode):
    """Lets code take the way that it takes on CUDA: fused kernels, and tensors that say they are there."""

    def __init__(self, counter: Counter):
        super().__init__()
        self._counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if func is torch.tensor and given.get("device") == GPU:
            return func(*args, **given | {"device": "cpu"}).to(GPU)  # made on the host, and copied
        if first is None or not first.is_meta:
            return func(*args, **given)
        if getattr(func, "__self__", None) is torch.Tensor.device and self._counter.hosted(first):
            return torch.device("cpu")
        if getattr(func, "__self__", None) is torch.Tensor.is_cuda:
            return True
        if func is torch.Tensor.cpu and not self._counter.on_gpu(first):
            return first
        if func in (torch.rms_norm, F.rms_norm):
            normed = torch.empty_like(first)
            self._counter.launch([first, normed])  # by one kernel, where the meta device has eight
            return normed
        if func is F.scaled_dot_product_attention:
            return attend(*args, **given)
        return func(*args, **given)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """The kernel torch chooses on CUDA: flash, or the memory-efficient one for masks and wide heads."""
    if enable_gqa:
        repeats = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    if attn_mask is None and query.shape[-1] <= 256:
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[
            0
        ]
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, attn_mask, False, dropout_p, is_causal, scale=scale
    )[0]


@contextlib.contextmanager
def counting(code: Callable[[Counter], TorchFunctionMode] = CodeForGpu) -> Iterator[Counter]:
    """A counter of what code does on `GPU`, as it would on CUDA."""
    counter = Counter()
    with (
        mock.patch.object(torch, "autocast", lambda *_, **__: contextlib.nullcontext()),  # knows no meta
        mock.patch.object(torch.cuda, "get_device_capability", lambda *_: (9, 0)),
        counter,
        code(counter),
    ):
        yield counter


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _moved(packet: Any, inputs: list[Tensor], outputs: list[Tensor]) -> int:
    """Bytes that a kernel reads and writes."""
    written = sum(map(_bytes, outputs))
    if packet in _WRITTEN_ONLY:
        inputs = inputs[1:]
    read = [_bytes(tensor) for tensor in inputs]
    if packet in _GATHERS:
        read[0] = min(read[0], written)
    return sum(read) + written


def _bytes(tensor: Tensor) -> int:
    """Of the values that a tensor has; a value that is repeated counts once."""
    sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return math.prod(sizes) * tensor.element_size()


def _drop(values: dict[int, Any], key: int, _: Any) -> None:
    values.pop(key, None)
