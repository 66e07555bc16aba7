"""The image tasks under way: they are prepared, denoised step by step, and decoded.

A step takes as many of them as the token budget allows. Where there are more, they take turns (see
`omnigen2.engine.turns`). On a CPU, where company saves nothing, a step is of one task.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from PIL.Image import Image

from omnigen2.denoise import Denoiser, Sample
from omnigen2.engine.device_memory import DeviceMemory
from omnigen2.engine.running import Running, RunningTasks
from omnigen2.engine.tickets import Tickets
from omnigen2.engine.turns import Turns
from omnigen2.memory.device import is_out_of_memory
from omnigen2.pipeline import Pipeline
from omnigen2.task import ImageTask, Outcome, Progress, Ticket

RECOVERY_STEPS = 256
"""Successful steps after which a reduced token budget is back at its full size."""

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Pictures(Running):
    """A task whose pictures are being denoised; its size is the estimated number of tokens of a step."""

    task: ImageTask
    samples: list[Sample]
    notes: list[str]
    timings: dict[str, float]

    @property
    def done(self) -> bool:
        return all(sample.done for sample in self.samples)

    @property
    def share_left(self) -> float:
        first = self.samples[0]
        return 1 - first.index / (len(first.plan) or 1)


class RunningPictures(RunningTasks[ImageTask, _Pictures]):
    """The image tasks under way."""

    kind = ImageTask

    def __init__(
        self,
        pipeline: Pipeline,
        tickets: Tickets,
        memory: DeviceMemory,
        room: int,
        company: Callable[[], bool],
    ):
        """`room`: tokens of a step, also those up to which tasks join."""
        super().__init__(pipeline, tickets, memory, room, company)
        self._whole_room = room
        self._turns = Turns[_Pictures]()
        self._denoiser = Denoiser(pipeline.transformer)
        memory.caches.append(lambda: self._denoiser.forget())

    def clear(self) -> None:
        super().clear()
        self._turns = Turns[_Pictures]()
        self._denoiser = Denoiser(self._pipeline.transformer)

    def _size(self, task: ImageTask) -> int:
        return self._pipeline.step_tokens(task)

    def _begun(self, ticket: Ticket, task: ImageTask) -> _Pictures:
        started = time.perf_counter()
        size, work = self._size(task), self._work(task)
        self._tickets.report(ticket, Progress("encode"))
        samples, notes = self._pipeline.prepare(task)
        task = ticket.task = replace(task, images=())  # they were read, and take memory
        ended = time.perf_counter()
        return _Pictures(
            ticket, size, work, ended, False,
            task, samples, notes, timings={"encode_ms": 1000 * (ended - started)},
        )  # fmt: skip

    def _joined(self, entry: _Pictures) -> None:
        self._denoiser.add(sample for sample in entry.samples if not sample.done)

    def _left(self, entry: _Pictures) -> None:
        self._denoiser.remove(entry.samples)
        self._turns.forget(entry)

    def _outcome(self, entry: _Pictures) -> Outcome:
        started = time.perf_counter()
        self._tickets.report(entry.ticket, Progress("decode"))
        pictures = self._pipeline.finish(entry.task, entry.samples)
        ended = time.perf_counter()
        entry.timings["denoise_ms"] = 1000 * (started - entry.started)
        entry.timings["decode_ms"] = 1000 * (ended - started)
        notes, card = tuple(entry.notes), self._pipeline.card
        return Outcome(tuple(pictures), notes=notes, timings=entry.timings, card=card)

    # -- steps ---

    def _step(self, moving: Sequence[_Pictures]) -> None:
        chosen = self._chosen(moving)
        started = time.perf_counter()
        try:
            self._denoiser.step([sample for entry in chosen for sample in entry.samples])
            device = self._pipeline.transformer.device
            if device.type == "cuda":
                torch.cuda.synchronize(device)
        except Exception as error:
            if not is_out_of_memory(error):  # a step serves all of them: none can go on
                for entry in chosen:
                    self._fail(entry, error)
                return
        else:
            self._step_seconds = time.perf_counter() - started
            self._room = min(self._whole_room, self._room + self._whole_room // RECOVERY_STEPS + 1)
            for entry in chosen:
                entry.retrying = False
                if len(chosen) < len(moving):
                    self._turns.charge(entry, self._step_seconds * entry.size / (_tokens(chosen) or 1))
                self._report(entry)
            return
        self._shrink(chosen)

    def _chosen(self, moving: Sequence[_Pictures]) -> Sequence[_Pictures]:
        """Those that make the next step."""
        if self._denoiser.together and _tokens(moving) <= self._room:
            return moving
        first, *others = self._turns.order(moving)
        chosen = [first]
        for entry in others if self._denoiser.together else ():
            if self._turns.due(entry) and _tokens(chosen) + entry.size <= self._room:
                chosen.append(entry)
        return chosen

    def _shrink(self, chosen: Sequence[_Pictures]) -> None:
        """Take fewer tasks at once, if there were several."""
        if len(chosen) == 1:
            super()._shrink(chosen)
            return
        self._memory.free()
        self._room = 3 * _tokens(chosen) // 4

    def _report(self, entry: _Pictures) -> None:
        """Report the progress of a task, with a preview if one is wanted."""
        first = entry.samples[0]
        preview = self._preview(entry)
        try:
            self._tickets.report(entry.ticket, Progress("denoise", first.index, len(first.plan), preview))
        except BaseException as error:
            self._fail(entry, error)

    def _preview(self, entry: _Pictures) -> Image | None:
        """A small picture if one is wanted and can be made; a failure costs only the preview."""
        wanted = entry.ticket.wants_preview
        if not wanted.is_set():
            return None
        wanted.clear()
        try:
            return self._pipeline.preview(entry.samples[0])
        except Exception:
            log.warning("a preview could not be made", exc_info=True)
        self._memory.free()
        return None


def _tokens(running: Iterable[_Pictures]) -> int:
    return sum(entry.size for entry in running)
