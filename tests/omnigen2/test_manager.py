"""The manager: each model loaded once, in the background, unloaded when it is in the way."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from omnigen2 import manager as manager_module
from omnigen2 import memory
from omnigen2.card import ModelCard, published_card
from omnigen2.engine import Engine
from omnigen2.factory import Checkpoints, OneModel
from omnigen2.manager import Manager
from omnigen2.params import Decoding
from omnigen2.task import OutOfMemory, TextTask
from tests.omnigen2.golden import PIPELINE

FOLDER = str(PIPELINE / "checkpoint")


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager(FOLDER, device="cpu")
    yield manager
    manager.close()


def test_a_model_is_loaded_once_for_all_who_ask(manager: Manager) -> None:
    assert [status.state for status in manager.status()] == ["absent"]
    futures = [manager.acquire() for _ in range(4)]
    engine = futures[0].result(60)
    assert isinstance(engine, Engine)
    assert all(future.result(60) is engine for future in futures)
    status = manager.status()[0]
    assert status.state == "ready" and status.memory_bytes > 1_000_000


def test_a_card_is_read_without_torch() -> None:
    code = (
        "import sys; from omnigen2.manager import Manager; m = Manager(sys.argv[1]);"
        "assert m.card().title; assert m.status()[0].state == 'absent'; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, FOLDER], check=True)


def test_a_model_that_is_not_there_fails_with_advice_and_is_tried_again(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIGEN2_MODELS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="models pull someone/theirs"):
        manager.card("someone/theirs")
    with pytest.raises(FileNotFoundError, match="models pull someone/theirs"):
        manager.acquire("someone/theirs").result(60)
    assert manager.status()[1].state == "failed"
    shutil.copytree(FOLDER, tmp_path / "someone" / "theirs")
    assert manager.acquire("someone/theirs").result(60).card.id == "someone/theirs"


@dataclass
class Plugin:
    """A backend that a plugin might bring; it answers nothing, only its life matters here."""

    card: ModelCard = field(default_factory=lambda: published_card("plugin"))
    closed: threading.Event = field(default_factory=threading.Event)

    def busy(self) -> bool:
        return False

    def memory_bytes(self) -> int:
        return 5

    def close(self) -> None:
        self.closed.set()


def with_plugin(**options: object) -> tuple[Manager, Plugin]:
    plugin = Plugin()
    factory = OneModel("plugin", plugin.card, lambda device, dtype: plugin)  # type: ignore
    return Manager(FOLDER, device="cpu", factories=[Checkpoints(), factory], **options), plugin  # type: ignore


def test_a_plugin_brings_a_model() -> None:
    manager, plugin = with_plugin()
    assert manager.card("plugin").id == "plugin"
    assert manager.acquire("plugin").result(60) is plugin
    manager.close()
    assert plugin.closed.wait(10)


def test_an_idle_model_is_unloaded_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_module, "IN_HAND_S", 0.0)
    manager, plugin = with_plugin(idle_unload_s=0.05)
    manager.acquire("plugin").result(60)
    assert plugin.closed.wait(30)
    assert [status.id for status in manager.status()] == [FOLDER]
    manager.close()


def test_an_idle_model_gives_way_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manager_module, "IN_HAND_S", -1.0)
    manager, plugin = with_plugin()
    manager.acquire("plugin").result(60)
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**9 if plugin.closed.is_set() else 10)
    assert manager.acquire().result(60).card.id == FOLDER
    assert plugin.closed.is_set()
    manager.close()


def test_a_model_too_big_for_the_device_is_refused_with_numbers(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10)
    with pytest.raises(OutOfMemory, match=r"needs 0\.0 GB on cpu.*such as nano"):
        manager.acquire().result(60)


def test_a_loaded_model_answers(manager: Manager) -> None:
    engine = manager.acquire().result(60)
    outcome = engine.submit(TextTask("why?", (), Decoding(max_tokens=3, temperature=0.0)), lambda p: None)
    assert isinstance(outcome.future.result(60).text, str)
