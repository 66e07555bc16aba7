"""Where models come from: checkpoints on this machine, and whatever plugins bring.

Neither importing this module nor asking for a card imports torch: only loading a model does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from omnigen2.checkpoints import locate
from omnigen2.checkpoints.card import ModelCard, published_card
from omnigen2.memory.placement import Placement
from omnigen2.task import Backend


class BackendFactory(Protocol):
    """Models of one kind: their names, their cards, and how one of them is loaded."""

    def models(self) -> Sequence[str]:
        """The names that a request may give as `model`."""
        ...

    def card(self, model: str) -> ModelCard:
        """The card of a model; loads nothing.

        Raises:
            FileNotFoundError: there is no such model of this kind; the message says how to get it.
            ValueError: its card cannot be read.
        """
        ...

    def identify(self, model: str) -> ModelCard | None:
        """The card with the digest of the weights as they are now; loads nothing.

        None if that takes long: the card of the loaded model has it then. A card without a digest says that
        the model's name stands for its weights. Raises what `card` does.
        """
        ...

    def load(self, model: str, placement: Placement, evict: Callable[[], bool]) -> Backend:
        """Load a model. `evict` unloads another one that is idle, and says whether it found one.

        Raises:
            FileNotFoundError, ValueError: as `card`.
            OutOfMemory: it does not fit, and nothing is left to evict.
        """
        ...


@dataclass(frozen=True)
class OneModel:
    """A single model of a plugin's own, loaded by `make(device, dtype)`."""

    name: str
    own_card: ModelCard
    make: Callable[[str, str], Backend]

    def models(self) -> Sequence[str]:
        return [self.name]

    def card(self, model: str) -> ModelCard:
        if model != self.name:
            raise FileNotFoundError(f"model: there is no {model!r}")
        return self.own_card

    def identify(self, model: str) -> ModelCard | None:
        return self.card(model)

    def load(self, model: str, placement: Placement, evict: Callable[[], bool]) -> Backend:
        return self.make(placement.device, placement.dtype)


class Checkpoints:
    """OmniGen2: nano, pulled repositories and, by path, folders and single files."""

    quantizes = True
    """Whether `Placement.quantize` counts for these models."""

    def models(self) -> Sequence[str]:
        return locate.names()

    def card(self, model: str) -> ModelCard:
        return published_card(model) if locate.awaits_import(model) else locate.find(model).card

    def identify(self, model: str) -> ModelCard | None:
        if locate.awaits_import(model):
            return None
        checkpoint = locate.find(model).recognized()
        return checkpoint.identity if checkpoint.digest else None

    def load(self, model: str, placement: Placement, evict: Callable[[], bool]) -> Backend:
        from omnigen2.checkpoints.convert import import_once
        from omnigen2.checkpoints.fit import make_room
        from omnigen2.engine.engine import Engine
        from omnigen2.model import OmniGen2

        import_once(model)
        checkpoint = locate.find(model)
        choice = make_room(checkpoint, placement, evict)
        return Engine(OmniGen2.of(checkpoint, placement, choice))
