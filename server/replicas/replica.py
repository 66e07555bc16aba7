"""A replica: one loaded model in a Ray actor, which works on tasks that fronts send.

Runs in a process of its own, on whatever machine Ray placed it. Its methods are called by `members.py` and
`backend.py`; they run on the actor's event loop, the model on its own thread.
"""

import asyncio
import os
import pickle
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple

from omnigen2.factory import BackendFactory
from omnigen2.memory.placement import Placement
from omnigen2.task import NUMERICS_VERSION, Backend, Outcome, Placed, Progress, Ticket
from server.replicas.members import tokens
from server.replicas.sending import Receiver, SentTask

LEFT_ALONE_S = 900.0
"""Seconds without any front after which a replica ends; a front that is started again finds it until then."""
SILENT_S = 30.0
"""Seconds without a sign of a front after which its tasks are dropped."""
POLL_S = 1.0


@dataclass(frozen=True)
class Software:
    """What must be equal at both ends for pictures to be equal."""

    package: str
    """Version of omnigen2-mcp."""
    numerics: int
    """`NUMERICS_VERSION`."""
    torch: str

    @classmethod
    def here(cls) -> "Software":
        """That of this process."""
        return cls(version("omnigen2-mcp"), NUMERICS_VERSION, version("torch").partition("+")[0])


@dataclass(frozen=True)
class Failed:
    """How a task ended that did not succeed; what a stream ends with then."""

    error: Exception

    @classmethod
    def of(cls, error: BaseException) -> "Failed":
        """The failure, so that it can travel."""
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(repr(error))
        return cls(error if isinstance(error, Exception) else RuntimeError(repr(error)))


News = Progress | Outcome | Failed


class _Work(NamedTuple):
    """A task at work, for which front, and its tokens as a whole."""

    front: str
    ticket: Ticket
    tokens: float


class Replica:
    """The actor. Constructed at once; the model is loaded in the background."""

    def __init__(
        self, maker: str, factory: BackendFactory, model: str, placement: Placement, threads: int
    ) -> None:
        """`maker`: the front that had it made; `threads`: most threads of the CPU to compute with."""
        self._maker = maker
        self._model = model.rstrip("/").rpartition("/")[2]
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported; Ray has set it to 1
        self._device = ""
        self._backend: Future[Backend] = Future()
        self._backend.set_running_or_notify_cancel()  # who waits for it may be cancelled, and it is not
        self._receiver = Receiver()
        self._tasks: dict[str, _Work] = {}
        self._fronts: dict[str, float] = {}
        self._last_seen = time.monotonic()
        load = threading.Thread(target=self._load, args=(factory, model, placement), daemon=True)
        load.start()
        threading.Thread(target=self._watch, daemon=True).start()

    async def software(self) -> dict[str, Any]:
        """`Software`, the front that made it, and those that use it, readable by every version."""
        return asdict(Software.here()) | {"maker": self._maker, "fronts": self._present()}

    async def ready(self, front: str) -> dict[str, Any]:
        """Card and whereabouts, once the model is loaded; raises what loading raised."""
        self._see(front)
        backend = await asyncio.wrap_future(self._backend)
        return {"card": backend.card.model_dump(mode="json")} | self._state()

    async def state(self, front: str | None = None) -> dict[str, Any]:
        """Where it runs and what it holds; also tells it that the front, if one asks, is alive."""
        if front is not None:
            self._see(front)
        return self._state()

    async def run(
        self, front: str, request: str, sent: SentTask, wants_preview: bool
    ) -> AsyncGenerator[News]:
        """Work on a task: its progress, then an `Outcome` or `Failed`. Cancelling this drops the task.

        Nothing at all if the model cannot be loaded: `ready` says why.
        """
        self._see(front)
        try:
            backend = await asyncio.wrap_future(self._backend)
        except Exception:
            return
        try:
            task = await self._receiver.unpack(sent)
        except Exception as error:
            yield Failed.of(error)
            return
        news = _News(asyncio.get_running_loop())
        try:
            ticket = backend.submit(task, news.progress)
        except Exception as error:
            yield Failed.of(error)
            return
        self._tasks[request] = _Work(front, ticket, tokens(task, backend.card.limits))
        if wants_preview:
            ticket.wants_preview.set()
        ticket.future.add_done_callback(news.end)
        try:
            async for each in news.all():
                yield each
        finally:
            ticket.cancel()
            self._tasks.pop(request, None)

    async def want_preview(self, request: str) -> None:
        """Have the next step of a task come with a preview."""
        if request in self._tasks:
            self._tasks[request].ticket.wants_preview.set()

    async def part(self, front: str, end: bool) -> None:
        """A front has no more to do with it. `end`: it ends, unless another front uses it."""
        self._fronts.pop(front, None)
        if end and not self._present():
            self._last_seen = -LEFT_ALONE_S  # soon, and not if a front comes before

    def _present(self) -> list[str]:
        now = time.monotonic()
        return [front for front, seen in self._fronts.items() if now - seen < SILENT_S]

    def _see(self, front: str) -> None:
        self._fronts[front] = self._last_seen = time.monotonic()

    def _state(self) -> dict[str, Any]:
        loaded = self._backend.done() and self._backend.exception() is None
        backend = self._backend.result() if loaded else None
        return {
            "pid": os.getpid(),
            "host": os.uname().nodename,
            "model": self._model,
            "device": self._device,
            "threads": _threads(),
            "memory_bytes": backend.memory_bytes() if backend else 0,
            "memory": asdict(backend.memory_choice()) if isinstance(backend, Placed) else None,
            "tasks": len(self._tasks),
            "tokens": round(sum(work.tokens for work in self._tasks.values())),
            "fetched": self._receiver.fetched,
        }

    def _load(self, factory: BackendFactory, model: str, placement: Placement) -> None:
        try:
            backend = factory.load(model, placement, lambda: False)
            self._device = _device()
            self._backend.set_result(backend)
        except BaseException as error:
            self._backend.set_exception(error)

    def _watch(self) -> None:
        """Drop the tasks of fronts that are gone; end the process when nobody needs it any more."""
        while True:
            time.sleep(POLL_S)
            now = time.monotonic()
            for work in list(self._tasks.values()):
                if now - self._fronts.get(work.front, 0.0) > SILENT_S:
                    work.ticket.cancel()
            if now - self._last_seen > LEFT_ALONE_S:
                with suppress(Exception):  # Ray does not answer: again, a little later
                    _end_for_good()
                    return


def _end_for_good() -> None:
    """End this actor; if its process only ended, Ray would start it again."""
    ray: Any = import_module("ray")
    ray.kill(ray.get_runtime_context().current_actor)


class _News:
    """What a model says about one task, passed from its thread to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: deque[News] = deque()
        self._changed = asyncio.Event()

    def progress(self, progress: Progress) -> None:
        """For the model's thread."""
        self._add(progress)

    def end(self, future: "Future[Outcome]") -> None:
        """For the model's thread, as callback of the ticket's future."""
        error = future.exception()
        self._add(future.result() if error is None else Failed.of(error))

    async def all(self) -> AsyncGenerator[News]:
        """Everything up to the end."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._pending:
                news = self._pending.popleft()
                if not self._is_outdated(news):
                    yield news
                if not isinstance(news, Progress):
                    return

    def _add(self, news: News) -> None:
        self._pending.append(news)
        self._loop.call_soon_threadsafe(self._changed.set)

    def _is_outdated(self, news: News) -> bool:
        """Whether a later step follows already: a front that is slow need not hear of each."""
        later = self._pending[0] if self._pending else None
        return (
            isinstance(news, Progress)
            and isinstance(later, Progress)
            and news.preview is None
            and news.stage == later.stage
        )


def _threads() -> int:
    """Threads of the CPU that this process computes with; 0 before torch is imported."""
    return getattr(sys.modules.get("torch"), "get_num_threads", lambda: 0)()


def _device() -> str:
    """The name of the accelerator that Ray gave to this process, or `cpu`."""
    torch = sys.modules.get("torch")  # only if the model uses it
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return "cpu"
