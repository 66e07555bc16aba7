"""`omnigen2-mcp train`: train nano from random weights, or fine-tune any checkpoint."""

from pathlib import Path

from cyclopts import App

from omnigen2.nano.stages.config import StageName, StagesConfig
from omnigen2.training.config import FinetuneConfig, read_config, read_toml
from server.cli.output import AsJson, facts, show

app = App(name="train", help="Train a model from a TOML file, or fine-tune one.")


@app.default
def train(
    config: Path,
    *,
    stage: StageName | None = None,
    as_json: AsJson = False,
) -> None:
    """Train what the file describes. An interrupted run resumes; a finished one is only published.

    `omnigen2/nano/stages/nano.toml` trains nano; a table `[finetune]`, as in `examples/finetune/train.toml`,
    fine-tunes any checkpoint on a folder of examples. Losses go to `metrics.jsonl` and `loss.png` beside the
    checkpoints. On several GPUs: `accelerate launch -m server.cli train CONFIG`.

    Parameters
    ----------
    config
        The TOML file; its fields are described in `omnigen2/training/config.py` and, for nano, in
        `omnigen2/nano/stages/config.py`.
    stage
        Train this stage alone (of nano).
    """
    if "finetune" in read_toml(config):
        settings = read_config(config, FinetuneConfig)
        from omnigen2.training.finetune import finetune

        card = finetune(settings)
    else:
        settings = read_config(config, StagesConfig)
        from omnigen2.nano.stages.run import run

        card = run(settings, stage)
    result = {"output": str(settings.output), "complete": card is not None, "digest": card and card.digest}
    show(result, facts(result), as_json=as_json)
