"""Who has how much of the device: measured with stand-ins for its work that take a known CPU time."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

import omnigen2
from omnigen2.denoise import Denoiser, Sample
from omnigen2.engine.engine import Engine
from omnigen2.engine.turns import Turns
from omnigen2.model import OmniGen2
from omnigen2.network.writing import Text, Writer
from omnigen2.params import Decoding
from omnigen2.task import Progress, TextTask, Ticket
from tests.omnigen2.golden import PIPELINE
from tests.omnigen2.test_engine import task

QUESTION = TextTask("what is this?", (), Decoding(max_tokens=2000, temperature=0.0))


class Device:
    """Idles instead of computing, and knows for how long it did so for each kind of work: in CPU time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.text_s, self.token_s, self.used = 0.01, 0.0, {"pictures": 0.0, "texts": 0.0}
        device = self

        def step(self: Denoiser, chosen: Sequence[Sample]) -> list[Sample]:
            device.idle("pictures", sum(len(sample.tokens) for sample in chosen) * device.token_s)
            for sample in chosen:
                sample.index += 1
            return []

        def write(self: Writer, chosen: Sequence[Text]) -> None:
            device.idle("texts", device.text_s)
            for text in chosen:
                text.written.append(0)

        monkeypatch.setattr(Denoiser, "step", step)
        monkeypatch.setattr(Writer, "step", write)

    def idle(self, kind: str, seconds: float) -> None:
        started = time.thread_time()
        while time.thread_time() < started + seconds:
            time.sleep(0)  # other threads may go on
        self.used[kind] += time.thread_time() - started

    def picture_share(self, seconds: float) -> float:
        """The share of pictures in the next so many seconds that are used."""
        before = dict(self.used)
        while sum(self.used.values()) < sum(before.values()) + seconds:
            time.sleep(0.05)
        used = {kind: self.used[kind] - before[kind] for kind in before}
        return used["pictures"] / sum(used.values())


@pytest.fixture(scope="module")
def omnigen() -> OmniGen2:
    return omnigen2.load(str(PIPELINE / "checkpoint"), device="cpu", dtype="float32")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


@pytest.fixture
def started(omnigen: OmniGen2) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def start(**given: Any) -> Engine:
        engines.append(Engine(omnigen, **given))
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


class Steps:
    """A listener that counts."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, progress: Progress) -> None:
        self.count += progress.stage in ("denoise", "write")


@pytest.mark.parametrize(("step_s", "text_s"), [(0.06, 0.006), (0.006, 0.06), (0.02, 0.02)])
def test_pictures_and_texts_have_half_of_the_device_each(
    started: Callable[..., Engine], omnigen: OmniGen2, device: Device, step_s: float, text_s: float
) -> None:
    engine = started()
    device.token_s, device.text_s = step_s / 4, text_s  # a picture of 32 x 32 pixels has 4 tokens
    engine.submit(task(omnigen, steps=1000))
    for _ in range(3):
        engine.submit(QUESTION)
    time.sleep(0.2)
    share = device.picture_share(1.0)
    print(f"step {1000 * step_s:.0f} ms, token {1000 * text_s:.0f} ms: pictures have {share:.0%}")
    assert 0.4 < share < 0.6


@pytest.mark.parametrize("together", [False, True], ids=["apart", "together"])
def test_a_small_task_does_not_wait_for_a_long_one_that_fills_the_budget(
    started: Callable[..., Engine], omnigen: OmniGen2, device: Device, together: bool
) -> None:
    big, small = task(omnigen, width=64, height=64, steps=1000), task(omnigen, steps=4)
    engine = started(tokens_in_flight=omnigen.pipeline.step_tokens(big))
    engine._pictures._denoiser.together = together
    device.token_s = 0.05 / 16
    counted = Steps()
    engine.submit(big, counted)
    while counted.count < 2:
        time.sleep(0.01)
    assert not engine.has_room(task(omnigen, width=64, height=64, steps=900))  # not much shorter
    assert engine.has_room(small)
    before, began = counted.count, time.perf_counter()
    engine.submit(small).future.result(30)
    print(f"4 steps took {time.perf_counter() - began:.2f} s; {counted.count - before} of 1000 went by")
    assert counted.count - before <= 4


def test_many_small_tasks_one_after_the_other_leave_a_long_one_its_half(
    started: Callable[..., Engine], omnigen: OmniGen2, device: Device
) -> None:
    big = task(omnigen, width=64, height=64, steps=1000)
    engine = started(tokens_in_flight=omnigen.pipeline.step_tokens(big))
    device.token_s = 0.016 / 16
    counted = Steps()
    engine.submit(big, counted)
    ends = time.perf_counter() + 1.5
    waiting: list[Ticket] = []
    while time.perf_counter() < ends:
        waiting = [each for each in waiting if not each.future.done()]
        while len(waiting) < 2:
            waiting.append(engine.submit(task(omnigen, steps=4)))
        time.sleep(0.001)
    share = counted.count * 0.016 / device.used["pictures"]
    print(f"the long task had {share:.0%} of the device")
    assert share > 0.25  # two others are there at any time: a third each


def test_a_short_text_does_not_wait_for_many_long_ones(
    started: Callable[..., Engine], omnigen: OmniGen2, device: Device
) -> None:
    engine = started()
    for _ in range(8):
        engine.submit(QUESTION)
    time.sleep(0.3)
    assert not engine.has_room(QUESTION)
    short = TextTask("why?", (), Decoding(max_tokens=4, temperature=0.0))
    assert engine.has_room(short)
    began = time.perf_counter()
    engine.submit(short).future.result(30)
    assert time.perf_counter() - began < 2.0


def test_turns_are_fair_whatever_the_pieces() -> None:
    turns, used = Turns[str](), dict.fromkeys("abc", 0.0)
    pieces = {"a": 30.0, "b": 1.0, "c": 7.0}
    for _ in range(1000):
        guest = turns.order(["a", "b", "c"])[0]
        assert turns.due(guest)
        turns.charge(guest, pieces[guest])
        used[guest] += pieces[guest]
    assert max(used.values()) - min(used.values()) < 2 * max(pieces.values())


def test_who_comes_and_goes_gets_no_more_than_who_stays() -> None:
    turns, used = Turns[str](), {"stays": 0.0, "others": 0.0}
    guests, number = ["stays", "guest 0"], 0
    for _ in range(400):
        guest = turns.order(guests)[0]
        turns.charge(guest, 5.0)
        used["stays" if guest == "stays" else "others"] += 5.0
        if guest != "stays":  # it was done with one piece, and another one comes
            turns.forget(guest)
            number += 1
            guests = ["stays", f"guest {number}"]
    assert 0.4 < used["stays"] / sum(used.values()) < 0.6
