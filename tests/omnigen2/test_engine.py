"""The engine: many tasks at once, each as if it were alone."""

import threading
from collections.abc import Iterator
from concurrent.futures import wait
from typing import Any

import pytest
from PIL import Image

import omnigen2
from omnigen2.completion import complete_sampling
from omnigen2.engine.engine import Engine
from omnigen2.model import OmniGen2
from omnigen2.params import Decoding, ReferenceSampling
from omnigen2.task import Cancelled, ImageTask, Progress, TextTask
from tests.omnigen2.golden import PIPELINE
from tests.omnigen2.test_model import picture


@pytest.fixture(scope="module")
def omnigen() -> OmniGen2:
    return omnigen2.load(str(PIPELINE / "checkpoint"), device="cpu", dtype="float32")


@pytest.fixture
def engine(omnigen: OmniGen2) -> Iterator[Engine]:
    engine = Engine(omnigen)
    yield engine
    engine.close()


def task(
    omnigen: OmniGen2, prompt: str = "a circle", images: tuple[Image.Image, ...] = (), **asked: Any
) -> ImageTask:
    sampling = ReferenceSampling.model_validate({"steps": 3, "seed": 1, "width": 32, "height": 32} | asked)
    completed = complete_sampling(sampling, [image.size for image in images], omnigen.card)
    return ImageTask(prompt, images, completed.params)


class Gate:
    """A listener that holds the engine's thread at a step until it is opened."""

    def __init__(self, step: int):
        self.step, self.reached, self.open = step, threading.Event(), threading.Event()
        self.seen: list[Progress] = []

    def __call__(self, progress: Progress) -> None:
        self.seen.append(progress)
        if progress.stage in ("denoise", "write") and progress.step == self.step:
            self.reached.set()
            assert self.open.wait(30)


def test_tasks_in_company_give_what_they_give_alone(engine: Engine, omnigen: OmniGen2) -> None:
    tasks = [
        task(omnigen, "a red circle"),
        task(omnigen, "make it green", (picture(32, 48),), width=None, height=None, steps=5),
        task(omnigen, "both", (picture(48, 32), picture(16, 64)), width=64, cfg_range=(0.3, 0.8)),
        task(omnigen, "a star", num_images=3, scheduler="dpmsolver++", steps=4, text_guidance_scale=1.0),
    ]
    gate = Gate(step=1)
    first = engine.submit(task(omnigen, "a first one", steps=6), gate)
    assert gate.reached.wait(30)
    tickets = [engine.submit(each, lambda progress: None) for each in tasks]
    gate.open.set()
    wait([first.future, *(ticket.future for ticket in tickets)], timeout=60)
    for each, ticket in zip(tasks, tickets, strict=True):
        together = ticket.future.result().pictures
        alone = engine.submit(each).future.result(60).pictures
        assert len(together) == each.sampling.num_images
        assert [image.tobytes() for image in together] == [image.tobytes() for image in alone]


def test_a_short_task_overtakes_a_long_one(engine: Engine, omnigen: OmniGen2) -> None:
    gate = Gate(step=2)
    long = engine.submit(task(omnigen, steps=200), gate)
    assert gate.reached.wait(30)
    gate.open.set()
    engine.submit(task(omnigen, "a star", steps=1)).future.result(60)
    assert not long.future.done()
    long.cancel()
    with pytest.raises(Cancelled):
        long.future.result(60)


def test_progress_tells_every_stage_and_step(engine: Engine, omnigen: OmniGen2) -> None:
    seen: list[Progress] = []
    outcome = engine.submit(task(omnigen), seen.append).future.result(60)
    assert [(p.stage, p.step, p.steps) for p in seen] == [
        ("encode", 0, 0), ("denoise", 1, 3), ("denoise", 2, 3), ("denoise", 3, 3), ("decode", 0, 0),
    ]  # fmt: skip
    assert outcome.timings.keys() == {"encode_ms", "denoise_ms", "decode_ms"}


def test_a_cancelled_task_is_gone_before_the_next_step(engine: Engine, omnigen: OmniGen2) -> None:
    gate = Gate(step=2)
    ticket = engine.submit(task(omnigen, steps=200), gate)
    assert gate.reached.wait(30)
    ticket.cancel()
    gate.open.set()
    with pytest.raises(Cancelled):
        ticket.future.result(60)
    assert gate.seen[-1].step == 2
    assert not engine.busy()
    assert engine.submit(task(omnigen)).future.result(60).pictures


def test_a_preview_is_made_when_it_is_wanted(engine: Engine, omnigen: OmniGen2) -> None:
    gate = Gate(step=2)
    ticket = engine.submit(task(omnigen, steps=5), gate)
    assert gate.reached.wait(30)
    ticket.wants_preview.set()
    gate.open.set()
    ticket.future.result(60)
    shown = [p.step for p in gate.seen if p.preview is not None]
    assert shown == [3]
    assert not ticket.wants_preview.is_set()


def test_pictures_go_on_while_text_is_written(engine: Engine, omnigen: OmniGen2) -> None:
    gate = Gate(step=1)
    question = TextTask("what is this?", (picture(),), Decoding(max_tokens=60, temperature=1.0, seed=3))
    text = engine.submit(question, gate)
    assert gate.reached.wait(30)
    made = engine.submit(task(omnigen, steps=2))
    gate.open.set()
    assert made.future.result(60).pictures
    assert text.future.result(60).text == omnigen.describe(
        [picture()], "what is this?", max_tokens=60, temperature=1.0, seed=3
    )


def test_text_can_be_cancelled_while_it_is_written(engine: Engine) -> None:
    gate = Gate(step=3)
    question = TextTask("what is this?", (), Decoding(max_tokens=2000, temperature=1.0, seed=1))
    ticket = engine.submit(question, gate)
    assert gate.reached.wait(30)
    ticket.cancel()
    gate.open.set()
    with pytest.raises(Cancelled):
        ticket.future.result(60)


def test_a_task_that_cannot_be_prepared_harms_no_other(engine: Engine, omnigen: OmniGen2) -> None:
    good, bad = engine.submit(task(omnigen)), engine.submit(task(omnigen, prompt=" "))
    with pytest.raises(ValueError, match="prompt"):
        bad.future.result(60)
    assert good.future.result(60).pictures


def test_a_listener_that_fails_ends_its_own_task_only(engine: Engine, omnigen: OmniGen2) -> None:
    def fail(progress: Progress) -> None:
        if progress.step == 1:
            raise RuntimeError("the listener broke")

    good, bad = engine.submit(task(omnigen)), engine.submit(task(omnigen), fail)
    with pytest.raises(RuntimeError, match="the listener broke"):
        bad.future.result(60)
    assert good.future.result(60).pictures


def test_there_is_room_until_the_batch_is_full(omnigen: OmniGen2) -> None:
    one = task(omnigen, steps=50)
    engine = Engine(omnigen, tokens_in_flight=2 * omnigen.pipeline.step_tokens(one) + 1)
    gate = Gate(step=1)
    try:
        assert engine.has_room(one)
        tickets = [engine.submit(one, gate), engine.submit(one)]
        assert gate.reached.wait(30)
        assert not engine.has_room(one)  # the second one waits to join
        gate.open.set()
        for ticket in tickets:
            ticket.cancel()
            with pytest.raises(Cancelled):
                ticket.future.result(60)
        assert engine.has_room(one)
    finally:
        engine.close()


def test_closing_fails_what_runs_and_what_waits(omnigen: OmniGen2) -> None:
    engine = Engine(omnigen)
    gate = Gate(step=1)
    tickets = [engine.submit(task(omnigen, steps=100), gate), engine.submit(task(omnigen, steps=100))]
    assert gate.reached.wait(30)
    closing = threading.Thread(target=engine.close)
    closing.start()
    gate.open.set()
    closing.join(60)
    for ticket in tickets:
        with pytest.raises(Cancelled, match="unloaded"):
            ticket.future.result(60)
    with pytest.raises(Cancelled, match="unloaded"):
        engine.submit(task(omnigen))
