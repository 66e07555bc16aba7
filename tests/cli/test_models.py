"""`omnigen2-mcp models`, in process."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from omnigen2.checkpoints import locate
from server.cli.models import app

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "pipeline" / "checkpoint"


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMNIGEN2_MODELS", str(tmp_path))
    shutil.copytree(CHECKPOINT, tmp_path / "someone" / "tiny")
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    app(list(tokens), result_action="return_value", exit_on_error=False)
    return capsys.readouterr().out


def test_list_names_every_model_with_its_folder(capsys: pytest.CaptureFixture[str], models: Path) -> None:
    listed = json.loads(run(capsys, "list", "--json"))
    (tiny,) = [model for model in listed if model["id"] == "someone/tiny"]
    assert tiny["folder"] == str(models / "someone" / "tiny")
    assert tiny["bytes"] == locate.folder_bytes(CHECKPOINT)
    assert "someone/tiny" in run(capsys, "list")


def test_list_says_how_to_fetch_the_full_model_where_only_nano_is(
    capsys: pytest.CaptureFixture[str], models: Path
) -> None:
    shutil.rmtree(models / "someone")
    assert "omnigen2-mcp models pull OmniGen2/OmniGen2" in run(capsys, "list")


def test_adapters_are_listed_with_what_their_files_say(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--lora-dir" in run(capsys, "loras")
    folder = tmp_path / "loras"
    folder.mkdir()
    monkeypatch.setenv("OMNIGEN2_LORA_DIR", str(folder))
    assert "is empty" in run(capsys, "loras")
    file = folder / "pink.safetensors"
    save_file({"x.lora_A.weight": np.zeros((1, 4))}, file, {"modelspec.title": "Pink things"})
    (folder / "junk.safetensors").write_bytes(b"junk")
    junk, pink = json.loads(run(capsys, "loras", "--json"))
    assert pink["about"] == "Pink things" and pink["bytes"] == file.stat().st_size
    assert pink["digest"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "damaged" in junk["problem"] and junk["digest"] is None
    assert "Pink things" in run(capsys, "loras")


def test_show_counts_parameters_and_gives_digest_and_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(run(capsys, "show", "someone/tiny", "--json"))
    assert shown["digest"] == locate.weights_digest(CHECKPOINT)
    for part in shown["parts"]:
        stored = [load_file(file) for file in (CHECKPOINT / part["name"]).glob("*.safetensors")]
        assert part["parameters"] == sum(tensor.size for tensors in stored for tensor in tensors.values())
    assert shown["card"]["defaults"]["text_to_image"]["steps"] == 50
    text = run(capsys, "show", "someone/tiny")
    assert "resident, the quickest mode fits: it needs" in " ".join(text.split())
    assert [*shown["memory"]["needs"]] == ["resident", "offload", "stream"]
    assert f"{shown['parts'][0]['parameters']:,}" in text and "text_guidance_scale" in text


def test_show_of_a_model_that_is_not_here_says_how_to_get_it() -> None:
    with pytest.raises(FileNotFoundError, match="omnigen2-mcp models pull no/such"):
        app(["show", "no/such"], result_action="return_value", exit_on_error=False)
