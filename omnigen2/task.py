"""What a model is asked and what it answers, and the protocol every model backend follows.

Tasks hold pictures and filled parameters, never ids: the engine knows nothing of requests, jobs or the
store. Nothing here imports torch.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

from PIL.Image import Image

from omnigen2.adapters.file import WeightedAdapter
from omnigen2.checkpoints.card import ModelCard
from omnigen2.memory.choice import MemoryChoice
from omnigen2.params import Decoding, ReferenceSampling

NUMERICS_VERSION = 3
"""Raised whenever the same recipe would give other pixels; part of the key of remembered results."""
SPEEDS_VERSION = 2
"""The same for recipes at another speed than `exact`."""


class HasSize(Protocol):
    """A picture, or what stands for one that is not decoded yet: for `has_room` its size is enough."""

    @property
    def width(self) -> int: ...

    @property
    def height(self) -> int: ...


@dataclass(frozen=True)
class ImageTask:
    """Make pictures: no image is text to image, one is an edit, more are a composition."""

    prompt: str
    images: tuple[HasSize, ...]  # PIL images, where the task is to be done
    sampling: ReferenceSampling  # complete (`omnigen2.completion`)
    adapters: tuple[WeightedAdapter, ...] = ()


@dataclass(frozen=True)
class TextTask:
    """Write text about images."""

    question: str
    images: tuple[HasSize, ...]  # as of an ImageTask
    decoding: Decoding  # complete; without a seed at temperature 0


Task = ImageTask | TextTask


@dataclass(frozen=True)
class Progress:
    """Where a task is. `preview` is a small picture of the current estimate, made only on request.

    `moved`: what did it was lost, and another replica begins anew. `paused`: it stands still while another
    model has the device.
    """

    stage: Literal["encode", "denoise", "decode", "write", "moved", "paused"]
    step: int = 0
    steps: int = 0
    preview: Image | None = None


@dataclass(frozen=True)
class Outcome:
    """What came out of a task.

    `timings` holds milliseconds per stage: `encode_ms`, `denoise_ms`, `decode_ms`. `notes` are sentences the
    caller should pass on, such as that a prompt was cut. `card` is that of the model that did it, whose
    digest may differ from the expected one.
    """

    pictures: tuple[Image, ...] = ()
    text: str = ""
    notes: tuple[str, ...] = ()
    timings: dict[str, float] = field(default_factory=dict)
    card: ModelCard | None = None


class Cancelled(Exception):
    """The task was cancelled before it was finished."""


class OutOfMemory(Exception):
    """There is too little memory on the device: for a task, alone and after every cache was freed, or for a
    model. `final`: it would not fit either if every other model were gone.
    """

    def __init__(self, message: str, final: bool = False):
        super().__init__(message)
        self.final = final


@dataclass(eq=False)
class Ticket:
    """A task under way: `future` gives its `Outcome` or raises `Cancelled`, `OutOfMemory`, `InvalidTask`.

    Anything else it raises is a fault, which is logged, and of which the caller is told nothing. A backend
    that has read the images of `task` for good may drop them there.
    """

    task: Task
    on_progress: Callable[[Progress], None]
    future: "Future[Outcome]" = field(default_factory=Future)
    cancelled: threading.Event = field(default_factory=threading.Event)
    wants_preview: threading.Event = field(default_factory=threading.Event)  # cleared when one was delivered

    def cancel(self) -> None:
        """Ask the engine to drop the task; it does so before the next denoising step."""
        self.cancelled.set()


class Backend(Protocol):
    """A loaded model. Callable from any thread; `on_progress` is called on the backend's own thread."""

    card: ModelCard

    def submit(self, task: Task, on_progress: Callable[[Progress], None]) -> Ticket:
        """Start the task; it joins the tasks already running at the next step."""
        ...

    def has_room(self, task: Task) -> bool:
        """Whether the task would be computed at once if it were submitted now.

        Its images may be values that have a width and a height only (`HasSize`).
        """
        ...

    def busy(self) -> bool:
        """Whether tasks are running or waiting."""
        ...

    def memory_bytes(self) -> int:
        """Bytes the model keeps on its device."""
        ...

    def close(self) -> None:
        """Fail what is running with `Cancelled` and free the device."""
        ...


@runtime_checkable
class Estimating(Protocol):
    """Optional part of a backend: its own estimate of the work in a task.

    A backend without it is taken to need what `omnigen2.cost.cost` says.
    """

    def cost(self, task: Task) -> float:
        """Total work of a task, more than 0; comparable between tasks of one kind.

        Its images may be values with only a width and a height (`HasSize`).
        """
        ...


@runtime_checkable
class Watched(Protocol):
    """What a backend may offer beside `Backend`, so that a device that hangs can be seen from outside."""

    def stalled_s(self) -> float:
        """Seconds since the backend got further with the work it has; 0.0 without work.

        A step of a large model may take minutes on a slow device; hours mean that it hangs.
        """
        ...


@runtime_checkable
class Placed(Protocol):
    """What a backend may offer beside `Backend`: where the weights of its model are."""

    def memory_choice(self) -> MemoryChoice:
        """The memory mode it is in now, and why."""
        ...


@runtime_checkable
class Accounting(Protocol):
    """What a backend may offer beside `Backend`: what its device did."""

    def device_seconds(self) -> dict[str, float]:
        """Seconds for which the device has worked for `pictures` and for `texts`; on a CPU, CPU time."""
        ...


@runtime_checkable
class Yielding(Backend, Protocol):
    """A backend whose tasks need not end before another model comes, where there is no memory for both.

    Called from any thread, one at a time. At rest it takes tasks, which wait, and has no room.
    """

    def rest(self) -> None:
        """Take the weights off the device before the next step; tasks stand still until `resume`."""
        ...

    def resume(self, evict: Callable[[], bool]) -> None:
        """Bring the weights back; tasks go on. `evict` as in `omnigen2.factory.BackendFactory.load`.

        Raises:
            OutOfMemory: there is no room; it still rests.
        """
        ...

    def give_up(self, error: Exception) -> None:
        """Fail every task with this error, and close: the weights cannot come back."""
        ...


@runtime_checkable
class Replicated(Protocol):
    """What a backend may offer beside `Backend`, if its model is loaded several times."""

    def replicas(self) -> list[dict[str, Any]]:
        """What an operator wants to know of each: `replica`, `state`, `node`, `device`, `memory_bytes`."""
        ...


@runtime_checkable
class Outliving(Protocol):
    """What a backend may offer beside `Backend`, if its model can stay loaded when this process ends."""

    def leave(self) -> None:
        """As `Backend.close`, but for the next process the model may stay loaded."""
        ...
