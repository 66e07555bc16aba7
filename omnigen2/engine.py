"""One thread that owns the device and keeps it busy: continuous batching of every running task.

The unit of work is one denoising step of all pictures together. Tasks join and leave between steps, so a
small one never waits for a big one to end, and a cancelled one is dropped before the next step. While text is
written, pictures and text take turns, each as long as the other. The engine knows tasks and tickets; it knows
nothing of requests, jobs or the store.

Only `close` ends the thread. A task that fails, or whose callbacks fail, fails alone; a failure that belongs
to no single task fails the running ones, and the engine continues with those that wait.
"""

import gc
import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import torch
from PIL.Image import Image

from omnigen2.cost import cost
from omnigen2.denoise import Denoiser, Sample
from omnigen2.device import is_out_of_memory
from omnigen2.model import OmniGen2
from omnigen2.task import Cancelled, ImageTask, Outcome, Progress, Task, TextTask, Ticket
from omnigen2.tickets import Kind, Tickets, explained, too_big

TOKENS_IN_FLIGHT = 24_000
"""Tokens per step up to which further tasks are admitted: enough for a large GPU; more only adds delay."""
RECOVERY_STEPS = 256
"""Successful steps after which a reduced token budget is back at its full size."""

T = TypeVar("T")
log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Running:
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
        self._running: tuple[_Running, ...] = ()
        self._writing = False
        self._preempted: list[_Running] = []  # removed for lack of memory; they resume later
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
        """Seconds since the device thread last made progress; 0.0 without work."""
        return self._tickets.stalled_s()

    def memory_bytes(self) -> int:
        """Bytes the model keeps on its device."""
        return self._pipeline.memory_bytes()

    def close(self) -> None:
        """Fail running and waiting tasks with `Cancelled` and free the device. Idempotent."""
        self._tickets.close()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # -- the device thread ---

    def _run(self) -> None:
        while self._tickets.wait():
            try:
                self._step_pictures()
                if ticket := self._tickets.first(TextTask):
                    self._tickets.take(ticket)
                    self._write(ticket)
            except BaseException as error:
                self._start_over(Task, error)
        gone = Cancelled("the model was unloaded")
        for ticket in (*self._tickets.taken(), *self._tickets.waiting()):
            self._tickets.answer(ticket, gone)
        self._clear_running()
        self._pipeline.forget()

    def _start_over(self, kind: Kind, error: BaseException) -> None:
        """After a failure that belongs to no single task: fail the running tasks, or else those that wait."""
        log.error("the engine failed and starts over", exc_info=error)
        self._clear_running()
        failure = RuntimeError(f"the engine failed: {error!r}")
        for ticket in self._tickets.taken(kind) or self._tickets.waiting(kind):
            self._tickets.answer(ticket, failure)
        traceback.clear_frames(error.__traceback__)

    def _clear_running(self) -> None:
        self._running, self._preempted = (), []
        self._denoiser = Denoiser(self._pipeline.transformer)

    def _step_pictures(self) -> None:
        """Admit waiting image tasks, take one step with all of them, finish those that are done."""
        try:
            torch.set_num_threads(self._threads)  # each time, as the setting is partly process-wide
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
            for entry in self._running:
                if entry.done:
                    self._remove(entry)
                    self._finish(entry)
        except BaseException as error:
            self._start_over(ImageTask, error)

    def _fits(self, task: Task) -> bool:
        """Whether a task may join the running ones now."""
        assert isinstance(task, ImageTask)
        tasks = self._running
        if not tasks and (not self._writing or self._budget == self._whole_budget):
            return True
        return _tokens(tasks) + self._pipeline.step_tokens(task) <= self._budget

    def _drop_cancelled(self) -> None:
        """Drop every ticket that was cancelled, waiting or running."""
        for entry in (*self._running, *self._preempted):
            if entry.ticket.cancelled.is_set():
                self._fail(entry, Cancelled("cancelled"))
        for ticket in self._tickets.waiting():
            if ticket.cancelled.is_set():
                self._tickets.answer(ticket, Cancelled("cancelled"))

    def _admit(self, ticket: Ticket) -> None:
        task = ticket.task
        assert isinstance(task, ImageTask)
        started = time.perf_counter()

        prepare = partial(self._pipeline.prepare, task)
        try:
            self._report_progress(ticket, Progress("encode"))
            samples, notes = self._survive(prepare, prepare)
        except BaseException as error:
            if not (is_out_of_memory(error) and self._in_company()):
                self._tickets.answer(ticket, explained(error))
                return
        else:
            timings = {"encode_ms": 1000 * (time.perf_counter() - started)}
            self._join(_Running(ticket, task, self._pipeline.step_tokens(task), samples, notes, timings))
            return
        self._free_memory()
        self._budget = _tokens(self._running)
        self._tickets.put_back(ticket)

    def _in_company(self) -> bool:
        """Whether a task that is not running shares the device's memory with others."""
        return bool(self._running) or self._writing

    def _join(self, entry: _Running) -> None:
        self._running = (*self._running, entry)
        self._denoiser.add(sample for sample in entry.samples if not sample.done)

    def _remove(self, entry: _Running) -> None:
        self._running = tuple(other for other in self._running if other is not entry)
        self._denoiser.remove(entry.samples)

    def _fail(self, entry: _Running, error: BaseException) -> None:
        if entry in self._preempted:
            self._preempted.remove(entry)
        self._remove(entry)
        self._tickets.answer(entry.ticket, explained(error))

    def _preempt(self, entry: _Running) -> None:
        """Suspend a running task until there is memory for it."""
        self._remove(entry)
        self._preempted.append(entry)
        self._budget = 3 * (_tokens(self._running) + entry.tokens) // 4

    def _step(self) -> None:
        started = time.perf_counter()
        moving = [entry for entry in self._running if not entry.done]
        try:
            self._denoiser.step()
            device = self._pipeline.transformer.device
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except Exception as error:
            if not is_out_of_memory(error):  # a step serves all: none of them can go on
                for entry in moving:
                    self._fail(entry, error)
                return
        else:
            self._step_seconds = time.perf_counter() - started
            self._budget = min(self._whole_budget, self._budget + self._whole_budget // RECOVERY_STEPS + 1)
            for entry in moving:
                entry.retrying = False
                self._report(entry)
            return
        self._shrink(moving[-1])

    def _shrink(self, youngest: _Running) -> None:
        """After a step ran out of memory: free caches; suspend the youngest task, or retry a lone one.

        If that does not help, less of the model stays on the device.
        """
        self._free_memory()
        if len(self._running) > 1 or self._writing:
            self._preempt(youngest)
        elif not youngest.retrying:
            youngest.retrying = True
        elif self._pipeline.residency.can_lower:
            self._lower()
        else:
            self._fail(youngest, too_big())

    def _report(self, entry: _Running) -> None:
        """Report the progress of a task, with a preview if one is wanted."""
        first = entry.samples[0]
        preview = self._preview(entry)
        try:
            self._report_progress(entry.ticket, Progress("denoise", first.index, len(first.plan), preview))
        except BaseException as error:
            self._fail(entry, error)

    def _preview(self, entry: _Running) -> Image | None:
        """A small picture if one is wanted and can be made; a failure costs only the preview."""
        wanted = entry.ticket.wants_preview
        if not wanted.is_set():
            return None
        wanted.clear()
        try:
            return self._pipeline.preview(entry.samples[0])
        except Exception:
            log.warning("a preview could not be made", exc_info=True)
        self._free_memory()
        return None

    def _report_progress(self, ticket: Ticket, progress: Progress) -> None:
        self._tickets.progressed()
        ticket.on_progress(progress)

    def _finish(self, entry: _Running) -> None:
        """Decode a task's pictures and answer its ticket."""
        timings = entry.timings
        timings["denoise_ms"] = 1000 * (time.perf_counter() - entry.started)
        started = time.perf_counter()

        def decode() -> list[Image]:
            return self._pipeline.finish(entry.task, entry.samples)

        try:
            self._report_progress(entry.ticket, Progress("decode"))
            pictures = self._survive(decode, decode)
        except BaseException as error:
            if not (is_out_of_memory(error) and self._in_company()):
                self._tickets.answer(entry.ticket, explained(error))
                return
        else:
            timings["decode_ms"] = 1000 * (time.perf_counter() - started)
            outcome = Outcome(tuple(pictures), notes=tuple(entry.notes), timings=timings, card=self.card)
            self._tickets.answer(entry.ticket, outcome)
            return
        self._free_memory()
        self._preempt(entry)

    def _write(self, ticket: Ticket) -> None:
        """Write the text of one task, taking turns with the running pictures."""
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
            answer = explained(error)
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
            self._report_progress(ticket, Progress("write", count, task.decoding.max_tokens or 0))
            if take_turns and time.perf_counter() - last >= self._step_seconds:
                self._step_pictures()
                last = time.perf_counter()

        return self._pipeline.write(task, on_token)

    def _survive(self, attempt: Callable[[], T], again: Callable[[], T]) -> T:
        """The result of `attempt` or, if memory ran out, of `again` once caches and weights made room."""
        try:
            return attempt()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Outside the handlers, where no traceback keeps the tensors of the attempt alive.
        self._free_memory()
        while True:
            try:
                return again()
            except Exception as error:
                if not (is_out_of_memory(error) and self._pipeline.residency.can_lower):
                    raise
            self._lower()

    def _lower(self) -> None:
        """Keep less of the model on the device."""
        self._free_memory()
        self._pipeline.residency.lower()
        log.warning("out of memory: the model goes on with memory %s", self._pipeline.residency.mode)
        self._free_memory()

    def _free_memory(self) -> None:
        """Free every cache. Not to be called while an exception is handled."""
        self._pipeline.forget()
        self._denoiser.forget()
        gc.collect()
        torch.cuda.empty_cache()


def _tokens(running: Iterable[_Running]) -> int:
    return sum(entry.tokens for entry in running)
