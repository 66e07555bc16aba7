"""The text tasks under way: they are begun, written a token at a time, and answered."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from omnigen2.engine.device_memory import DeviceMemory
from omnigen2.engine.running import Running, RunningTasks
from omnigen2.engine.tickets import Tickets, too_big
from omnigen2.memory.device import is_out_of_memory
from omnigen2.memory.weights import HERE
from omnigen2.network.writing import Text, Writer
from omnigen2.pipeline import Pipeline
from omnigen2.task import Outcome, Progress, TextTask, Ticket

TEXTS_AT_ONCE = 8
"""Texts up to which others join that are not much shorter: more would slow all of them down."""
HOLD_S = 1.0
"""Seconds that texts are written in a row where the weights have to come first, as that takes long."""


@dataclass(eq=False)
class _Writing(Running):
    """A task whose text is being written; each has the size 1."""

    text: Text
    notes: list[str]

    @property
    def done(self) -> bool:
        return self.text.done

    @property
    def share_left(self) -> float:
        return 1 - len(self.text.written) / self.text.limit


class RunningTexts(RunningTasks[TextTask, _Writing]):
    """The text tasks under way."""

    kind = TextTask

    def __init__(
        self, pipeline: Pipeline, tickets: Tickets, memory: DeviceMemory, company: Callable[[], bool]
    ):
        super().__init__(pipeline, tickets, memory, TEXTS_AT_ONCE, company)
        self._writer = Writer(pipeline.language)
        memory.caches.append(lambda: self._writer.forget())

    def clear(self) -> None:
        super().clear()
        self._writer = Writer(self._pipeline.language)

    def _size(self, task: TextTask) -> int:
        return 1

    def _begun(self, ticket: Ticket, task: TextTask) -> _Writing:
        started = time.perf_counter()
        text, notes = self._pipeline.begin_text(task), self._pipeline.text_notes(task)
        entry = _Writing(ticket, self._size(task), self._work(task), started, False, text, notes)
        self._tell(entry)
        ticket.task = replace(task, images=())  # they were read, and take memory
        return entry

    def _joined(self, entry: _Writing) -> None:
        self._writer.add(entry.text)

    def _left(self, entry: _Writing) -> None:
        self._writer.remove(entry.text)

    def _suspend(self, entry: _Writing) -> None:
        try:
            self._writer.set_aside(entry.text)
        except Exception as error:
            self._fail(entry, too_big() if is_out_of_memory(error) else error)
        else:
            super()._suspend(entry)

    def _outcome(self, entry: _Writing) -> Outcome:
        text = self._pipeline.language.read_out(entry.text)
        timings = {"write_ms": 1000 * (time.perf_counter() - entry.started)}
        notes, card = tuple(entry.notes), self._pipeline.card
        return Outcome(text=text, notes=notes, timings=timings, card=card)

    # -- tokens ---

    def _step(self, moving: Sequence[_Writing]) -> None:
        """Write a token of each text, or more where weights have to come first."""
        weights = self._pipeline.language.weights
        until = time.perf_counter() + (0.0 if weights is HERE else HOLD_S)
        try:
            with weights:
                while self._write_token() and time.perf_counter() < until and not self._tickets.closed:
                    self.drop_cancelled()
            return
        except Exception as error:
            if not is_out_of_memory(error):
                for entry in self._running:
                    self._fail(entry, error)
                return
        if self._running:
            self._shrink(self._running)

    def _write_token(self) -> bool:
        """Write a token of each text; whether all of them go on."""
        started = time.perf_counter()
        running = self._running
        for entries in [running] if self._writer.together else [(entry,) for entry in running]:
            self._write_next(entries)
        self._step_seconds = time.perf_counter() - started
        return bool(self._running) and not any(entry.done for entry in self._running)

    def _write_next(self, entries: Sequence[_Writing]) -> None:
        """Write a token of texts that share a forward. Raises only what says that memory ran out."""
        try:
            self._writer.step([entry.text for entry in entries])
        except Exception as error:
            if is_out_of_memory(error):
                raise
            for entry in entries:
                self._fail(entry, error)
            return
        for entry in entries:
            entry.retrying = False
            try:
                self._tell(entry)
            except BaseException as error:
                self._fail(entry, error)

    def _tell(self, entry: _Writing) -> None:
        self._tickets.report(entry.ticket, Progress("write", len(entry.text.written), entry.text.limit))
