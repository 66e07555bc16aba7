"""A model that sleeps instead of computing: what is measured with it is everything else."""

import threading
import time
from collections.abc import Callable, Sequence

from PIL.Image import Image, new

from omnigen2.checkpoints.card import ModelCard
from omnigen2.factory import Placement
from omnigen2.task import Backend, Cancelled, ImageTask, Outcome, Progress, Task, Ticket

STEPS = 10


class Sleeping:
    """A `BackendFactory` with one model, called `sleeping`, which takes `seconds` for each task."""

    def __init__(self, card: ModelCard, seconds: float) -> None:
        self.own_card = card.model_copy(update={"id": "sleeping", "digest": None})
        self.seconds = seconds

    def models(self) -> Sequence[str]:
        return ["sleeping"]

    def card(self, model: str) -> ModelCard:
        if model != "sleeping":
            raise FileNotFoundError(f"model: there is no {model!r}")
        return self.own_card

    def identify(self, model: str) -> ModelCard | None:
        return self.card(model)

    def load(self, model: str, placement: Placement, evict: Callable[[], bool]) -> Backend:
        return Sleeper(self.own_card, self.seconds)


class Sleeper:
    """A `Backend` that does one task after the other, each in ten naps."""

    def __init__(self, card: ModelCard, seconds: float) -> None:
        self.card = card
        self._seconds = seconds
        self._turn = threading.Lock()
        self._waiting = 0

    def submit(self, task: Task, on_progress: Callable[[Progress], None]) -> Ticket:
        ticket = Ticket(task, on_progress)
        ticket.future.set_running_or_notify_cancel()
        self._waiting += 1
        threading.Thread(target=self._sleep, args=(ticket,), daemon=True).start()
        return ticket

    def has_room(self, task: Task) -> bool:
        return self._waiting == 0

    def busy(self) -> bool:
        return self._waiting > 0

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        pass

    def _sleep(self, ticket: Ticket) -> None:
        with self._turn:
            try:
                ticket.future.set_result(self._picture(ticket))
            except Cancelled as cancelled:
                ticket.future.set_exception(cancelled)
            finally:
                self._waiting -= 1

    def _picture(self, ticket: Ticket) -> Outcome:
        assert isinstance(ticket.task, ImageTask)
        ticket.on_progress(Progress("encode"))
        for step in range(STEPS):
            time.sleep(self._seconds / STEPS)
            if ticket.cancelled.is_set():
                raise Cancelled
            ticket.on_progress(Progress("denoise", step + 1, STEPS))
        picture: Image = new("RGB", (96, 96))
        seed = ticket.task.sampling.seed or 0
        picture.putpixel((0, 0), (seed % 256, seed // 256 % 256, 7))
        return Outcome((picture,), timings={"denoise_ms": 1000 * self._seconds}, card=self.card)
