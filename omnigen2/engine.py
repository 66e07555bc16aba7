"""One thread that owns the device and keeps it busy: continuous batching of every task in flight.

The unit of work is one denoising step of all pictures together. Tasks join and leave between steps, so a
small one never waits for a big one to end, and a cancelled one is gone before the next step. While text is
written, pictures and text take turns, each as long as the other. The engine knows tasks and tickets; it knows
nothing of requests, jobs or the store.

Nothing ends the thread but `close`: a task that fails, or whose callbacks do, fails alone, and a failure that
belongs to no task fails what is being worked on, after which the engine goes on with what waits.
"""

import gc
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from PIL.Image import Image

from omnigen2 import lora
from omnigen2.cost import cost
from omnigen2.denoise import Denoiser, Sample
from omnigen2.device import is_out_of_memory
from omnigen2.model import OmniGen2
from omnigen2.task import Cancelled, ImageTask, Outcome, OutOfMemory, Progress, Task, TextTask, Ticket
from omnigen2.tickets import Kind, Tickets

TOKENS_IN_FLIGHT = 24_000
"""Tokens of a step up to which further tasks join: enough to fill a large GPU; more only delays them all."""
RECOVERY_STEPS = 256
"""Successful steps after which the budget of tokens is whole again, however far it had to shrink."""

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Flight:
    """A task whose pictures are being denoised."""

    ticket: Ticket
    task: ImageTask
    tokens: int  # of one step, as estimated
    samples: list[Sample]
    notes: list[str]
    timings: dict[str, float]
    started: float = field(default_factory=time.perf_counter)
    retrying: bool = False  # the last step ran out of memory

    @property
    def done(self) -> bool:
        return all(sample.done for sample in self.samples)


class Engine:
    """A resident model that works on many tasks at once; a `Backend` (see `omnigen2.task`)."""

    def __init__(self, model: OmniGen2, tokens_in_flight: int = TOKENS_IN_FLIGHT):
        self.card = model.card
        self._pipeline = model.pipeline
        self._threads = model.threads
        self._whole_budget = self._budget = tokens_in_flight
        self._tickets = Tickets()
        self._denoiser = Denoiser(model.pipeline.transformer)
        # Other threads read these two; they are replaced, never changed in place.
        self._flights: tuple[_Flight, ...] = ()
        self._writing = False
        self._preempted: list[_Flight] = []  # had to leave for want of memory; they go on where they were
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
        self._tickets.submit(ticket)
        return ticket

    def has_room(self, task: Task) -> bool:
        """Whether the task would be computed at once if it were submitted now."""
        if isinstance(task, TextTask):
            return not self._writing and self._tickets.first(TextTask) is None
        return self._tickets.first(ImageTask) is None and self._fits(task)

    def cost(self, task: Task) -> float:
        """Total work of a task (see `omnigen2.cost`)."""
        return cost(task, self.card.limits)

    def busy(self) -> bool:
        """Whether tasks are running or waiting."""
        return self._tickets.busy()

    def stalled_s(self) -> float:
        """Seconds since the device thread got further with the work it has; 0.0 without work."""
        return self._tickets.stalled_s()

    def memory_bytes(self) -> int:
        """Bytes the model keeps on its device."""
        return self._pipeline.memory_bytes()

    def close(self) -> None:
        """Fail what is running or waiting with `Cancelled` and free the device. Again, it does nothing."""
        self._tickets.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- the device thread ---

    def _run(self) -> None:
        while self._tickets.wait():
            try:
                self._tend_pictures()
                if ticket := self._tickets.first(TextTask):
                    self._tickets.take(ticket)
                    self._write(ticket)
            except BaseException as error:
                self._start_over(Task, error)
        gone = Cancelled("the model was unloaded")
        for ticket in (*self._tickets.taken(), *self._tickets.waiting()):
            self._tickets.answer(ticket, gone)
        self._forget_flights()
        self._pipeline.forget()

    def _start_over(self, kind: Kind, error: BaseException) -> None:
        """After a failure that belongs to no task: fail what is being worked on, or else what waits."""
        log.error("the engine failed and starts over", exc_info=error)
        self._forget_flights()
        failure = RuntimeError(f"the engine failed: {error!r}")
        for ticket in self._tickets.taken(kind) or self._tickets.waiting(kind):
            self._tickets.answer(ticket, failure)
        traceback.clear_frames(error.__traceback__)

    def _forget_flights(self) -> None:
        self._flights, self._preempted = (), []
        self._denoiser = Denoiser(self._pipeline.transformer)

    def _tend_pictures(self) -> None:
        """Let pictures join, take one step with all of them, let the finished ones go."""
        try:
            torch.set_num_threads(self._threads)  # again each time: part of it belongs to the whole process
            self._drop_cancelled()
            while self._preempted and self._fits(self._preempted[0].task):
                self._join(self._preempted.pop(0))
            while not self._preempted and (ticket := self._tickets.first(ImageTask)):
                if not self._fits(ticket.task):
                    break
                self._tickets.take(ticket)
                self._admit(ticket)
            if self._denoiser.samples:
                self._step()
            for flight in self._flights:
                if flight.done:
                    self._leave(flight)
                    self._finish(flight)
        except BaseException as error:
            self._start_over(ImageTask, error)

    def _fits(self, task: Task) -> bool:
        """Whether a task may join those in flight now."""
        assert isinstance(task, ImageTask)
        flights = self._flights
        if not flights and (not self._writing or self._budget == self._whole_budget):
            return True
        same_weights = not flights or flights[0].task.lora == task.lora
        return same_weights and _tokens(flights) + self._pipeline.step_tokens(task) <= self._budget

    def _drop_cancelled(self) -> None:
        """Forget every ticket that was cancelled, waiting or in flight."""
        for flight in (*self._flights, *self._preempted):
            if flight.ticket.cancelled.is_set():
                self._fail(flight, Cancelled("cancelled"))
        for ticket in self._tickets.waiting():
            if ticket.cancelled.is_set():
                self._tickets.answer(ticket, Cancelled("cancelled"))

    def _admit(self, ticket: Ticket) -> None:
        task = ticket.task
        assert isinstance(task, ImageTask)
        started = time.perf_counter()

        def prepare() -> tuple[list[Sample], list[str]]:
            lora.use(self._pipeline.transformer, task.lora)
            return self._pipeline.prepare(task)

        try:
            self._tell(ticket, Progress("encode"))
            samples, notes = self._survive(prepare, prepare)
        except BaseException as error:
            if not (is_out_of_memory(error) and self._in_company()):
                self._tickets.answer(ticket, _explained(error))
                return
        else:
            timings = {"encode_ms": 1000 * (time.perf_counter() - started)}
            self._join(_Flight(ticket, task, self._pipeline.step_tokens(task), samples, notes, timings))
            return
        self._free_memory()
        self._budget = _tokens(self._flights)
        self._tickets.put_back(ticket)

    def _in_company(self) -> bool:
        """Whether a task that is not in flight shares the device's memory with others."""
        return bool(self._flights) or self._writing

    def _join(self, flight: _Flight) -> None:
        self._flights = (*self._flights, flight)
        self._denoiser.add(sample for sample in flight.samples if not sample.done)

    def _leave(self, flight: _Flight) -> None:
        self._flights = tuple(other for other in self._flights if other is not flight)
        self._denoiser.remove(flight.samples)

    def _fail(self, flight: _Flight, error: BaseException) -> None:
        if flight in self._preempted:
            self._preempted.remove(flight)
        self._leave(flight)
        self._tickets.answer(flight.ticket, _explained(error))

    def _preempt(self, flight: _Flight) -> None:
        """Let a flight wait until there is memory for it."""
        self._leave(flight)
        self._preempted.append(flight)
        self._budget = 3 * (_tokens(self._flights) + flight.tokens) // 4

    def _step(self) -> None:
        started = time.perf_counter()
        moving = [flight for flight in self._flights if not flight.done]
        try:
            self._denoiser.step()
            device = self._pipeline.transformer.device
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except Exception as error:
            if not is_out_of_memory(error):  # a step serves all: none of them can go on
                for flight in moving:
                    self._fail(flight, error)
                return
        else:
            self._step_seconds = time.perf_counter() - started
            self._budget = min(self._whole_budget, self._budget + self._whole_budget // RECOVERY_STEPS + 1)
            for flight in moving:
                flight.retrying = False
                self._report(flight)
            return
        self._shrink(moving[-1])

    def _shrink(self, youngest: _Flight) -> None:
        """After a step that did not fit: free caches. The youngest flight waits; a lone one tries again."""
        self._free_memory()
        if len(self._flights) > 1 or self._writing:
            self._preempt(youngest)
        elif not youngest.retrying:
            youngest.retrying = True
        else:
            self._fail(youngest, _too_big())

    def _report(self, flight: _Flight) -> None:
        """Tell where the flight is, with a preview if one is wanted."""
        first = flight.samples[0]
        preview = self._preview(flight)
        try:
            self._tell(flight.ticket, Progress("denoise", first.index, len(first.plan), preview))
        except BaseException as error:
            self._fail(flight, error)

    def _preview(self, flight: _Flight) -> Image | None:
        """A small picture if one is wanted and can be made: nothing depends on it."""
        wanted = flight.ticket.wants_preview
        if not wanted.is_set():
            return None
        wanted.clear()
        try:
            return self._pipeline.preview(flight.samples[0])
        except Exception:
            log.warning("a preview could not be made", exc_info=True)
        self._free_memory()
        return None

    def _tell(self, ticket: Ticket, progress: Progress) -> None:
        self._tickets.progressed()
        ticket.on_progress(progress)

    def _finish(self, flight: _Flight) -> None:
        """Decode a flight's pictures and answer its ticket."""
        timings = flight.timings
        timings["denoise_ms"] = 1000 * (time.perf_counter() - flight.started)
        started = time.perf_counter()

        def decode() -> list[Image]:
            return self._pipeline.finish(flight.task, flight.samples)

        try:
            self._tell(flight.ticket, Progress("decode"))
            pictures = self._survive(decode, decode)
        except BaseException as error:
            if not (is_out_of_memory(error) and self._in_company()):
                self._tickets.answer(flight.ticket, _explained(error))
                return
        else:
            timings["decode_ms"] = 1000 * (time.perf_counter() - started)
            outcome = Outcome(tuple(pictures), notes=tuple(flight.notes), timings=timings, card=self.card)
            self._tickets.answer(flight.ticket, outcome)
            return
        self._free_memory()
        self._preempt(flight)

    def _write(self, ticket: Ticket) -> None:
        """Write the text of one task, taking turns with the pictures in flight."""
        task = ticket.task
        assert isinstance(task, TextTask)
        started = time.perf_counter()
        self._writing = True
        answer: Outcome | Exception
        try:
            text = self._survive(
                lambda: self._write_text(ticket, take_turns=True),
                lambda: self._write_text(ticket, take_turns=False),
            )
            timings = {"write_ms": 1000 * (time.perf_counter() - started)}
            notes = tuple(self._pipeline.text_notes(task))
            answer = Outcome(text=text, notes=notes, timings=timings, card=self.card)
        except BaseException as error:
            answer = _explained(error)
        self._writing = False
        self._tickets.answer(ticket, answer)

    def _write_text(self, ticket: Ticket, take_turns: bool) -> str:
        task = ticket.task
        assert isinstance(task, TextTask)
        last = time.perf_counter()

        def on_token(count: int) -> None:
            nonlocal last
            if ticket.cancelled.is_set() or self._tickets.closed:
                raise Cancelled("cancelled")
            self._tell(ticket, Progress("write", count, task.decoding.max_tokens or 0))
            if take_turns and time.perf_counter() - last >= self._step_seconds:
                self._tend_pictures()
                last = time.perf_counter()

        return self._pipeline.write(task, on_token)

    def _survive(self, attempt: Callable[[], T], again: Callable[[], T]) -> T:
        """The result of an attempt or, if memory ran out, of another one after every cache was freed."""
        try:
            return attempt()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Out here the traceback is gone, and with it what it kept alive: the tensors of the attempt.
        self._free_memory()
        return again()

    def _free_memory(self) -> None:
        """Free whatever can be made again. Not to be called while an exception is handled."""
        self._pipeline.forget()
        self._denoiser.forget()
        gc.collect()
        torch.cuda.empty_cache()


def _tokens(flights: Iterable[_Flight]) -> int:
    return sum(flight.tokens for flight in flights)


def _explained(error: BaseException) -> Exception:
    """What the caller of a task is told: running out of memory as what it can act on.

    Without the traceback, which keeps tensors for as long as anyone keeps the error; it is in the log.
    """
    if is_out_of_memory(error):
        return _too_big()
    if not isinstance(error, Cancelled | ValueError | OSError):
        log.error("a task failed", exc_info=error)
    traceback.clear_frames(error.__traceback__)
    if not isinstance(error, Exception):  # such as SystemExit, which must not end the thread that waits
        return RuntimeError(f"the task ended with {error!r}")
    return error.with_traceback(None)


def _too_big() -> OutOfMemory:
    return OutOfMemory("the device has too little memory for this request; ask for a smaller picture")
