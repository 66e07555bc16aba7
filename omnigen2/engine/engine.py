"""One thread that owns the device and keeps it busy: continuous batching of every running task.

Pictures and texts take turns on the device, each kind as long as the other. A turn is one denoising step of
pictures, or one token of every text. Tasks join and leave between turns, so a small one never waits for a big
one to end, and a cancelled one is dropped before the next turn. The engine knows tasks and tickets; it knows
nothing of requests, jobs or the store.

Only `close` ends the thread. A task that fails, or whose callbacks fail, fails alone; a failure that belongs
to no single task fails the running ones, and the engine continues with those that wait.
"""

import logging
import threading
import time
import traceback
from collections.abc import Callable

import torch

from omnigen2.cost import cost
from omnigen2.engine.device_memory import DeviceMemory
from omnigen2.engine.running_pictures import RunningPictures
from omnigen2.engine.running_texts import RunningTexts
from omnigen2.engine.tickets import Kind, Tickets
from omnigen2.engine.turns import Turns
from omnigen2.memory.choice import MemoryChoice
from omnigen2.model import OmniGen2
from omnigen2.task import Cancelled, Progress, Task, TextTask, Ticket

log = logging.getLogger(__name__)


class Engine:
    """A resident model that works on many tasks at once; a `Backend` (see `omnigen2.task`)."""

    def __init__(self, model: OmniGen2, tokens_in_flight: int | None = None):
        """`tokens_in_flight`: tokens of a step up to which tasks join; None: as many as memory allows."""
        self.card = model.card
        self._model = model
        self._pipeline = pipeline = model.pipeline
        self._tickets = tickets = Tickets()
        self._memory = memory = DeviceMemory(pipeline)
        self._device = threading.Lock()
        """Held while something is computed, and while the weights leave and come."""
        budget = tokens_in_flight or pipeline.token_budget()
        self._threads = model.threads
        self._pictures = RunningPictures(pipeline, tickets, memory, budget, lambda: self._texts.running)
        self._texts = RunningTexts(pipeline, tickets, memory, lambda: self._pictures.running)
        self._turns = Turns[RunningPictures | RunningTexts]()
        self._used = {"pictures": 0.0, "texts": 0.0}
        # On a CPU, what other processes take is nobody's share.
        self._clock = time.thread_time if pipeline.device.type == "cpu" else time.perf_counter
        self._thread = threading.Thread(target=self._run, name=f"engine {self.card.id}", daemon=True)
        self._thread.start()

    # -- called from any thread ---

    def submit(self, task: Task, on_progress: Callable[[Progress], None] = lambda progress: None) -> Ticket:
        """Start the task; it joins the tasks already running at the next step.

        Raises:
            Cancelled: the engine was closed.
        """
        ticket = Ticket(task, on_progress)
        ticket.future.set_running_or_notify_cancel()  # only the engine ends it
        self._tickets.submit(ticket)
        return ticket

    def has_room(self, task: Task) -> bool:
        """Whether the task would be computed at once if it were submitted now."""
        if self._tickets.paused:
            return False
        return self._texts.has_room(task) if isinstance(task, TextTask) else self._pictures.has_room(task)

    def cost(self, task: Task) -> float:
        """Total work of a task (see `omnigen2.cost`)."""
        return cost(task, self.card.limits)

    def busy(self) -> bool:
        """Whether tasks are running or waiting."""
        return self._tickets.busy()

    def stalled_s(self) -> float:
        """Seconds since the device thread last made progress; 0.0 without work."""
        return self._tickets.stalled_s()

    def memory_bytes(self) -> int:
        """Bytes the model keeps on its device."""
        return self._pipeline.memory_bytes()

    def device_seconds(self) -> dict[str, float]:
        """Seconds for which the device has worked for `pictures` and for `texts`; on a CPU, CPU time."""
        return dict(self._used)

    def memory_choice(self) -> MemoryChoice:
        """The memory mode the model is in now, and why."""
        return self._pipeline.residency.choice

    def rest(self) -> None:
        """Take the weights off the device before the next turn; tasks stand still until `resume`."""
        self._tickets.pause(True)
        with self._device:
            self._model.leave()
            self._memory.free()
        for ticket in self._tickets.taken():
            try:
                self._tickets.report(ticket, Progress("paused"))
            except Exception:  # it fails at the next step, as it will raise there, too
                log.warning("a listener failed", exc_info=True)

    def resume(self, evict: Callable[[], bool]) -> None:
        """Bring the weights back, and go on. `evict` as for `make_room` (`omnigen2.checkpoints.fit`).

        Raises:
            OutOfMemory: there is no room; it still rests.
            ValueError, OSError: the weights are no longer in their files.
        """
        with self._device:
            self._model.come_back(evict)
        self._tickets.pause(False)

    def give_up(self, error: Exception) -> None:
        """Fail running and waiting tasks with an error, and free the device: the weights cannot come back."""
        with self._device:
            for ticket in (*self._tickets.taken(), *self._tickets.waiting()):
                self._tickets.answer(ticket, error)
        self.close()

    def close(self) -> None:
        """Fail running and waiting tasks with `Cancelled` and free the device. Idempotent."""
        self._tickets.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- the device thread ---

    def _run(self) -> None:
        while self._tickets.wait():
            try:
                with self._device:
                    self._drop_cancelled()
                    if not self._tickets.paused:
                        self._take_turn()
            except BaseException as error:
                self._start_over(Task, error)
        gone = Cancelled("the model was unloaded")
        for ticket in (*self._tickets.taken(), *self._tickets.waiting()):
            self._tickets.answer(ticket, gone)
        self._pictures.clear()
        self._texts.clear()
        self._pipeline.forget()

    def _take_turn(self) -> None:
        """Let the kind of task go on that had less of the device, or else the other one."""
        torch.set_num_threads(self._threads)  # each time, as the setting is partly process-wide
        kinds = [tasks for tasks in (self._pictures, self._texts) if tasks or self._tickets.first(tasks.kind)]
        for tasks in self._turns.order(kinds):
            started = self._clock()
            try:
                worked = tasks.turn()
            except BaseException as error:
                self._start_over(tasks.kind, error)
                return
            used = self._clock() - started
            self._turns.charge(tasks, used)
            self._used["texts" if tasks is self._texts else "pictures"] += used
            if worked:
                return

    def _drop_cancelled(self) -> None:
        """Drop every ticket that was cancelled, waiting or running."""
        self._pictures.drop_cancelled()
        self._texts.drop_cancelled()
        for ticket in self._tickets.waiting():
            if ticket.cancelled.is_set():
                self._tickets.answer(ticket, Cancelled("cancelled"))

    def _start_over(self, kind: Kind, error: BaseException) -> None:
        """After a failure that belongs to no single task: fail the running tasks, or else those that wait."""
        log.error("the engine failed and starts over", exc_info=error)
        for tasks in (self._pictures, self._texts):
            if kind in (Task, tasks.kind):
                tasks.clear()
        failure = RuntimeError(f"the engine failed: {error!r}")
        for ticket in self._tickets.taken(kind) or self._tickets.waiting(kind):
            self._tickets.answer(ticket, failure)
        traceback.clear_frames(error.__traceback__)
