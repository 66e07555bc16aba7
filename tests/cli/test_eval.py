"""`omnigen2-mcp eval`: what it prints is counted, with how sure it is, and its failures can be looked at."""

import json
from pathlib import Path

import pytest
from PIL import Image

from server.cli import main as cli


def test_shapeworld_is_scored_by_task_and_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("eval", "shapeworld", "--tasks", "ask", "--count", "12", "--output", str(tmp_path), "--json")
    assert cli.run(words) == 0
    score = json.loads(capsys.readouterr().out)["tasks"]["ask"]
    whole = score.pop("all")
    assert whole["asked"] == 12 == sum(kind["asked"] for kind in score.values())
    assert whole["right"] == sum(kind["right"] for kind in score.values())
    low, high = whole["interval"]
    assert 0 <= low < whole["share"] <= high <= 1
    assert json.loads((tmp_path / "scores.json").read_text())["tasks"]["ask"]["all"] == whole
    Image.open(tmp_path / "failures-ask.png").load()


def test_the_autoencoder_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(("eval", "autoencoder", "--count", "4", "--json")) == 0
    measured = json.loads(capsys.readouterr().out)
    assert measured["mean_db"] >= measured["5th_percentile_db"] >= measured["least_db"] > 25


def test_no_examples_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(("eval", "autoencoder", "--count", "0")) == 2
    assert "count: 0 given" in capsys.readouterr().err
