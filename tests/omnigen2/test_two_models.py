"""Models that do not fit into memory together take turns, and their tasks notice nothing but the time."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import omnigen2
from omnigen2 import resident
from omnigen2.checkpoints import fit
from omnigen2.checkpoints.card import published_card
from omnigen2.checkpoints.locate import find
from omnigen2.engine import engine as engine_module
from omnigen2.engine.engine import Engine
from omnigen2.factory import Checkpoints, OneModel
from omnigen2.manager import Manager
from omnigen2.memory.residency import Residency
from omnigen2.model import OmniGen2
from omnigen2.params import Decoding
from omnigen2.task import Cancelled, Outcome, OutOfMemory, Progress, Task, TextTask, Ticket
from tests.omnigen2.golden import PIPELINE
from tests.omnigen2.test_engine import task
from tests.omnigen2.test_manager import overwrite

FOLDER = PIPELINE / "checkpoint"
QUESTION = TextTask("what is this?", (), Decoding(max_tokens=30, temperature=1.0, seed=1))


class Listener:
    """The stages that a task went through, and events for two of them."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.working, self.paused = threading.Event(), threading.Event()

    def __call__(self, progress: Progress) -> None:
        if progress.stage not in self.stages[-1:]:
            self.stages.append(progress.stage)
        event = {"denoise": self.working, "write": self.working, "paused": self.paused}.get(progress.stage)
        if event is not None:
            event.set()


class Memory:
    """A device with room for one tiny model: what loaded models keep is taken, and nothing else."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.engines: list[Engine] = []
        memory = self

        class Counted(Engine):
            def __init__(self, model: Any) -> None:
                super().__init__(model)
                memory.engines.append(self)

        needed = fit.needed_bytes(find(str(FOLDER)), fit.torch.float32)
        self.size = needed + 1000
        monkeypatch.setattr(engine_module, "Engine", Counted)
        monkeypatch.setattr(fit, "free_bytes", lambda device: self.size - self.taken())

    def taken(self) -> int:
        return sum(each.memory_bytes() for each in self.engines if each._thread.is_alive())


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    monkeypatch.setattr(resident, "TURN_S", 60.0)
    monkeypatch.setattr(resident, "GAP_S", 0.1)
    return Memory(monkeypatch)


@pytest.fixture(scope="module")
def omnigen() -> OmniGen2:
    return omnigen2.load(str(FOLDER), device="cpu")


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    return [str(shutil.copytree(FOLDER, tmp_path / name)) for name in ("one", "other")]


@pytest.fixture
def manager(memory: Memory) -> Iterator[Manager]:
    manager = Manager(str(FOLDER), device="cpu", memory="resident")
    yield manager
    manager.close()


def submitted(manager: Manager, model: str, asked: Task, listener: Any = lambda progress: None) -> Ticket:
    """As the server does it: when a model was unloaded since it was acquired, it is acquired again."""
    while True:
        try:
            return manager.acquire(model).result(60).submit(asked, listener)
        except Cancelled:
            pass


def same(made: Outcome, alone: Outcome) -> bool:
    pixels = [[picture.tobytes() for picture in outcome.pictures] for outcome in (made, alone)]
    return pixels[0] == pixels[1] and made.text == alone.text


def end_turn(manager: Manager, model: str, waiting: str) -> None:
    """Let the turn of a model be over, once another one waits for it."""
    while manager.waits_for(waiting) != model:
        time.sleep(0.01)
    manager._residents[model].turn_s = 0.0


def test_they_take_turns_and_their_tasks_come_out_as_alone(
    manager: Manager, folders: list[str], omnigen: OmniGen2
) -> None:
    long, small = task(omnigen, steps=40), task(omnigen, steps=2)
    alone = Engine(omnigen)
    expected = [alone.submit(each).future.result(60) for each in (long, QUESTION, small)]
    alone.close()
    one, other = folders
    heard = Listener()
    first = [submitted(manager, one, each, heard) for each in (long, QUESTION)]
    assert heard.working.wait(60)
    coming = manager.acquire(other)
    end_turn(manager, one, other)
    second = [coming.result(60).submit(each, heard) for each in (small, long)]
    assert "paused" in heard.stages
    second[0].future.result(60)
    assert not first[0].future.done()
    end_turn(manager, other, one)
    made = [ticket.future.result(60) for ticket in (*first, *second)]
    assert all(map(same, made, [*expected, expected[0]])), [each.text for each in made]
    assert heard.stages.count("paused") == 2


@pytest.fixture
def resting(manager: Manager, folders: list[str], omnigen: OmniGen2) -> tuple[Ticket, Ticket]:
    """A long task of a model that has made room, and one of the model that has its turn."""
    heard = Listener()
    first = submitted(manager, folders[0], task(omnigen, steps=1000), heard)
    assert heard.working.wait(60)
    coming = manager.acquire(folders[1])
    end_turn(manager, *folders)
    second = coming.result(60).submit(task(omnigen, steps=1000), heard)
    assert "paused" in heard.stages
    return first, second


def test_a_task_that_is_cancelled_at_rest_brings_its_model_not_back(
    manager: Manager, memory: Memory, resting: tuple[Ticket, Ticket]
) -> None:
    first, second = resting
    first.cancel()
    with pytest.raises(Cancelled):
        first.future.result(60)
    second.cancel()
    memory.engines[0]._thread.join(60)
    assert not memory.engines[0]._thread.is_alive() and not memory.engines[1].busy()


def test_tasks_at_rest_are_told_when_their_model_cannot_come_back(
    folders: list[str], resting: tuple[Ticket, Ticket]
) -> None:
    first, second = resting
    overwrite(Path(folders[0]))
    second.cancel()
    with pytest.raises(ValueError, match="were changed"):
        first.future.result(60)


def test_a_model_that_cannot_make_room_is_unloaded_and_says_why(
    manager: Manager, folders: list[str], omnigen: OmniGen2, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Listener()
    running = submitted(manager, folders[0], task(omnigen, steps=1000), heard)
    assert heard.working.wait(60)
    monkeypatch.setattr(Residency, "leave", lambda self: (_ for _ in ()).throw(MemoryError("the host's")))
    coming = manager.acquire(folders[1])
    end_turn(manager, *folders)
    with pytest.raises(MemoryError, match="host's"):
        running.future.result(60)
    assert coming.result(60).card.id == folders[1]


def test_tasks_at_rest_end_when_the_models_are_unloaded(
    manager: Manager, resting: tuple[Ticket, Ticket]
) -> None:
    manager.close()
    for ticket in resting:
        with pytest.raises(Cancelled):
            ticket.future.result(60)


def test_a_model_that_would_not_fit_alone_disturbs_no_other(
    manager: Manager, memory: Memory, folders: list[str], omnigen: OmniGen2, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = Listener()
    running = submitted(manager, folders[0], task(omnigen, steps=200), heard)
    assert heard.working.wait(60)
    monkeypatch.setattr(fit, "held_bytes", lambda device: memory.taken())
    memory.size = 2000
    with pytest.raises(OutOfMemory, match="needs"):
        manager.acquire(folders[1]).result(60)
    assert not heard.paused.is_set()
    running.cancel()


class Plugin(Engine):
    """A backend that cannot rest."""

    rest = None  # type: ignore


def test_a_model_that_cannot_rest_ends_its_tasks_first_and_takes_no_more(
    memory: Memory, omnigen: OmniGen2
) -> None:
    def load(device: str, dtype: str) -> Engine:
        memory.engines.append(Plugin(omnigen))
        return memory.engines[-1]

    plugin = OneModel("plugin", published_card("plugin"), load)
    manager = Manager("plugin", device="cpu", memory="resident", factories=[Checkpoints(), plugin])
    heard = Listener()
    running = submitted(manager, "plugin", task(omnigen, steps=200), heard)
    assert heard.working.wait(60)
    other = manager.acquire(str(FOLDER))
    end_turn(manager, "plugin", str(FOLDER))
    while manager.acquire("plugin").done():
        assert not other.done()
        time.sleep(0.01)
    assert not running.future.done()
    assert other.result(60) and running.future.result(0).pictures
    manager.close()
