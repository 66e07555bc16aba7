"""One thread that owns the device and keeps it busy: continuous batching of every task in flight.

The unit of work is one denoising step of all pictures together. Tasks join and leave between steps, so a
small one never waits for a big one to end, and a cancelled one is gone before the next step. While text is
written, pictures and text take turns, each as long as the other. The engine knows tasks and tickets; it knows
nothing of requests, jobs or the store.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from PIL.Image import Image

from omnigen2 import lora
from omnigen2.denoise import Denoiser, Sample
from omnigen2.model import OmniGen2
from omnigen2.task import Cancelled, ImageTask, Outcome, OutOfMemory, Progress, Task, TextTask, Ticket

TOKENS_IN_FLIGHT = 24_000
"""Tokens of a step up to which further tasks join: enough to fill a large GPU; more only delays them all."""

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Flight:
    """A task whose pictures are being denoised."""

    ticket: Ticket
    task: ImageTask
    samples: list[Sample]
    notes: list[str]
    timings: dict[str, float]
    started: float = field(default_factory=time.perf_counter)

    @property
    def done(self) -> bool:
        return all(sample.done for sample in self.samples)


class Engine:
    """A resident model that works on many tasks at once; a `Backend` (see `omnigen2.task`)."""

    def __init__(self, model: OmniGen2, tokens_in_flight: int = TOKENS_IN_FLIGHT):
        self.card = model.card
        self._pipeline = model.pipeline
        self._budget = tokens_in_flight
        self._denoiser = Denoiser(model.pipeline.transformer)
        self._flights: list[_Flight] = []
        self._grounded: list[_Flight] = []  # had to leave for want of memory; they go on where they were
        self._pictures: deque[Ticket] = deque()
        self._texts: deque[Ticket] = deque()
        self._writing: Ticket | None = None
        self._wake = threading.Condition()
        self._closed = False
        self._step_seconds = 0.0
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
        with self._wake:
            if self._closed:
                raise Cancelled("the model was unloaded")
            (self._texts if isinstance(task, TextTask) else self._pictures).append(ticket)
            self._wake.notify()
        return ticket

    def has_room(self, task: Task) -> bool:
        """Whether the task would be computed at once if it were submitted now."""
        if isinstance(task, TextTask):
            return not self._texts and self._writing is None
        return not self._pictures and self._fits(task)

    def busy(self) -> bool:
        """Whether tasks are running or waiting."""
        return bool(self._pictures or self._texts or self._flights or self._grounded or self._writing)

    def memory_bytes(self) -> int:
        """Bytes the model keeps on its device."""
        return self._pipeline.memory_bytes()

    def close(self) -> None:
        """Fail what is running or waiting with `Cancelled` and free the device."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- the device thread ---

    def _run(self) -> None:
        while (self._flights and not self._closed) or self._wait():
            self._tend_pictures()
            if self._texts:
                self._write(self._texts.popleft())
        gone = Cancelled("the model was unloaded")
        flights = [flight.ticket for flight in (*self._flights, *self._grounded)]
        for ticket in (*self._texts, *self._pictures, *flights):
            ticket.future.set_exception(gone)
        self._flights.clear()
        self._denoiser = Denoiser(self._pipeline.transformer)
        self._pipeline.forget()

    def _wait(self) -> bool:
        """Sleep until there is work; False when the engine was closed."""
        with self._wake:
            self._wake.wait_for(lambda: self._closed or self.busy())
            return not self._closed

    def _tend_pictures(self) -> None:
        """Let pictures join, take one step with all of them, let the finished ones go."""
        self._drop_cancelled()
        while self._grounded and self._fits(self._grounded[0].task):
            self._join(self._grounded.pop(0))
        while self._pictures and not self._grounded and self._fits(self._pictures[0].task):
            self._admit(self._pictures.popleft())
        if self._flights:
            self._step()
        for flight in [flight for flight in self._flights if flight.done]:
            self._flights.remove(flight)
            self._finish(flight)

    def _fits(self, task: Task) -> bool:
        assert isinstance(task, ImageTask)
        flights = list(self._flights)  # `has_room` asks from other threads
        if not flights:
            return True
        same_weights = flights[0].task.lora == task.lora
        return same_weights and self._denoiser.cost + self._pipeline.cost(task) <= self._budget

    def _drop_cancelled(self) -> None:
        """Forget every ticket that was cancelled, waiting or in flight."""
        for flight in [flight for flight in self._flights if flight.ticket.cancelled.is_set()]:
            self._land(flight, Cancelled("cancelled"))
        for flight in [flight for flight in self._grounded if flight.ticket.cancelled.is_set()]:
            self._grounded.remove(flight)
            flight.ticket.future.set_exception(Cancelled("cancelled"))
        for queue in (self._pictures, self._texts):
            for ticket in [ticket for ticket in queue if ticket.cancelled.is_set()]:
                queue.remove(ticket)
                ticket.future.set_exception(Cancelled("cancelled"))

    def _admit(self, ticket: Ticket) -> None:
        task = ticket.task
        assert isinstance(task, ImageTask)
        started = time.perf_counter()
        try:
            ticket.on_progress(Progress("encode"))
            lora.use(self._pipeline.transformer, task.lora)
            samples, notes = self._survive(lambda: self._pipeline.prepare(task))
        except Exception as error:
            ticket.future.set_exception(_explained(error))
            return
        timings = {"encode_ms": 1000 * (time.perf_counter() - started)}
        self._join(_Flight(ticket, task, samples, notes, timings))

    def _join(self, flight: _Flight) -> None:
        self._flights.append(flight)
        self._denoiser.add(sample for sample in flight.samples if not sample.done)

    def _step(self) -> None:
        started = time.perf_counter()
        try:
            self._denoiser.step()
            if self._flights[0].samples[0].tokens.is_cuda:
                torch.cuda.synchronize()
        except torch.OutOfMemoryError as error:
            self._shrink(error)
            return
        except Exception as error:  # a step serves all: none of them can go on
            log.exception("a denoising step failed")
            for flight in list(self._flights):
                self._land(flight, error)
            return
        self._step_seconds = time.perf_counter() - started
        for flight in list(self._flights):
            self._report(flight)

    def _report(self, flight: _Flight) -> None:
        """Tell where the flight is, with a preview if one is wanted."""
        first, ticket = flight.samples[0], flight.ticket
        preview: Image | None = None
        try:
            if ticket.wants_preview.is_set():
                ticket.wants_preview.clear()
                preview = self._pipeline.preview(first)
            ticket.on_progress(Progress("denoise", first.index, len(first.plan), preview))
        except Exception as error:
            self._land(flight, error)

    def _shrink(self, error: torch.OutOfMemoryError) -> None:
        """After a step that did not fit: free caches, and ground the youngest flight if it has company."""
        self._pipeline.forget()
        torch.cuda.empty_cache()
        if len(self._flights) == 1:
            self._land(self._flights[0], _explained(error))
            return
        self._budget = self._denoiser.cost - 1
        youngest = self._flights[-1]
        self._land(youngest)
        self._grounded.append(youngest)

    def _land(self, flight: _Flight, error: Exception | None = None) -> None:
        """Take a flight out of the batch, with its failure if it has one."""
        self._flights.remove(flight)
        self._denoiser.remove(flight.samples)
        if error is not None:
            flight.ticket.future.set_exception(error)

    def _finish(self, flight: _Flight) -> None:
        ticket, timings = flight.ticket, flight.timings
        timings["denoise_ms"] = 1000 * (time.perf_counter() - flight.started)
        started = time.perf_counter()
        try:
            ticket.on_progress(Progress("decode"))
            pictures = self._survive(lambda: self._pipeline.finish(flight.task, flight.samples))
        except Exception as error:
            ticket.future.set_exception(_explained(error))
            return
        timings["decode_ms"] = 1000 * (time.perf_counter() - started)
        ticket.future.set_result(
            Outcome(tuple(pictures), notes=tuple(flight.notes), timings=timings, card=self.card)
        )

    def _write(self, ticket: Ticket) -> None:
        """Write the text of one task, taking turns with the pictures in flight."""
        task = ticket.task
        assert isinstance(task, TextTask)
        self._writing = ticket
        started = last = time.perf_counter()

        def on_token(count: int) -> None:
            nonlocal last
            if ticket.cancelled.is_set() or self._closed:
                raise Cancelled("cancelled")
            ticket.on_progress(Progress("write", count, task.decoding.max_tokens or 0))
            if time.perf_counter() - last >= self._step_seconds:
                self._tend_pictures()
                last = time.perf_counter()

        try:
            text = self._survive(lambda: self._pipeline.write(task, on_token))
        except Exception as error:
            self._writing = None  # first, so that who hears of the end finds room
            ticket.future.set_exception(_explained(error))
        else:
            self._writing = None
            timings = {"write_ms": 1000 * (time.perf_counter() - started)}
            ticket.future.set_result(Outcome(text=text, timings=timings, card=self.card))

    def _survive(self, work: Callable[[], T]) -> T:
        """Do the work; if memory runs out, free every cache and try once more."""
        try:
            return work()
        except torch.OutOfMemoryError:
            self._pipeline.forget()
            torch.cuda.empty_cache()
            return work()


def _explained(error: Exception) -> Exception:
    """Running out of memory as what the caller can act on; any other error as it is."""
    if isinstance(error, torch.OutOfMemoryError):
        return OutOfMemory("the device has too little memory for this request; ask for a smaller picture")
    return error
