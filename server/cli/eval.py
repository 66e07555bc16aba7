"""`omnigen2-mcp eval`: the share of correct outputs on ShapeWorld, and the quality of the autoencoder."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Literal

from cyclopts import App
from rich.console import Console
from rich.progress import track

from omnigen2.checkpoints.locate import NANO
from server.cli.output import AsJson, show, table
from server.cli.placing import Placing
from server.files import check_writable

if TYPE_CHECKING:
    from omnigen2.nano.world.evaluate import Score

app = App(name="eval", help="Measure how well a model does its work.")
SHOWN_FAILURES = 24


@app.command
def shapeworld(
    *,
    model: str = NANO,
    placing: Placing | None = None,
    tasks: list[Literal["generate", "edit", "compose", "describe", "ask"]] | None = None,
    split: Literal["test", "unseen", "train"] = "test",
    count: int = 100,
    first: int = 0,
    lora: Path | None = None,
    output: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Ask the model ShapeWorld's examples with its own default settings, and judge every answer.

    Pictures are read back and compared with what the prompt wants; texts are compared with the right answer.
    Intervals are 95 % (Wilson).

    Parameters
    ----------
    model
        `nano`, a folder, or a repository id.
    tasks
        Which tasks; all if absent.
    split
        `test`; `unseen` asks for combinations that training never meets; `train`.
    count
        Examples per task.
    first
        Number of the first example.
    lora
        An adapter to measure with.
    output
        Folder for `scores.json` and a contact sheet of the failures of each task.
    """
    placement = (placing or Placing()).placement
    _check_count(count)
    if output is not None:
        check_writable(output, output)
    from omnigen2.model import OmniGen2
    from omnigen2.nano.world import TASKS
    from omnigen2.nano.world.evaluate import answers, contact_sheet, scores

    loaded = OmniGen2.load(model, placement)
    found: dict[str, dict[str, dict[str, object]]] = {}
    rows: list[tuple[object, ...]] = []
    for task in tasks or list(TASKS):
        asked = answers(loaded, task, split, count, first, lora=lora)  # pyright: ignore[reportArgumentType]
        given = list(track(asked, task, count, console=Console(stderr=True), transient=True))
        whole, kinds = scores(given, lambda answer: "all"), scores(given, lambda answer: answer.example.kind)
        found[task] = {name: _facts(score) for name, score in (whole | kinds).items()}
        rows += _rows(task, whole, kinds)
        if output is not None:
            failures = [answer for answer in given if not answer.verdict.ok][:SHOWN_FAILURES]
            output.mkdir(parents=True, exist_ok=True)
            contact_sheet(failures).save(output / f"failures-{task}.png")
    quantize = loaded.card.quantize
    result = {"model": model, "quantize": quantize, "split": split, "first": first, "tasks": found}
    if output is not None:
        (output / "scores.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result, table(("task", "kind", "right", "share", "95 % interval"), rows), as_json=as_json)


@app.command
def autoencoder(
    *,
    model: str = NANO,
    placing: Placing | None = None,
    split: Literal["test", "unseen", "train"] = "test",
    count: int = 200,
    as_json: AsJson = False,
) -> None:
    """Send ShapeWorld's pictures through the autoencoder, and compare what comes back.

    The measure is the peak signal-to-noise ratio; from 32 dB on, edges look like edges.

    Parameters
    ----------
    model
        `nano`, a folder, or a repository id.
    split
        Where the scenes come from.
    count
        Pictures.
    """
    placement = (placing or Placing()).placement
    _check_count(count)
    from omnigen2.model import OmniGen2
    from omnigen2.nano.world.evaluate import decibels

    values = sorted(decibels(OmniGen2.load(model, placement).pipeline.autoencoder, split, count))
    measured = {
        "mean_db": fmean(values),
        "5th_percentile_db": values[len(values) // 20],
        "least_db": values[0],
    }
    rows = [
        (name.removesuffix("_db").replace("_", " "), f"{value:.1f} dB") for name, value in measured.items()
    ]
    result = {"model": model, "split": split, "count": count} | measured
    show(result, table(("of all pictures", "signal to noise"), rows), as_json=as_json)


def _check_count(count: int) -> None:
    if count < 1:
        raise ValueError(f"count: {count} given; at least 1 is needed")


def _rows(task: str, whole: "Mapping[str, Score]", kinds: "Mapping[str, Score]") -> list[tuple[object, ...]]:
    return [
        *((task, name, *_cells(score)) for name, score in whole.items()),
        *(("", name, *_cells(score)) for name, score in kinds.items() if len(kinds) > 1),
    ]


def _facts(score: "Score") -> dict[str, object]:
    return {**asdict(score), "share": score.share, "interval": score.interval}


def _cells(score: "Score") -> tuple[str, str, str]:
    low, high = score.interval
    return f"{score.right}/{score.asked}", f"{score.share:.1%}", f"{low:.1%} to {high:.1%}"
