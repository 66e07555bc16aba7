"""`omnigen2-mcp doctor`: each check, on this machine and on ones where something is missing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from omnigen2.adapters.folder import AdapterFolder
from omnigen2.checkpoints.card import read_card
from omnigen2.checkpoints.locate import find
from omnigen2.memory.placement import Placement
from server.cli import doctor

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "pipeline" / "checkpoint"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMNIGEN2_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


def by_topic(findings: object) -> dict[str, doctor.Finding]:
    return {finding.about: finding for finding in findings}  # type: ignore[attr-defined]


def test_model_that_is_here_and_fits_has_no_problem() -> None:
    found = by_topic(doctor.check_model(str(CHECKPOINT), Placement("cpu", "auto")))
    assert {name: finding.state for name, finding in found.items()} == {
        "model": "ok",
        "device": "ok",
        "memory": "ok",
    }
    assert "float32" in found["device"].says and "the settings ask for cpu" in found["device"].says


def test_model_that_is_not_here_is_a_problem_with_advice() -> None:
    (finding,) = doctor.check_model("OmniGen2/OmniGen2", Placement("auto", "auto"))
    assert finding.state == "problem"
    assert "omnigen2-mcp models pull OmniGen2/OmniGen2" in finding.says + finding.advice


def test_weights_that_differ_from_the_card_are_a_problem(tmp_path: Path) -> None:
    folder = shutil.copytree(CHECKPOINT, tmp_path / "model")
    card = read_card(folder, "model").model_dump(mode="json") | {"digest": "sha256:" + "0" * 64}
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    assert by_topic(doctor.check_model(str(folder), Placement("cpu", "auto")))["weights"].state == "problem"


def test_device_that_cannot_be_had_is_a_problem() -> None:
    found = doctor.check_device(find(str(CHECKPOINT)), Placement("abacus", "auto"))
    assert by_topic(found)["device"].state == "problem"


def test_model_beyond_the_free_memory_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnigen2.checkpoints.fit.free_bytes", lambda _: 1000)
    memory = by_topic(doctor.check_device(find(str(CHECKPOINT)), Placement("cpu", "auto")))["memory"]
    assert memory.state == "problem" and memory.advice
    assert memory.says.startswith("stream, no mode fits") and "modes need about: resident " in memory.says


def test_pulled_models_are_named(models: Path) -> None:
    assert by_topic(doctor.check_models())["models"].state == "note"
    shutil.copytree(CHECKPOINT, models / "someone" / "tiny")
    assert "someone/tiny" in by_topic(doctor.check_models())["models"].says


def test_store_that_is_not_there_yet_is_no_problem(tmp_path: Path) -> None:
    assert "a new store" in by_topic(doctor.check_store(tmp_path / "new"))["store"].says


def test_store_that_cannot_be_written_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write everywhere
    assert by_topic(doctor.check_store(tmp_path))["store"].state == "problem"


def test_store_on_a_full_disk_gets_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    assert by_topic(doctor.check_store(tmp_path))["store"].state == "note"


def test_adapters_are_named_and_damaged_ones_noted(tmp_path: Path) -> None:
    save_file({"x.lora_A.weight": np.zeros((1, 4))}, tmp_path / "pink.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    offered, damaged = doctor.check_adapters(AdapterFolder(tmp_path))
    assert offered.state == "ok" and offered.says == f"1 in {tmp_path}: pink"
    assert damaged.state == "note" and "junk: " in damaged.says and "damaged" in damaged.says
    assert list(doctor.check_adapters(AdapterFolder(None))) == []


def test_plugin_that_failed_to_load_is_a_problem() -> None:
    found = by_topic(doctor.check_plugins(["core"], {"broken": "ImportError: no module named x"}))
    assert found["plugins"].says == "core"
    assert found["plugin broken"].state == "problem"


def run(*tokens: str) -> None:
    doctor.app(list(tokens), result_action="return_value", exit_on_error=False)


def test_command_examines_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("--model", str(CHECKPOINT), "--device", "cpu", "--store", str(tmp_path / "new"), "--json")
    found = {one["about"]: one["state"] for one in json.loads(capsys.readouterr().out)}
    assert {"installation", "model", "device", "memory", "models", "store", "plugins"} <= found.keys()
    assert "problem" not in found.values()


def test_command_fails_where_there_is_a_problem(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run("--model", "no/such", "--store", "abacus://x", "--json")
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "models pull no/such" in said and "nothing keeps images in abacus://" in said
