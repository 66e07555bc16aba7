"""Loads models in the background, keeps them in memory, and unloads idle ones, also to make room.

Models are known by name only; a `BackendFactory` finds and loads them.
"""

import logging
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field

from omnigen2.checkpoints import locate
from omnigen2.checkpoints.card import Limits, ModelCard
from omnigen2.cost import cost
from omnigen2.factory import BackendFactory, Checkpoints
from omnigen2.memory.placement import UNQUANTIZED, Placement, Quantization
from omnigen2.task import Backend, Estimating, Outliving, Task, Watched

IN_HAND_S = 10.0
"""Seconds after `acquire` in which a model is not unloaded: its task may be on the way."""

CLOSE_S = 2.0
"""Seconds that all models together get to end their steps when the process stops."""
POLL_S = 0.05
"""Seconds between looks at whether a model that is replaced has done its tasks."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Resident:
    backend: "Future[Backend]" = field(default_factory=Future)
    last_used: float = field(default_factory=time.monotonic)
    stale: bool = False
    """Whether its weights are others than those on disk now."""
    replaces: "_Resident | None" = None

    @property
    def ready(self) -> bool:
        return self.backend.done() and self.backend.exception() is None

    @property
    def idle(self) -> bool:
        """Whether it is loaded, has nothing to do, and nobody just asked for it."""
        if not self.ready:
            return False
        if self.backend.result().busy():
            self.last_used = time.monotonic()
        return time.monotonic() - self.last_used > IN_HAND_S


class Manager:
    """The models of a process. Safe for use by several threads at once."""

    def __init__(
        self,
        default_model: str = locate.NANO,
        *,
        device: str = "auto",
        dtype: str = "auto",
        memory: str = "auto",
        quantize: Quantization = UNQUANTIZED,
        compile: str = "auto",
        factories: Iterable[BackendFactory] = (Checkpoints(),),
        idle_unload_s: float | None = None,
    ):
        """`idle_unload_s`: unload a model that many seconds after its last task; None keeps it."""
        self.default_model = default_model
        self.placement = Placement(device, dtype, memory, quantize, compile)
        self._factories = list(factories)
        self._idle_unload_s = idle_unload_s
        self._residents: dict[str, _Resident] = {}
        self._lock = threading.Lock()
        self._loading = threading.Lock()  # one model at a time: two would race for the memory
        self._closed = threading.Event()
        self._proven: set[str] = set()
        """Models whose last loading succeeded."""
        if idle_unload_s is not None:
            threading.Thread(target=self._watch, name="unload idle models", daemon=True).start()

    def models(self) -> list[str]:
        """The names that a request may give as `model`."""
        return list(dict.fromkeys(name for factory in self._factories for name in factory.models()))

    def card(self, model: str | None = None) -> ModelCard:
        """The card of a model, None being the default one. Loads nothing.

        Raises:
            FileNotFoundError: it is not on this machine; the message says how to get it.
            ValueError: its card cannot be read.
        """
        name = model or self.default_model
        factory = self._factory(name)
        return self._as_placed(factory, factory.card(name))

    def identify(self, model: str | None = None) -> ModelCard | None:
        """The card of a model with the digest of its weights, those on disk now; loads nothing.

        None if that takes long: `acquire` gives a model whose card has it. A loaded model whose weights or
        limits are others than those on disk is loaded anew by the next `acquire`. Reads files: not for the
        event loop. Raises what `card` does.
        """
        name = model or self.default_model
        factory = self._factory(name)
        # A plugin written before there was `identify` has cards that say all there is to say.
        card: ModelCard | None = getattr(factory, "identify", factory.card)(name)
        card = None if card is None else self._as_placed(factory, card)
        with self._lock:
            resident = self._residents.get(name)
            if resident is not None and resident.ready:
                own = resident.backend.result().card
                unnamed = card is not None and card.digest is None
                resident.stale = not unnamed and (card is None or _identity(card) != _identity(own))
        return card

    def acquire(self, model: str | None = None) -> "Future[Backend]":
        """The loaded model, loading it in the background if it is not yet; a failed load is tried again.

        The future raises what loading raised: FileNotFoundError, ValueError, OutOfMemory.
        """
        name = model or self.default_model
        with self._lock:
            resident = self._residents.get(name)
            if resident is None or resident.stale or (resident.backend.done() and not resident.ready):
                before = resident if resident is not None and resident.ready else None
                resident = self._residents[name] = _Resident(replaces=before)
                resident.backend.set_running_or_notify_cancel()
                threading.Thread(
                    target=self._load, args=(name, resident), name=f"load {name}", daemon=True
                ).start()
            resident.last_used = time.monotonic()
            return resident.backend

    def cost(self, task: Task, model: str | None = None) -> float:
        """Total work of a task for a model, None being the default one; reads no file and loads nothing.

        A model that is not loaded yet, or whose backend is not `Estimating`, counts as the published one.
        """
        with self._lock:
            resident = self._residents.get(model or self.default_model)
        backend = resident.backend.result() if resident is not None and resident.ready else None
        return backend.cost(task) if isinstance(backend, Estimating) else cost(task)

    def has_loaded(self, model: str | None = None) -> bool:
        """Whether the last loading of a model succeeded. If it was unloaded since, the next task loads it."""
        return (model or self.default_model) in self._proven

    def loaded(self) -> dict[str, Backend]:
        """The loaded models by name."""
        with self._lock:
            return {name: each.backend.result() for name, each in self._residents.items() if each.ready}

    def memory_bytes(self) -> int:
        """Bytes that the loaded models keep on their devices."""
        return sum(backend.memory_bytes() for backend in self.loaded().values())

    def stalled_s(self) -> float:
        """The longest `Watched.stalled_s` of the loaded models; one that is not `Watched` counts as 0.0."""
        backends = self.loaded().values()
        return max((each.stalled_s() for each in backends if isinstance(each, Watched)), default=0.0)

    def close(self) -> None:
        """Unload every model; what is running fails with `Cancelled`.

        A device gets `CLOSE_S` to end its step, and is left to itself after that; so is a model that loads.
        """
        self._closed.set()
        with self._lock:
            residents = list(self._residents.values())
            self._residents.clear()
        closing = [
            threading.Thread(target=resident.backend.add_done_callback, args=(_leave,), daemon=True)
            for resident in residents
        ]
        for thread in closing:
            thread.start()
        until = time.monotonic() + CLOSE_S
        for thread in closing:
            thread.join(max(0.0, until - time.monotonic()))

    def _load(self, name: str, resident: _Resident) -> None:
        started = time.monotonic()
        try:
            self._unload_replaced(resident)
            with self._loading:
                backend = self._factory(name).load(name, self.placement, self._evict)
        except BaseException as error:  # also SystemExit: nobody else would resolve the future
            log.warning("model %s could not be loaded: %r", name, error)
            failure = error if isinstance(error, Exception) else RuntimeError(f"it ended with {error!r}")
            self._proven.discard(name)
            resident.backend.set_exception(failure)
            return
        log.info("model %s loaded in %.1f s", name, time.monotonic() - started)
        resident.last_used = time.monotonic()
        self._proven.add(name)
        resident.backend.set_result(backend)

    def _unload_replaced(self, resident: _Resident) -> None:
        """Unload the model that this one replaces, once its tasks are done: there may be no memory for both.

        Other models can be loaded meanwhile.
        """
        if resident.replaces is None:
            return
        log.info("the files of a model have changed; it is loaded again")
        backend, resident.replaces = resident.replaces.backend.result(), None
        while backend.busy() and not self._closed.wait(POLL_S):
            pass
        backend.close()

    def _as_placed(self, factory: BackendFactory, card: ModelCard) -> ModelCard:
        """The card of a model as this process loads it."""
        if not getattr(factory, "quantizes", False):  # a plugin's model has a precision of its own
            return card
        return card.model_copy(update={"quantize": str(self.placement.quantize)})

    def _factory(self, name: str) -> BackendFactory:
        """The one that offers a model of that name, or else the first that has one: a path, say."""
        failure: FileNotFoundError | None = None
        for factory in self._factories:
            if name in factory.models():
                return factory
        for factory in self._factories:
            try:
                factory.card(name)
            except FileNotFoundError as error:
                failure = failure or error
            else:
                return factory
        raise failure or FileNotFoundError(f"model: there is no {name!r}, and nothing that could bring it")

    def _evict(self) -> bool:
        """Unload the idle model that was used longest ago; False if there is none."""
        with self._lock:
            idle = [name for name, resident in self._residents.items() if resident.idle]
            if not idle:
                return False
            oldest = self._residents.pop(min(idle, key=lambda name: self._residents[name].last_used))
        log.info("unloading a model to make room")
        _close(oldest.backend)
        return True

    def _watch(self) -> None:
        assert self._idle_unload_s is not None
        while not self._closed.wait(min(self._idle_unload_s, 5.0)):
            with self._lock:
                late = [
                    name
                    for name, resident in self._residents.items()
                    if resident.idle and time.monotonic() - resident.last_used > self._idle_unload_s
                ]
                gone = [self._residents.pop(name) for name in late]
            for resident in gone:
                _close(resident.backend)


def _identity(card: ModelCard) -> tuple[str | None, Limits, str]:
    """What decides the pictures that a model makes of a complete request."""
    return card.digest, card.limits, card.quantize


def _leave(backend: "Future[Backend]") -> None:
    if backend.exception() is None:
        loaded = backend.result()
        (loaded.leave if isinstance(loaded, Outliving) else loaded.close)()


def _close(backend: "Future[Backend]") -> None:
    if backend.exception() is None:
        backend.result().close()
