"""What goes wrong in one task, in a client's callbacks or in the engine itself harms nobody else."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest

import omnigen2
from omnigen2.denoise import Denoiser
from omnigen2.engine.engine import Engine
from omnigen2.model import OmniGen2
from omnigen2.network.writing import Choice, Text
from omnigen2.params import Decoding
from omnigen2.task import Cancelled, ImageTask, Outcome, Progress, Task, TextTask, Ticket
from tests.omnigen2.golden import PIPELINE
from tests.omnigen2.test_engine import Gate, task

QUESTION = TextTask("what is this?", (), Decoding(max_tokens=4, temperature=1.0, seed=1))


@pytest.fixture(scope="module")
def omnigen() -> OmniGen2:
    return omnigen2.load(str(PIPELINE / "checkpoint"), device="cpu", dtype="float32")


@pytest.fixture
def engine(omnigen: OmniGen2) -> Iterator[Engine]:
    engine = Engine(omnigen)
    yield engine
    engine.close()


@pytest.fixture
def held(engine: Engine, omnigen: OmniGen2) -> Iterator[Callable[[], Ticket]]:
    """The engine is held at the first step of a picture; the call lets it go on, and gives the ticket."""
    gate = Gate(step=1)
    ticket = engine.submit(task(omnigen), gate)
    assert gate.reached.wait(30)

    def go_on() -> Ticket:
        gate.open.set()
        return ticket

    yield go_on
    gate.open.set()


class SubmitsOnce(threading.Event):
    """The `cancelled` of a ticket that submits another task when the engine looks at it."""

    def __init__(self, submit: Callable[[], Ticket]) -> None:
        super().__init__()
        self.submit, self.submitted = submit, list[Ticket]()

    def is_set(self) -> bool:
        if not self.submitted:
            self.submitted.append(self.submit())
        return super().is_set()


@pytest.mark.parametrize("kind", ["picture", "text"])
def test_a_task_may_be_submitted_while_the_engine_looks_at_those_that_wait(
    engine: Engine, omnigen: OmniGen2, held: Callable[[], Ticket], kind: str
) -> None:
    wanted: Task = QUESTION if kind == "text" else task(omnigen)
    waiting = engine.submit(wanted)
    waiting.cancelled = looked_at = SubmitsOnce(lambda: engine.submit(wanted))
    held().future.result(60)
    waiting.future.result(60)
    assert looked_at.submitted
    for ticket in looked_at.submitted:
        ticket.future.result(60)


def test_every_task_of_many_threads_is_answered(engine: Engine, omnigen: OmniGen2) -> None:
    tickets: list[Ticket] = []
    tasks: list[Task] = [task(omnigen, steps=1), QUESTION]

    def client(number: int) -> None:
        for turn in range(8):
            ticket = engine.submit(tasks[turn % 2])
            tickets.append(ticket)
            if (number + turn) % 3:
                ticket.cancel()
            engine.has_room(tasks[0])
            engine.busy()

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(tickets) == 48
    for ticket in tickets:
        assert isinstance(ticket.future.exception(60), Cancelled | None)
    assert not engine.busy()


@pytest.mark.parametrize("failure", [RuntimeError("broken"), SystemExit(1), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("stage", ["encode", "denoise", "decode", "write"])
def test_a_listener_that_raises_anything_ends_its_own_task_only(
    engine: Engine, omnigen: OmniGen2, held: Callable[[], Ticket], stage: str, failure: BaseException
) -> None:
    def fail(progress: Progress) -> None:
        if progress.stage == stage:
            raise failure

    bad = engine.submit(QUESTION if stage == "write" else task(omnigen), fail)
    good = [engine.submit(task(omnigen)), engine.submit(QUESTION)]
    held().future.result(60)
    with pytest.raises(RuntimeError, match=r"broken|SystemExit|KeyboardInterrupt"):
        bad.future.result(60)
    for ticket in good:
        ticket.future.result(60)


def test_a_client_may_break_its_own_future_only(
    engine: Engine, omnigen: OmniGen2, held: Callable[[], Ticket]
) -> None:
    def leave(future: Any) -> None:
        raise SystemExit(1)

    resolved, failing, cancelled, good = (engine.submit(task(omnigen)) for _ in range(4))
    resolved.future.set_result(Outcome(text="my own"))
    failing.future.add_done_callback(leave)
    assert not cancelled.future.cancel()  # only `Ticket.cancel` does
    held().future.result(60)
    for ticket in (failing, cancelled, good):
        assert ticket.future.result(60).pictures
    assert resolved.future.result(60).text == "my own"
    assert engine.submit(QUESTION).future.result(60)


def test_a_task_that_makes_no_sense_fails_alone(
    engine: Engine, omnigen: OmniGen2, held: Callable[[], Ticket]
) -> None:
    whole = task(omnigen)
    strange = [
        ImageTask("a circle", ("no picture",), whole.sampling),  # type: ignore
        ImageTask("a circle", (), whole.sampling.model_copy(update={"steps": None})),
        ImageTask(None, (), whole.sampling),  # type: ignore
        TextTask("what?", (None,), QUESTION.decoding),  # type: ignore
    ]
    assert all(engine.has_room(each) in (True, False) for each in strange)
    bad = [engine.submit(each) for each in strange]
    good = engine.submit(whole)
    assert held().future.result(60).pictures
    assert all(ticket.future.exception(60) for ticket in bad)
    assert good.future.result(60).pictures


@pytest.mark.parametrize("failure", [KeyError("lost"), SystemExit(3)], ids=repr)
def test_after_a_failure_of_its_own_the_engine_goes_on_with_what_waits(
    engine: Engine,
    omnigen: OmniGen2,
    held: Callable[[], Ticket],
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
) -> None:
    add, failures = Denoiser.add, [failure]

    def fail_once(self: Denoiser, samples: Any) -> None:
        if failures:
            raise failures.pop()
        add(self, samples)

    monkeypatch.setattr(Denoiser, "add", fail_once)
    joining, waiting, text = (
        engine.submit(task(omnigen)),
        engine.submit(task(omnigen)),
        engine.submit(QUESTION),
    )
    in_flight = held()
    for ticket in (in_flight, joining):
        with pytest.raises(RuntimeError, match="the engine failed"):
            ticket.future.result(60)
    assert waiting.future.result(60).pictures
    assert text.future.result(60)
    assert not engine.busy()


def test_a_text_that_fails_on_a_cpu_fails_alone(
    engine: Engine, omnigen: OmniGen2, held: Callable[[], Ticket], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Choice.__call__

    def broken(self: Choice, ids: Any, logits: Any) -> Any:
        if bad and self is bad[0].choice and len(bad[0].written) > 1:
            raise KeyError("lost")
        return whole(self, ids, logits)

    bad: list[Text] = []
    begin_text = omnigen.pipeline.begin_text

    def begun(asked: TextTask) -> Text:
        text = begin_text(asked)
        if asked.question == "bad":
            bad.append(text)
        return text

    monkeypatch.setattr(Choice, "__call__", broken)
    monkeypatch.setattr(omnigen.pipeline, "begin_text", begun)
    good, failing = engine.submit(QUESTION), engine.submit(replace(QUESTION, question="bad"))
    held().future.result(60)
    with pytest.raises(KeyError, match="lost"):
        failing.future.result(60)
    assert good.future.result(60).text is not None


def test_a_text_that_is_cancelled_while_its_weights_cannot_leave_harms_no_other(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Leaving(AbstractContextManager[None]):
        def __exit__(self, *_: object) -> None:
            if others and failures:
                raise failures.pop()

    others, failures = list[Ticket](), [MemoryError("no")]

    def listen(progress: Progress) -> None:
        if progress.step == 2:
            others.append(engine.submit(QUESTION))
            cancelled.cancel()

    monkeypatch.setattr(engine._pipeline.language, "weights", Leaving())
    cancelled = engine.submit(QUESTION, listen)
    with pytest.raises(Cancelled):
        cancelled.future.result(60)
    assert others[0].future.result(60).text is not None


def test_a_failed_task_keeps_nothing_of_the_model_alive(
    engine: Engine, omnigen: OmniGen2, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise KeyError("lost")

    monkeypatch.setattr(omnigen.pipeline.transformer, "forward", fail)
    error = engine.submit(task(omnigen)).future.exception(60)
    assert isinstance(error, KeyError) and error.__traceback__ is None


def test_a_stalled_device_shows(engine: Engine, omnigen: OmniGen2) -> None:
    assert engine.stalled_s() == 0.0
    gate = Gate(step=1)
    ticket = engine.submit(task(omnigen), gate)
    assert gate.reached.wait(30)
    seen = [engine.stalled_s() for _ in range(1000)]
    assert seen == sorted(seen) and 0 < seen[0] < seen[-1]
    gate.open.set()
    ticket.future.result(60)
    assert engine.stalled_s() == 0.0


def test_closing_again_does_nothing(engine: Engine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(Cancelled, match="unloaded"):
        engine.submit(QUESTION)
    assert not engine.busy()


@pytest.mark.parametrize("asked", ["picture", "text"])
def test_a_callback_may_close_the_engine(omnigen: OmniGen2, asked: str) -> None:
    engine = Engine(omnigen)

    def close(progress: Progress) -> None:
        engine.close()

    wanted: Task = QUESTION if asked == "text" else task(omnigen)
    tickets = [engine.submit(wanted, close), engine.submit(task(omnigen)), engine.submit(QUESTION)]
    for ticket in tickets:
        with pytest.raises(Cancelled):
            ticket.future.result(60)
    engine.close()
