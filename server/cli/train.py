"""`omnigen2-mcp train`: make a model from nothing, or teach one something new."""

from pathlib import Path

from cyclopts import App

from omnigen2.training.config import StageName, read_config
from server.cli.output import AsJson, facts, show

app = App(name="train", help="Train a model from a TOML file, or fine-tune one.")


@app.default
def train(
    config: Path,
    *,
    stage: StageName | None = None,
    as_json: AsJson = False,
) -> None:
    """Train what the file describes. A run that was stopped goes on; a finished one is only published.

    `omnigen2/nano/stages/nano.toml` makes nano; a table `[finetune]`, as in `examples/finetune/train.toml`,
    teaches any model from a folder of examples. Losses go to `metrics.jsonl` and `loss.png` beside the
    checkpoints. On several GPUs: `accelerate launch -m server.cli train CONFIG`.

    Parameters
    ----------
    config
        The TOML file; its fields are described in `omnigen2/training/config.py`.
    stage
        Train this stage alone.
    """
    told = read_config(config)
    from omnigen2.nano.stages.run import run

    card = run(told, stage)
    result = {"output": str(told.output), "complete": card is not None, "digest": card and card.digest}
    show(result, facts(result), as_json=as_json)
