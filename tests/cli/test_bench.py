"""`omnigen2-mcp bench` on the tiny checkpoint with random weights."""

import json
import os
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from omnigen2.comparison.compare import REFERENCE, Worker
from omnigen2.memory.placement import Placement
from omnigen2.model import OmniGen2
from server.cli import bench, doctor, eval
from server.cli.placing import Placing

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "pipeline" / "checkpoint"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the model is asked: prompt and number of pictures."""
    requests: list[tuple[str, int]] = []
    generate = OmniGen2.generate

    def note(self: OmniGen2, prompt: str, images: list[Image.Image], **options: Any) -> object:
        requests.append((prompt, len(images)))
        return generate(self, prompt, images, **options)

    monkeypatch.setattr(OmniGen2, "generate", note)
    return requests


def run(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    bench.app(["--model", str(CHECKPOINT), *tokens], result_action="return_value", exit_on_error=False)
    return capsys.readouterr().out


def test_every_ability_is_measured_and_nothing_is_asked_twice(
    capsys: pytest.CaptureFixture[str], asked: list[tuple[str, int]]
) -> None:
    placing = ("--memory", "stream", "--quantize", "int8")
    measured = json.loads(run(capsys, "--side", "64", "--steps", "4", "--rounds", "1", *placing, "--json"))
    assert (measured["memory"]["mode"], measured["quantize"]) == ("stream", "int8")
    by_ability = {one["ability"]: one for one in measured["results"]}
    assert list(by_ability) == ["generate", "edit", "compose", "describe"]
    for ability in ("generate", "edit", "compose"):
        assert by_ability[ability]["steps"] == 4
        assert 0 < by_ability[ability]["step_s"] * 4 < by_ability[ability]["total_s"] * 4
    assert by_ability["describe"]["total_s"] > 0
    assert len(asked) == len(set(asked)) == 6


def test_commands_that_load_a_model_take_whatever_says_where_and_how_it_runs() -> None:
    flags = [field.name for field in fields(Placing)]
    assert flags == [field.name for field in fields(Placement)]
    commands = ((bench.app,), (doctor.app,), (eval.app, "shapeworld"), (eval.app, "autoencoder"))
    for (command, *words), flag in product(commands, flags[1:]):
        with pytest.raises(ValueError, match=flag):
            command([*words, f"--{flag}", "other"], result_action="return_value", exit_on_error=False)


def test_rounds_must_be_positive() -> None:
    with pytest.raises(ValueError, match="rounds: 0 given"):
        bench.app(["--rounds", "0"], result_action="return_value", exit_on_error=False)


CHECKOUT = os.environ.get("REFERENCE_CHECKOUT")


@pytest.mark.skipif(not CHECKOUT, reason="REFERENCE_CHECKOUT names no checkout of the reference")
def test_beside_the_reference_the_pictures_agree(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--side", "64", "--steps", "2", "--rounds", "1", "--threads", "1", "--json")
    told = json.loads(run(capsys, "--against", str(CHECKOUT), *options))
    assert [one["ratio"] > 0 and one["max_difference"] <= 2 for one in told["results"]] == [True] * 4


def test_a_folder_without_the_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no reference implementation"):
        bench.app(["--against", str(tmp_path)], result_action="return_value", exit_on_error=False)


def test_what_the_reference_lacks_is_named(tmp_path: Path) -> None:
    script = tmp_path / REFERENCE
    script.parent.mkdir(parents=True)
    script.write_text("import a_package_that_is_missing", encoding="utf-8")
    with pytest.raises(ValueError, match=r"without a_package_that_is_missing; .*-m pip install a_package"):
        Worker("reference", tmp_path, CHECKPOINT, "cpu", "float32")
