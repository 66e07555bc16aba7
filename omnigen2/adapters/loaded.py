"""The adapters that a model has loaded, each once, by the digest of its file."""

from collections.abc import Sequence
from weakref import WeakValueDictionary

import torch
from torch import nn

from omnigen2.adapters.apply import Active, LoadedAdapter, LowRank
from omnigen2.adapters.file import Adapter, WeightedAdapter
from omnigen2.adapters.forms import Shapes, read
from omnigen2.lru_cache import LruCache
from omnigen2.memory.device import isolated

KEPT = 8
"""Adapters that stay loaded though no picture uses them: those used last."""


class LoadedAdapters:
    """Adapters on the device of a model. Not thread-safe."""

    def __init__(self, model: nn.Module, device: torch.device, dtype: torch.dtype):
        self._layers = linear_layers(model)
        self.device, self._dtype = device, dtype
        self._kept: LruCache[LoadedAdapter] = LruCache(KEPT)
        self._in_use: WeakValueDictionary[str, LoadedAdapter] = WeakValueDictionary()

    @isolated
    def get(self, wanted: Sequence[WeightedAdapter]) -> Active:
        """These adapters, loaded if necessary; those without weight are left out.

        Raises:
            FileNotFoundError, ValueError: as `read`.
        """
        return tuple((self._one(own.adapter), own.weight) for own in wanted if own.weight)

    def forget(self) -> None:
        """Let go of the adapters that no picture uses, to free memory."""
        self._kept.clear()

    def digests(self) -> set[str]:
        """What is loaded."""
        return set(self._in_use)

    def _one(self, adapter: Adapter) -> LoadedAdapter:
        found = self._in_use.get(adapter.digest)
        loaded = self._kept.get(adapter.digest, lambda: found or self._load(adapter))
        self._in_use[adapter.digest] = loaded
        return loaded

    def _load(self, adapter: Adapter) -> LoadedAdapter:
        def here(change: LowRank) -> LowRank:
            return LowRank(*(side.to(self.device, self._dtype) for side in (change.down, change.up)))

        return LoadedAdapter({layer: here(own) for layer, own in read(adapter, self._layers).items()})


def linear_layers(model: nn.Module) -> Shapes:
    """(out, in) of every layer that an adapter can change, whatever its weights are stored as."""
    return {
        name: (layer.out_features, layer.in_features)  # pyright: ignore[reportReturnType]
        for name, layer in model.named_modules()
        if hasattr(layer, "in_features") and hasattr(layer, "out_features")
    }
