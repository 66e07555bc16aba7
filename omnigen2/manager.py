"""Loads models in the background, keeps them in memory, and unloads idle ones, also to make room.

Where models in use do not fit into memory together, they take turns. One that waits comes when the turn of
the one that came first is over. That one rests, with its tasks as they are, and comes back in the same way. A
model that cannot rest (`Yielding`) takes no more tasks, and is unloaded when it has done those it has.

Models are known by name only; a `BackendFactory` finds and loads them.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from omnigen2.checkpoints import locate
from omnigen2.checkpoints.card import Limits, ModelCard
from omnigen2.cost import cost
from omnigen2.factory import BackendFactory, Checkpoints
from omnigen2.memory.placement import UNQUANTIZED, Placement, Quantization
from omnigen2.resident import IN_HAND_S, Resident
from omnigen2.task import (
    Backend,
    Cancelled,
    Estimating,
    Outliving,
    OutOfMemory,
    Task,
    Watched,
    Yielding,
)

CLOSE_S = 2.0
"""Seconds that all models together get to end their steps when the process stops."""
POLL_S = 0.05
"""Seconds between looks at whether a model that is replaced has done its tasks."""

log = logging.getLogger(__name__)


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
        self._residents: dict[str, Resident] = {}
        self._lock = threading.Lock()
        self._line: deque[Resident] = deque()
        """The models that are being loaded or wait for that, in order."""
        self._line_moved = threading.Condition()
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
                resident = self._residents[name] = Resident(replaces=before)
                resident.backend.set_running_or_notify_cancel()
                threading.Thread(
                    target=self._load, args=(name, resident), name=f"load {name}", daemon=True
                ).start()
            resident.last_used = time.monotonic()
            resident.wanted = True
            return resident.backend

    def waits_for(self, model: str) -> str | None:
        """The model in use whose memory another one waits for, while it does."""
        with self._lock:
            resident = self._residents.get(model)
            return resident.waits_for if resident is not None else None

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

    def loading(self) -> list[str]:
        """The names of the models that are being loaded."""
        with self._lock:
            return [name for name, each in self._residents.items() if not each.backend.done()]

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
        closing = [threading.Thread(target=_leave, args=(resident,), daemon=True) for resident in residents]
        for thread in closing:
            thread.start()
        until = time.monotonic() + CLOSE_S
        for thread in closing:
            thread.join(max(0.0, until - time.monotonic()))

    def _load(self, name: str, resident: Resident) -> None:
        try:
            self._unload_replaced(resident)
            with self._in_line(resident):
                backend = self._brought(name, resident)
        except BaseException as error:  # also SystemExit: nobody else would resolve the future
            failure = error if isinstance(error, Exception) else RuntimeError(f"it ended with {error!r}")
            if not isinstance(error, Cancelled):
                log.warning("model %s could not be loaded: %r", name, error)
                self._proven.discard(name)
            resident.backend.set_exception(failure)
            if resident.resting is not None:
                resident.resting.give_up(failure)
            return
        self._proven.add(name)
        resident.backend.set_result(backend)

    @contextmanager
    def _in_line(self, resident: Resident) -> Iterator[None]:
        """One model is loaded at a time, in the order they were asked for: two would race for the memory."""
        with self._line_moved:
            self._line.append(resident)
            self._line_moved.wait_for(lambda: self._line[0] is resident)
        try:
            yield
        finally:
            with self._line_moved:
                self._line.remove(resident)
                self._line_moved.notify_all()

    def _brought(self, name: str, resident: Resident) -> Backend:
        """A model that is loaded, or comes back, once there is memory for it."""
        spent = 0.0
        while not self._closed.is_set() and not self._dropped(name, resident):
            started = time.monotonic()
            try:
                backend = self._bring(name, resident)
            except OutOfMemory as error:
                lack = error.with_traceback(None)
            else:
                spent += time.monotonic() - started
                resident.arrived(spent)
                log.info("model %s loaded in %.1f s", name, spent)
                return backend
            if lack.final or not self._wait_for_turn(resident):
                raise lack
            started = time.monotonic()
            self._lead_out(resident)
            spent += time.monotonic() - started
        raise Cancelled("the model was unloaded")

    def _bring(self, name: str, resident: Resident) -> Backend:
        if resident.resting is None:
            return self._factory(name).load(name, self.placement, self._evict)
        resident.resting.resume(self._evict)
        return resident.resting

    def _wait_for_turn(self, resident: Resident) -> bool:
        """Wait until the turn of the model that came first is over; False if none is loaded."""
        with self._lock:
            there = {name: each for name, each in self._residents.items() if each.ready}
        if not there:
            return False
        resident.waits_for = name = min(there, key=lambda name: there[name].came)
        while resident.needed and not (there[name].turn_over or self._closed.wait(POLL_S)):
            pass
        return True

    def _dropped(self, name: str, resident: Resident) -> bool:
        """Whether a model on its way is no longer needed; then the next `acquire` begins anew."""
        with self._lock:
            if not resident.needed and self._residents.get(name) is resident:
                del self._residents[name]
            return not resident.needed

    def _lead_out(self, resident: Resident) -> None:
        """Let the model that another one waits for leave the device, to come back if there is work for it."""
        with self._lock:
            name, resident.waits_for = resident.waits_for, None
            before = self._residents.get(name or "")
            if name is None or before is None or not (before.ready and resident.needed):
                return
            again = self._residents[name] = Resident(last_used=before.last_used)
            again.backend.set_running_or_notify_cancel()
        backend = before.backend.result()
        log.info("model %s makes room for another one", name)
        try:
            if isinstance(backend, Yielding):
                backend.rest()
                again.resting = backend
            else:
                self._unload_used(backend)
        except Exception as error:
            log.exception("model %s failed while it made room", name)
            if isinstance(backend, Yielding):
                backend.give_up(error)
            else:
                backend.close()
        threading.Thread(target=self._return, args=(name, again), name=f"return {name}", daemon=True).start()

    def _return(self, name: str, resident: Resident) -> None:
        """Bring a model back that had to leave, if there is work for it; otherwise it is unloaded."""
        until = time.monotonic() + IN_HAND_S  # a task may be on the way
        while not resident.needed and time.monotonic() < until and not self._closed.wait(POLL_S):
            pass
        self._load(name, resident)

    def _unload_replaced(self, resident: Resident) -> None:
        """Unload the model that this one replaces, once its tasks are done: there may be no memory for both.

        Other models can be loaded meanwhile.
        """
        if resident.replaces is None:
            return
        log.info("the files of a model have changed; it is loaded again")
        backend, resident.replaces = resident.replaces.backend.result(), None
        self._unload_used(backend)

    def _unload_used(self, backend: Backend) -> None:
        """Unload a model that gets no more tasks when it has done those it has."""
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


def _leave(resident: Resident) -> None:
    if resident.resting is not None:
        resident.resting.close()
    if resident.backend.exception() is None:
        loaded = resident.backend.result()
        (loaded.leave if isinstance(loaded, Outliving) else loaded.close)()


def _close(backend: "Future[Backend]") -> None:
    if backend.exception() is None:
        backend.result().close()
