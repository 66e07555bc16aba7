"""`omnigen2-mcp bench` on the tiny checkpoint with random weights."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from omnigen2.model import OmniGen2
from server.cli import bench

CHECKPOINT = Path(__file__).parents[1] / "data" / "golden" / "pipeline" / "checkpoint"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the model is asked: prompt and number of pictures. Pictures are 64 x 64, not 1024 x 1024."""
    requests: list[tuple[str, int]] = []
    generate = OmniGen2.generate

    def note(self: OmniGen2, prompt: str, images: list[Image.Image], **options: Any) -> object:
        requests.append((prompt, len(images)))
        return generate(self, prompt, images, **options)

    monkeypatch.setattr(OmniGen2, "generate", note)
    monkeypatch.setattr(bench, "_size", lambda model: (64, 64))
    return requests


def run(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    bench.app(["--model", str(CHECKPOINT), *tokens], result_action="return_value", exit_on_error=False)
    return capsys.readouterr().out


def test_every_ability_is_measured_and_nothing_is_asked_twice(
    capsys: pytest.CaptureFixture[str], asked: list[tuple[str, int]]
) -> None:
    measured = json.loads(run(capsys, "--steps", "4", "--rounds", "1", "--json"))
    by_ability = {one["ability"]: one for one in measured["results"]}
    assert list(by_ability) == ["generate", "edit", "compose", "describe"]
    for ability in ("generate", "edit", "compose"):
        assert by_ability[ability]["steps"] == 4
        assert 0 < by_ability[ability]["step_s"] * 4 < by_ability[ability]["total_s"] * 4
    assert by_ability["describe"]["total_s"] > 0
    assert len(asked) == len(set(asked)) == 6


def test_rounds_must_be_positive() -> None:
    with pytest.raises(ValueError, match="rounds: 0 given"):
        bench.app(["--rounds", "0"], result_action="return_value", exit_on_error=False)
