"""`omnigen2-mcp bench`: how fast a model answers on this machine, one request at a time."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from cyclopts import App
from PIL import Image

import omnigen2
from omnigen2.checkpoints.locate import NANO
from server.cli.output import AsJson, show, table

if TYPE_CHECKING:
    from omnigen2.model import OmniGen2

app = App(name="bench", help="Measure how fast a model answers on this machine.")

T = TypeVar("T")

ABILITIES = {"generate": 0, "edit": 1, "compose": 2}
"""Ability and number of reference images."""


@dataclass(frozen=True)
class Measured:
    """Medians over the rounds, in seconds; `step_s` is None where there are no steps."""

    ability: str
    rounds: int
    total_s: float
    steps: int | None = None
    step_s: float | None = None


@app.default
def bench(
    *,
    model: str = NANO,
    device: str = "auto",
    dtype: str = "auto",
    steps: int | None = None,
    rounds: int = 3,
    as_json: AsJson = False,
) -> None:
    """Generate, edit, compose and describe with the model's own defaults, and print the time each takes.

    One round comes first that is not counted. Steps after the first two of a request give the time per step.

    Parameters
    ----------
    model
        `nano`, a folder, or a repository id.
    device
        `auto`, `cpu`, `cuda` or `cuda:N`.
    dtype
        `auto`, `float32`, `bfloat16` or `float16`.
    steps
        Denoising steps; the model's own number if absent.
    rounds
        Rounds that are counted.
    """
    if rounds < 1:
        raise ValueError(f"rounds: {rounds} given; at least 1 is needed")
    load_s, loaded = _timed(lambda: omnigen2.load(model, device=device, dtype=dtype))
    measured = [_images(loaded, ability, count, steps, rounds) for ability, count in ABILITIES.items()]
    measured.append(_text(loaded, rounds))
    width, height = _size(loaded)
    rows = [
        (one.ability, f"{one.total_s:.2f} s", one.steps or "", _milliseconds(one.step_s)) for one in measured
    ]
    show(
        {"model": model, "width": width, "height": height, "load_s": load_s}
        | {"results": [asdict(one) for one in measured]},
        f"{loaded.card.title}, {width} x {height}, loaded in {load_s:.1f} s",
        table(("", "time", "steps", "per step"), rows),
        as_json=as_json,
    )


def _images(model: "OmniGen2", ability: str, references: int, steps: int | None, rounds: int) -> Measured:
    """The median time of making one picture. Each round has its own words and pictures: nothing is reused."""
    totals: list[float] = []
    step_times: list[float] = []
    marks: list[float] = []
    width, height = _size(model)
    for number in range(rounds + 1):
        marks.clear()
        words, pictures = (
            f"a red circle, number {number}",
            [_picture(model, number, i) for i in range(references)],
        )
        started = time.perf_counter()
        model.generate(
            words,
            pictures,
            width=width,
            height=height,
            steps=steps,
            seed=number,
            on_step=lambda index, total, latents: marks.append(time.perf_counter()),
        )
        if number:
            totals.append(time.perf_counter() - started)
            step_times += [after - before for before, after in pairwise(marks[1:])]
    step = statistics.median(step_times) if step_times else None
    return Measured(ability, rounds, statistics.median(totals), len(marks), step)


def _text(model: "OmniGen2", rounds: int) -> Measured:
    """The median time of describing one picture."""
    times = [
        _timed(lambda number=number: model.describe([_picture(model, number, 0)], "What is in this image?"))[
            0
        ]
        for number in range(rounds + 1)
    ]
    return Measured("describe", rounds, statistics.median(times[1:]))


def _picture(model: "OmniGen2", number: int, index: int) -> Image.Image:
    """A plain picture of the model's size, another one for every round and place."""
    return Image.new("RGB", _size(model), (40 * number % 256, 90 * index % 256, 128))


def _size(model: "OmniGen2") -> tuple[int, int]:
    defaults = model.card.defaults.text_to_image
    assert defaults.width is not None and defaults.height is not None
    return defaults.width, defaults.height


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1000:.1f} ms"


def _timed(work: Callable[[], T]) -> tuple[float, T]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result
