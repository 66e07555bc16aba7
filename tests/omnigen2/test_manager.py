"""The manager: each model loaded once, in the background, unloaded when it is in the way."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

import omnigen2
from omnigen2 import resident as resident_module
from omnigen2.checkpoints import fit, hashes, load, locate
from omnigen2.checkpoints.card import ModelCard, published_card
from omnigen2.engine.engine import Engine
from omnigen2.factory import Checkpoints, OneModel
from omnigen2.manager import Manager
from omnigen2.params import Decoding
from omnigen2.task import Cancelled, OutOfMemory, Progress, TextTask
from tests.omnigen2.golden import PIPELINE

FOLDER = str(PIPELINE / "checkpoint")


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager(FOLDER, device="cpu")
    yield manager
    manager.close()


def test_a_model_is_loaded_once_for_all_who_ask(manager: Manager) -> None:
    futures = [manager.acquire() for _ in range(4)]
    engine = futures[0].result(60)
    assert isinstance(engine, Engine)
    assert all(future.result(60) is engine for future in futures)
    assert engine.memory_bytes() > 1_000_000


def test_a_card_is_read_without_torch() -> None:
    code = (
        "import sys; from omnigen2.manager import Manager; m = Manager(sys.argv[1]);"
        "assert m.card().title; assert 'torch' not in sys.modules"
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


def test_a_library_that_exits_while_loading_fails_the_load() -> None:
    def leave(device: str, dtype: str) -> None:
        raise SystemExit(1)

    manager = Manager("plugin", factories=[OneModel("plugin", published_card("plugin"), leave)])  # type: ignore
    with pytest.raises(RuntimeError, match="SystemExit"):
        manager.acquire().result(60)
    manager.close()


def test_the_longest_stall_of_all_models_is_told_and_a_plugin_need_not_tell() -> None:
    manager, plugin = with_plugin()
    assert manager.stalled_s() == 0.0
    manager.acquire("plugin").result(60)
    assert manager.stalled_s() == 0.0
    plugin.stalled_s = lambda: 7.5  # type: ignore
    manager.acquire().result(60)
    assert manager.stalled_s() == 7.5
    manager.close()


def test_a_replaced_model_that_hangs_keeps_no_other_from_loading() -> None:
    manager, plugin = with_plugin()
    manager.acquire("plugin").result(60)
    plugin.busy = lambda: True  # type: ignore
    manager._residents["plugin"].stale = True  # its files have changed
    replacing = manager.acquire("plugin")
    assert manager.acquire().result(60).card.id == FOLDER
    assert not replacing.done() and not plugin.closed.is_set()
    plugin.busy = lambda: False  # type: ignore
    assert replacing.result(60) is plugin and plugin.closed.is_set()
    manager.close()


def test_an_idle_model_is_unloaded_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_module, "IN_HAND_S", 0.0)
    manager, plugin = with_plugin(idle_unload_s=0.05)
    assert not manager.has_loaded("plugin")
    manager.acquire("plugin").result(60)
    assert plugin.closed.wait(30)
    assert manager.has_loaded("plugin") and manager.memory_bytes() == 0
    manager.close()


def test_an_idle_model_gives_way_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_module, "IN_HAND_S", -1.0)
    manager, plugin = with_plugin()
    manager.acquire("plugin").result(60)
    monkeypatch.setattr(fit, "free_bytes", lambda device: 10**9 if plugin.closed.is_set() else 10)
    assert manager.acquire().result(60).card.id == FOLDER
    assert plugin.closed.is_set()
    manager.close()


def test_a_model_too_big_for_the_device_is_refused_with_numbers(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "free_bytes", lambda device: 10)
    with pytest.raises(OutOfMemory, match=r"needs 0\.1 GB on cpu.*such as nano"):
        manager.acquire().result(60)


def test_a_loaded_model_answers(manager: Manager) -> None:
    engine = manager.acquire().result(60)
    outcome = engine.submit(TextTask("why?", (), Decoding(max_tokens=3, temperature=0.0)), lambda p: None)
    assert isinstance(outcome.future.result(60).text, str)


def overwrite(folder: Path, scale: float = 2.0) -> None:
    """Other weights under the same names, written into the files that are there."""
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    data = save({name: tensor * scale for name, tensor in load_file(file).items()}, {"format": "pt"})
    with file.open("r+b") as opened:
        opened.write(data)
        opened.truncate()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "model", copy_function=shutil.copyfile))


def test_every_checkpoint_has_a_digest_before_and_after_it_is_loaded(manager: Manager) -> None:
    known = manager.identify()
    assert known is not None and known.digest == locate.weights_digest(Path(FOLDER))
    assert manager.acquire().result(60).card == known


def test_an_overwritten_folder_is_loaded_anew_when_its_tasks_are_done(folder: Path) -> None:
    manager = Manager(str(folder), device="cpu")
    first = manager.acquire().result(60)
    assert manager.identify() == first.card and manager.acquire().result(60) is first
    went_on, go_on = threading.Event(), threading.Event()

    def hold(progress: Progress) -> None:
        went_on.set()
        assert go_on.wait(60)

    running = first.submit(TextTask("why?", (), Decoding(max_tokens=2, temperature=0.0)), hold)
    assert went_on.wait(60)
    overwrite(folder)
    known = manager.identify()
    assert known is not None and known.digest != first.card.digest
    future = manager.acquire()
    assert not future.done(), "the first one still has a task"
    go_on.set()
    second = future.result(60)
    assert running.future.result(60).card == first.card and second.card == known
    assert manager.acquire().result(60) is second
    with pytest.raises(Cancelled):
        first.submit(TextTask("why?", (), Decoding(max_tokens=2, temperature=0.0)), hold)
    manager.close()


def test_other_limits_beside_the_same_weights_are_loaded_anew(folder: Path) -> None:
    manager = Manager(str(folder), device="cpu")
    first = manager.acquire().result(60)
    card = first.card.model_dump(mode="json", exclude={"id", "digest"}) | {"limits": {"max_pixels": 1024}}
    (folder / "card.json").write_text(json.dumps(card))
    manager.identify()
    assert manager.acquire().result(60).card.limits.max_pixels == 1024
    manager.close()


def test_a_file_that_is_overwritten_changes_no_model_that_is_loaded(folder: Path) -> None:
    model = omnigen2.load(str(folder), device="cpu")
    asked = {"width": 32, "height": 32, "steps": 2, "seed": 3, "output": "latents"}
    for part in locate.PARTS[:3]:
        (file,) = (folder / part).glob("*.safetensors")
        with file.open("r+b") as opened:  # in place: the inode stays
            opened.write(os.urandom(file.stat().st_size))
    assert torch.equal(
        model.generate("a circle", **asked), omnigen2.load(FOLDER, device="cpu").generate("a circle", **asked)
    )


def test_what_is_slow_to_hash_is_known_when_it_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMNIGEN2_MODELS", str(tmp_path / "models"))
    monkeypatch.setattr(hashes, "LARGE_BYTES", 1000)
    monkeypatch.setattr(hashes, "SETTLED_NS", 0)
    manager = Manager(str(folder), device="cpu")
    assert manager.identify() is None
    backend = manager.acquire().result(60)
    assert manager.identify() == backend.card
    manager.close()


def test_files_that_change_while_they_are_loaded_are_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = load.load_language_model

    def meddle(*args: Any) -> Any:
        overwrite(folder)
        return real(*args)

    monkeypatch.setattr(load, "load_language_model", meddle)
    with pytest.raises(ValueError, match="changed while they were loaded"):
        omnigen2.load(str(folder), device="cpu")
