"""Running out of memory, with allocations that must really be freed before there is room again."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import omnigen2
from omnigen2.denoise import Denoiser
from omnigen2.engine import running_pictures
from omnigen2.engine.engine import Engine
from omnigen2.memory.device import is_out_of_memory
from omnigen2.model import OmniGen2
from omnigen2.network.writing import Writer
from omnigen2.params import Decoding
from omnigen2.task import ImageTask, OutOfMemory, Progress, TextTask
from tests.omnigen2.golden import PIPELINE
from tests.omnigen2.test_engine import Gate, task
from tests.omnigen2.test_model import picture

QUESTION = TextTask("what is this?", (), Decoding(max_tokens=6, temperature=1.0, seed=1))
LONG_QUESTION = TextTask("what is this?", (), Decoding(max_tokens=40, temperature=1.0, seed=1))
TOO_BIG = "ask for a smaller picture"


class Memory:
    """A device's memory of `size` bytes: what is taken is freed when nothing refers to it any more."""

    def __init__(self, size: int) -> None:
        self.size, self.live, self.refused = size, 0, 0

    def take(self, size: int) -> Tensor:
        if self.live + size > self.size:
            self.refused += 1
            raise torch.OutOfMemoryError(
                f"{self.live} of {self.size} bytes are taken, {size} more are needed"
            )
        tensor = torch.empty(size, dtype=torch.uint8)
        self.live += size
        weakref.finalize(tensor, self._free, size).atexit = False
        return tensor

    def _free(self, size: int) -> None:
        self.live -= size

    def needed_for(self, work: Callable[..., Any], *sizes: int) -> Callable[..., Any]:
        """`work`, while allocations of such sizes are alive."""

        def with_memory(*given: Any, **more: Any) -> Any:
            layers: list[Tensor] = []
            layers.extend(
                map(self.take, sizes)
            )  # one after another: where it fails, the first ones are alive
            return work(*given, **more)

        return with_memory


@pytest.fixture(scope="module")
def omnigen() -> OmniGen2:
    return omnigen2.load(str(PIPELINE / "checkpoint"), device="cpu", dtype="float32")


@pytest.fixture
def memory(omnigen: OmniGen2) -> Iterator[Memory]:
    """1000 bytes, of which 300 hold a remembered caption that can be forgotten."""
    memory = Memory(1000)
    omnigen.pipeline.forget()
    omnigen.pipeline._captions.get("remembered", lambda: memory.take(300))  # type: ignore
    yield memory
    omnigen.pipeline.forget()


@pytest.fixture
def engine(omnigen: OmniGen2) -> Iterator[Engine]:
    engine = Engine(omnigen)
    yield engine
    engine.close()


def needing(
    omnigen: OmniGen2, memory: Memory, monkeypatch: pytest.MonkeyPatch, stage: str, *sizes: int
) -> None:
    """Let a stage of every task need memory."""
    parts: dict[str, tuple[Any, str]] = {
        "encode": (omnigen.pipeline, "prepare"),
        "denoise": (omnigen.pipeline.transformer, "forward"),
        "decode": (omnigen.pipeline, "finish"),
        "write": (omnigen.pipeline, "begin_text"),
        "preview": (omnigen.pipeline, "preview"),
    }
    owner, name = parts[stage]
    monkeypatch.setattr(owner, name, memory.needed_for(getattr(owner, name), *sizes))


@pytest.mark.parametrize("stage", ["encode", "denoise", "decode", "write"])
def test_a_lone_task_is_tried_again_once_caches_and_the_failed_attempt_are_freed(
    engine: Engine, omnigen: OmniGen2, memory: Memory, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    needing(omnigen, memory, monkeypatch, stage, 400, 400)
    engine.submit(QUESTION if stage == "write" else task(omnigen)).future.result(60)
    assert memory.refused == 1


@pytest.mark.parametrize("stage", ["encode", "denoise", "decode", "write"])
def test_a_task_too_big_for_the_whole_device_fails_clearly_and_alone(
    engine: Engine, omnigen: OmniGen2, memory: Memory, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    asked = QUESTION if stage == "write" else task(omnigen)
    with monkeypatch.context() as patch:
        needing(omnigen, memory, patch, stage, 400, 700)
        with pytest.raises(OutOfMemory, match=TOO_BIG):
            engine.submit(asked).future.result(60)
    assert memory.refused == 2 and memory.live == 0
    engine.submit(asked).future.result(60)


def test_a_preview_for_which_there_is_no_memory_is_not_made(
    engine: Engine, omnigen: OmniGen2, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    needing(omnigen, memory, monkeypatch, "preview", 1100)
    gate = Gate(step=1)
    ticket = engine.submit(task(omnigen), gate)
    assert gate.reached.wait(30)
    ticket.wants_preview.set()
    gate.open.set()
    assert ticket.future.result(60).pictures
    assert memory.refused == 1 and not any(progress.preview for progress in gate.seen)


def test_the_youngest_waits_loses_nothing_and_the_budget_comes_back(
    omnigen: OmniGen2, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device where one forward serves all pictures, and needs memory for each of their tokens."""
    monkeypatch.setattr(
        running_pictures, "Denoiser", lambda transformer: Denoiser(transformer, together=True)
    )
    monkeypatch.setattr(running_pictures, "RECOVERY_STEPS", 20)
    engine = Engine(omnigen, tokens_in_flight=4 * omnigen.pipeline.step_tokens(task(omnigen)))
    alone = engine.submit(task(omnigen, "two", seed=2)).future.result(60).pictures[0]
    transformer, whole = omnigen.pipeline.transformer, omnigen.pipeline.transformer.forward

    def forward(tokens: Tensor, *rest: Any) -> Tensor:
        return memory.needed_for(whole, 100 * len(tokens))(tokens, *rest)

    monkeypatch.setattr(transformer, "forward", forward)  # 4 tokens of a picture: 400 bytes
    first, early, last = Gate(step=1), Gate(step=3), Gate(step=60)
    long = engine.submit(task(omnigen, "one", steps=61), listener(first, early, last))
    assert first.reached.wait(30)
    second = engine.submit(task(omnigen, "two", seed=2))
    third = engine.submit(task(omnigen, "three", seed=3))
    first.open.set()
    assert early.reached.wait(30)
    assert memory.refused and not engine.has_room(task(omnigen, num_images=2))
    early.open.set()
    assert second.future.result(60).pictures[0].tobytes() == alone.tobytes()
    assert third.future.result(60).pictures
    assert last.reached.wait(30)
    assert engine.has_room(task(omnigen, num_images=2))
    last.open.set()
    assert long.future.result(60).pictures
    engine.close()


def listener(*gates: Gate) -> Callable[[Progress], None]:
    def listen(progress: Progress) -> None:
        for gate in gates:
            gate(progress)

    return listen


@pytest.mark.parametrize("stage", ["prepare", "finish"])
def test_a_task_that_does_not_fit_beside_others_waits_until_it_does(
    engine: Engine, omnigen: OmniGen2, memory: Memory, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    gate = Gate(step=1)
    other = engine.submit(task(omnigen, "other", steps=3), gate)
    assert gate.reached.wait(30)
    held = [memory.take(300)]
    other.future.add_done_callback(lambda _: held.clear())
    whole = getattr(omnigen.pipeline, stage)
    needy = memory.needed_for(whole, 800)

    def work(asked: ImageTask, *rest: Any) -> Any:
        return (needy if asked.prompt == "big" else whole)(asked, *rest)

    monkeypatch.setattr(omnigen.pipeline, stage, work)
    big = engine.submit(task(omnigen, "big", steps=1))
    gate.open.set()
    assert big.future.result(60).pictures and other.future.done()
    assert memory.refused >= 2


def test_a_picture_that_does_not_fit_beside_a_text_waits_for_its_end(
    engine: Engine, omnigen: OmniGen2, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(step=1)
    text = engine.submit(QUESTION, gate)
    assert gate.reached.wait(30)
    held = [memory.take(300)]
    text.future.add_done_callback(lambda _: held.clear())
    needing(omnigen, memory, monkeypatch, "denoise", 800)
    made = engine.submit(task(omnigen))
    gate.open.set()
    assert made.future.result(60).pictures and text.future.done()
    assert memory.refused == 1


def test_a_text_that_does_not_fit_beside_pictures_is_written_without_them(
    engine: Engine, omnigen: OmniGen2, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate(step=1)
    made = engine.submit(task(omnigen, steps=50), gate)
    assert gate.reached.wait(30)
    needing(omnigen, memory, monkeypatch, "write", 600)
    needing(omnigen, memory, monkeypatch, "denoise", 600)
    text = engine.submit(QUESTION)
    gate.open.set()
    assert isinstance(text.future.result(60).text, str)
    assert made.future.result(60).pictures


def test_a_text_that_waits_again_still_has_its_images(engine: Engine, omnigen: OmniGen2) -> None:
    asked = TextTask("what is this?", (picture(32, 48),), Decoding(max_tokens=6, temperature=0.0))
    alone = engine.submit(asked).future.result(60).text
    gate, refusals = Gate(step=1), [MemoryError("no")] * 2
    other = engine.submit(task(omnigen, steps=3), gate)
    assert gate.reached.wait(30)

    def listen(progress: Progress) -> None:
        if refusals:
            raise refusals.pop()

    text = engine.submit(asked, listen)
    gate.open.set()
    assert other.future.result(60).pictures and text.future.result(60).text == alone and not refusals


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=repr,
)
def test_every_way_to_run_out_of_memory_is_known(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_a_picture_and_a_text_that_run_out_in_turn_are_both_answered(
    omnigen: OmniGen2, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture is suspended beside the text; that is then alone, and must not wait for the picture."""
    failed: list[str] = []

    def once(owner: type, name: str, when: Callable[[], bool]) -> None:
        whole = owner.step

        def short(*given: Any) -> Any:
            if name not in failed and when():
                failed.append(name)
                raise torch.OutOfMemoryError("too little")
            return whole(*given)

        monkeypatch.setattr(owner, "step", short)

    once(Denoiser, "picture", lambda: engine._texts.running)
    once(Writer, "text", lambda: bool(failed))
    tickets = [engine.submit(task(omnigen, steps=60)), engine.submit(LONG_QUESTION)]
    for ticket in tickets:
        ticket.future.result(60)
    assert failed == ["picture", "text"]


def test_a_device_that_fails_for_good_does_not_end_the_engine(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a GPU after an error of a kernel: not even what it holds can be copied."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("device-side assert")

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "step", broken)
        patch.setattr(Writer, "set_aside", broken)
        tickets = [engine.submit(LONG_QUESTION) for _ in range(4)]
        for ticket in tickets:
            with pytest.raises(RuntimeError, match="device-side assert"):
                ticket.future.result(60)
    assert engine.submit(QUESTION).future.result(60).text is not None
