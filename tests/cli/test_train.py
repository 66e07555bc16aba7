"""`omnigen2-mcp train`: a table `[finetune]` decides between fine-tuning and the stages of nano."""

from pathlib import Path

import pytest

import omnigen2
from omnigen2.nano.stages.config import StagesConfig
from omnigen2.training.config import FinetuneConfig, read_config
from server.cli import main as cli

STAGES = Path(omnigen2.__file__).parent / "nano" / "stages"


def test_the_files_of_the_repository_are_valid() -> None:
    assert read_config(STAGES / "nano.toml", StagesConfig).generation
    assert read_config(STAGES / "further.toml", StagesConfig).start == "nano"
    example = STAGES.parents[2] / "examples" / "finetune" / "train.toml"
    assert read_config(example, FinetuneConfig).finetune.model == "nano"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[finetune]\ndata = "none"\nsteps = 1\nrate = 1', "data: none has no train.jsonl"),
        ("[seeing]\nbatch = { ask = 1 }\nsteps = 1\nrate = 1", "has no mllm yet"),
        ("[finetune]\nsteps = 1\nrate = 1", "finetune.data"),
    ],
)
def test_a_table_decides_what_is_trained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    text: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text(f'output = "run"\n{text}\n', encoding="utf-8")
    assert cli.run(("train", "a.toml")) == 2
    assert message in capsys.readouterr().err
