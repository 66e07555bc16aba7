"""How the weights of a model are arranged between its device, the host's memory and the files.

Three modes. `resident`: everything stays on the device. `offload`: transformer, language model and
autoencoder come whole when they are used, and make room for each other. `stream`: the blocks of the
transformer and of the language model come one by one, on a GPU one ahead of the computation.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from omnigen2.memory.choice import BY_HOST, MODES, RESIDENT, MemoryChoice, Mode
from omnigen2.memory.weights import (
    HERE,
    Blocks,
    HasWeights,
    Part,
    Slots,
    Unit,
    computed_dtype,
    device_bytes,
    nothing,
    tensors_of,
)

HOST_MARGIN = 1.5
"""Memory the host must have free for weights that come to rest there, as a multiple of theirs."""


class Residency:
    """How the weights of a model are arranged on its device, and how they are arranged anew."""

    def __init__(
        self,
        transformer: Any,
        language: Any,
        autoencoder: Any,
        device: torch.device,
        dtype: torch.dtype,
        choice: MemoryChoice = RESIDENT,
        *,
        check: Callable[[], None] | None = None,
        ahead: bool | None = None,
        reload: Callable[[], tuple[Any, Any, Any]] | None = None,
    ):
        """The modules are on the CPU, as they were loaded, perhaps mapped from files.

        `check` raises if those files have changed; it is called before and after weights are used that rest.
        `ahead` as for `Slots`. `reload` loads transformer, language model and autoencoder once more.

        Raises:
            ValueError: the mode is unknown.
        """
        self.device = torch.empty(0, device=device).device  # with its index, as tensors have it
        self.dtype, self._ahead = dtype, ahead
        self._check = check or (lambda: None)
        self._reload = reload
        self._dropped = False
        self._transformer, self._language, self._autoencoder = transformer, language, autoencoder
        self.choice = choice
        self._undo: list[Callable[[], None]] = []
        self._parts: list[Part] = []
        self.arrange(choice.mode, choice.reason)

    def arrange(self, mode: Mode, reason: str = BY_HOST) -> None:
        """Change to another mode, or stay in the one before if that fails.

        Whoever calls this must be the only one who computes.
        """
        if mode not in MODES:
            raise ValueError(f"memory: {mode!r} is unknown; allowed: auto, {', '.join(MODES)}")
        try:
            self._set_up(mode)
        except BaseException:
            self._set_up(self.choice.mode)
            raise
        self.choice = replace(self.choice, mode=mode, reason=reason)

    def _set_up(self, mode: Mode) -> None:
        self._release()
        self._pinned = mode != "resident" and self._can_pin()
        if mode == "resident":
            for tensor in tensors_of(self._modules()):
                self._settle(tensor)
        elif mode == "offload":
            self._offload()
        else:
            self._stream()

    @property
    def mode(self) -> Mode:
        """How the weights are arranged now."""
        return self.choice.mode

    def leave(self) -> None:
        """Take all weights off the device, until `come`.

        They rest in the host's memory if that is another than the device's and has room for them. Otherwise
        they are dropped, and loaded again.
        """
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # blocks may be on their way
        host_has_room = self.device.type != "cpu" and self._host_has_room(self.bytes)
        if self._reload is None or host_has_room:
            self._release()
            return
        self._take_back()
        for tensor in tensors_of(self._modules()):
            tensor.data = nothing(tensor.dtype, self.device).expand(tensor.shape)
        self._dropped = True

    def come(self) -> bool:
        """Bring the weights back as they were arranged; whether they were loaded again.

        Raises what `reload` does; they are still away then.
        """
        loaded = self._dropped
        if loaded and self._reload is not None:
            transformer, language, autoencoder = self._reload()
            fresh = tensors_of((transformer, language.mllm, autoencoder.vae))
            for tensor, new in zip(tensors_of(self._modules()), fresh, strict=True):
                tensor.data = new.data
            self._dropped = False
        self.arrange(self.mode, self.choice.reason)
        return loaded

    @property
    def can_lower(self) -> bool:
        """Whether another mode takes less of the device's memory, and can be changed to now.

        On a CPU weights would rest in the memory that is short. The host must have room for those of a GPU.
        """
        if self.device.type == "cpu" or self.mode == MODES[-1] or any(part.in_use for part in self._parts):
            return False
        return self._host_has_room(self.bytes)

    def lower(self) -> None:
        """Change to the next mode."""
        self.arrange(MODES[MODES.index(self.mode) + 1], f"after running out of memory with {self.mode}")

    @property
    def bytes(self) -> int:
        """Bytes of the weights that are on the device now."""
        return device_bytes(self._modules(), self.device)

    @property
    def coming_bytes(self) -> int:
        """Bytes of weights that come to the device when pictures are denoised, beside those there now."""
        return max(0, self._parts[0].bytes - self.bytes) if self._parts else 0

    def _modules(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self._transformer, self._language.mllm, self._autoencoder.vae

    def _host_has_room(self, size: int) -> bool:
        """Whether weights of that many bytes can come to rest in the host's memory."""
        return psutil.virtual_memory().available > HOST_MARGIN * size

    def _release(self) -> None:
        """Put all weights back where they rest, or on the CPU."""
        self._take_back()
        for tensor in tensors_of(self._modules()):
            tensor.data = tensor.data.cpu()

    def _take_back(self) -> None:
        """Undo what was arranged: weights that come and go are where they rest."""
        for undo in reversed(self._undo):
            undo()
        self._undo.clear()
        self._parts.clear()
        for owner in (self._transformer, self._language, self._autoencoder):
            owner.weights = HERE

    def _settle(self, tensor: Tensor) -> None:
        """Move a tensor to the device, and away from its file.

        What was read on the CPU may still be mapped from it: whoever overwrites the file would change the
        model that is running, or end the process.
        """
        moved = tensor.data.to(self.device, computed_dtype(tensor, self.dtype))
        tensor.data = moved.clone() if moved.data_ptr() == tensor.data.data_ptr() else moved

    def _can_pin(self) -> bool:
        """Whether weights on their way to a GPU rest in pinned memory, from where they come quickest.

        Otherwise they stay mapped from their files: the system reads them again where its memory is short.
        """
        if self.device.type != "cuda":
            return False
        total = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(self._modules()))
        return self._host_has_room(total)

    def _offload(self) -> None:
        """The two large parts take turns; the autoencoder comes for as long as it works."""
        transformer = self._part(self._transformer, tensors_of([self._transformer]), keep=True)
        language = self._part(self._language, tensors_of([self._language.mllm]), keep=True)
        transformer.rivals, language.rivals = [language], [transformer]
        self._part(self._autoencoder, tensors_of([self._autoencoder.vae]), keep=False)

    def _stream(self) -> None:
        """Blocks come one by one; what else the transformer has is small and stays."""
        slots = Slots(self.device, self._ahead)
        own = [*self._transformer.blocks()]
        others = [*self._language.mllm.model.language_model.layers, *self._language.mllm.model.visual.blocks]
        blocks = Blocks([*own, *others], slots, self.device, self.dtype, self._check)
        self._undo.append(blocks.restore)
        if self._pinned:
            for unit in blocks.units:
                unit.move_homes(Tensor.pin_memory)
        slots.reserve(max(unit.bytes for unit in blocks.units))
        for part, module, inner, keep in (
            (self._transformer, self._transformer, own, True),
            (self._language, self._language.mllm, others, False),
            (self._autoencoder, self._autoencoder.vae, [], False),
        ):
            streamed = {id(tensor) for tensor in tensors_of(inner)}
            rest = [tensor for tensor in tensors_of([module]) if id(tensor) not in streamed]
            self._part(part, rest, keep=keep)

    def _part(self, owner: HasWeights, tensors: Iterable[Tensor], *, keep: bool) -> Part:
        unit = Unit(tensors, self.device, self.dtype)
        if self._pinned:
            unit.move_homes(Tensor.pin_memory)
        part = owner.weights = Part(unit, self._check, keep=keep)
        self._undo.append(unit.restore)
        self._parts.append(part)
        return part
