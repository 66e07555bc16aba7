"""Weights that come to the device when they are used, and rest elsewhere in between.

A tensor at rest holds NaN in its place, of the device and precision it is computed with: whatever computes
with a weight that did not come gives NaN, and not a picture that is slightly wrong. Weights may rest in a
narrower precision than they are computed in, such as bfloat16 in files where a CPU computes in float32.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial, wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor, nn

ALIGNMENT = 64
"""Bytes to which each tensor of a slot is aligned: what kernels want, with a margin."""
HERE: AbstractContextManager[object] = nullcontext()
"""Weights that are always on the device."""


class HasWeights(Protocol):
    """What computes with weights that may have to come first."""

    weights: AbstractContextManager[object]


S = TypeVar("S", bound=HasWeights)
P = ParamSpec("P")
R = TypeVar("R")


def with_weights(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Run a method with the weights of its object on the device."""

    @wraps(method)
    def present(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.weights:
            return method(self, *args, **kwargs)

    return present


class Unit:
    """Tensors that come to the device together, and leave it together."""

    def __init__(self, tensors: Iterable[Tensor], device: torch.device, dtype: torch.dtype):
        """`dtype`: the precision of floating-point parameters on the device; buffers keep theirs."""
        self._tensors = list({id(tensor): tensor for tensor in tensors}.values())
        self._homes = [tensor.data for tensor in self._tensors]
        self._device = device
        self._dtypes = [computed_dtype(tensor, dtype) for tensor in self._tensors]
        self._resting = [
            nothing(own, device).expand(tensor.shape)
            for tensor, own in zip(self._tensors, self._dtypes, strict=True)
        ]
        self.rest()

    @property
    def bytes(self) -> int:
        """Bytes of a slot that holds this unit."""
        return sum(_aligned(home.numel() * dtype.itemsize) for home, dtype in self._pairs())

    def rest(self) -> None:
        """Leave NaN in the place of every tensor. (Integers get the lowest value there is.)"""
        self.attach(self._resting)

    @torch.inference_mode(False)
    def copied(self, slot: Tensor | None = None) -> list[Tensor]:
        """The tensors on the device, copied into `slot` (bytes, uint8) or into memory of their own.

        Tensors that rest where and as they are computed with are not copied.
        """
        made: list[Tensor] = []
        start = 0
        for home, dtype in self._pairs():
            length = home.numel() * dtype.itemsize
            if slot is None and home.device == self._device and home.dtype == dtype:
                made.append(home)
                continue
            if slot is None:
                view = torch.empty(home.shape, dtype=dtype, device=self._device)
            else:
                view = slot[start : start + length].view(dtype).view(home.shape)
            made.append(view.copy_(home, non_blocking=True))
            start += _aligned(length)
        return made

    def attach(self, copied: Sequence[Tensor]) -> None:
        """Compute with these values from now on."""
        for tensor, value in zip(self._tensors, copied, strict=True):
            tensor.data = value

    def restore(self) -> None:
        """Put the tensors back as they were before this unit was made."""
        self.attach(self._homes)

    def move_homes(self, move: Callable[[Tensor], Tensor]) -> None:
        """Let the tensors rest elsewhere: `move` gives the new place of each."""
        self._homes = [move(home) for home in self._homes]

    def _pairs(self) -> Iterable[tuple[Tensor, torch.dtype]]:
        return zip(self._homes, self._dtypes, strict=True)


class Part(AbstractContextManager[None]):
    """A unit that is on the device while somebody uses it. Uses may nest, also with those of its rivals."""

    def __init__(self, unit: Unit, check: Callable[[], None], *, keep: bool):
        """`check` raises if its files have changed; `keep`: it stays after its use until a rival comes."""
        self._unit = unit
        self._check = check
        self._keep = keep
        self._uses = 0
        self._present = False
        self.rivals: Sequence[Part] = ()
        """Parts that have to leave before this one comes: the device has no room for both."""

    def __enter__(self) -> None:
        self._uses += 1
        try:
            self._check()
            self._come()
        except BaseException:
            self._end()
            raise

    def __exit__(self, *_: object) -> None:
        self._end()
        self._check()  # also after: they may have changed meanwhile

    def _end(self) -> None:
        self._uses -= 1
        waiting = [rival for rival in self.rivals if rival.in_use]
        if not self._uses and (waiting or not self._keep):
            self._leave()
        if not self._uses and waiting:  # a rival was in use when this one came: it goes on
            waiting[-1]._come()

    @property
    def in_use(self) -> bool:
        """Whether somebody uses it now."""
        return self._uses > 0

    @property
    def bytes(self) -> int:
        """Bytes that it takes on the device."""
        return self._unit.bytes

    def _come(self) -> None:
        if self._present:
            return
        for rival in self.rivals:
            rival._leave()
        self._unit.attach(self._unit.copied())
        self._present = True

    def _leave(self) -> None:
        self._unit.rest()
        self._present = False


class Slots:
    """Memory on the device for the blocks that are on it: for one, or for one and the next.

    With two slots, the block that followed last time is copied while this one computes, on a GPU by a stream
    of its own. A wrong guess costs the copy, not the result.
    """

    def __init__(self, device: torch.device, ahead: bool | None = None):
        """`ahead`: copy the next block early; None: on a GPU only."""
        self._device = device
        self.ahead = device.type == "cuda" if ahead is None else ahead
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._memory: list[Tensor] = []
        self._held: list[tuple[Unit, list[Tensor]] | None] = []
        self._current: int | None = None
        self._last: Unit | None = None
        self._next: dict[Unit, Unit] = {}

    def reserve(self, size: int) -> None:
        """Make slots for blocks of `size` bytes, once all are known."""
        count = 2 if self.ahead else 1
        with torch.inference_mode(False):
            self._memory = [torch.empty(size, dtype=torch.uint8, device=self._device) for _ in range(count)]
        self._held = [None] * len(self._memory)

    def enter(self, unit: Unit) -> None:
        """Bring a block to the device, and begin with the one that may follow."""
        if self._last is not None:
            self._next[self._last] = unit
        place = self._find(unit)
        if place is None:
            place = self._free()
            self._copy(unit, place)
        held = self._held[place]
        assert held is not None
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)
        unit.attach(held[1])
        self._current, self._last = place, unit
        following = self._next.get(unit)
        if self.ahead and following is not None and self._find(following) is None:
            self._copy(following, self._free())

    def leave(self, unit: Unit) -> None:
        """Let a block rest: its slot may be written over once what was queued has been computed."""
        unit.rest()
        self._current = None

    def forget(self) -> None:
        """Count every copy as lost: after a failure nobody knows whether it was made."""
        self._held = [None] * len(self._memory)
        self._current = self._last = None

    def _find(self, unit: Unit) -> int | None:
        return next((n for n, held in enumerate(self._held) if held is not None and held[0] is unit), None)

    def _free(self) -> int:
        """A slot that is not in use now."""
        return next(n for n in range(len(self._memory)) if n != self._current)

    def _copy(self, unit: Unit, place: int) -> None:
        self._held[place] = None
        if self._stream is None:
            self._held[place] = unit, unit.copied(self._memory[place])
            return
        # The slot's last block was queued on the current stream before: it is read before it is written over.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._held[place] = unit, unit.copied(self._memory[place])


class Blocks:
    """Blocks that come when they are called."""

    def __init__(
        self,
        blocks: Iterable[nn.Module],
        slots: Slots,
        device: torch.device,
        dtype: torch.dtype,
        check: Callable[[], None],
    ):
        """`check` as for `Part`, before each block: reading a file that was cut short ends the process.

        One that is cut short between this look and the copy still does.
        """
        self.units: list[Unit] = []
        self._hooks: list[Any] = []
        for block in blocks:
            unit = Unit(tensors_of([block]), device, dtype)
            self.units.append(unit)
            self._hooks += [
                block.register_forward_pre_hook(partial(_before, check, slots, unit)),
                block.register_forward_hook(partial(_after, slots, unit), always_call=True),
            ]

    def restore(self) -> None:
        """Let the blocks be as they were."""
        for hook in self._hooks:
            hook.remove()
        for unit in self.units:
            unit.restore()


def _before(check: Callable[[], None], slots: Slots, unit: Unit, *_: Any) -> None:
    try:
        check()
        slots.enter(unit)
    except BaseException:
        slots.forget()
        raise


def _after(slots: Slots, unit: Unit, *_: Any) -> None:
    slots.leave(unit)


def tensors_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Parameters and buffers of modules, each once: tied weights are one tensor."""
    every = (itertools.chain(module.parameters(), module.buffers()) for module in modules)
    return list({id(tensor): tensor for tensor in itertools.chain.from_iterable(every)}.values())


def device_bytes(modules: Iterable[nn.Module], device: torch.device) -> int:
    """Bytes that the tensors of modules take on a device now."""
    stores = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors_of(modules)
        if tensor.device == device
    }
    return sum(stores.values())


def computed_dtype(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The precision a tensor is computed with, in a model whose floating-point parameters have `dtype`."""
    return dtype if isinstance(tensor, nn.Parameter) and tensor.is_floating_point() else tensor.dtype


@cache
@torch.inference_mode(False)
def nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What stands in the place of a weight that is away: NaN, or the lowest integer."""
    value = float("nan") if dtype.is_floating_point else torch.iinfo(dtype).min
    return torch.full((), value, dtype=dtype, device=device)


def _aligned(length: int) -> int:
    return -(-length // ALIGNMENT) * ALIGNMENT
