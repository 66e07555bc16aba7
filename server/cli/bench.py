"""`omnigen2-mcp bench`: how fast a model answers on this machine, alone or beside the reference."""

import itertools
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from cyclopts import App
from PIL import Image

from omnigen2.checkpoints.locate import NANO
from omnigen2.comparison.compare import CASES, Settings, compare
from omnigen2.params import Speed
from server.cli.output import AsJson, counting_bar, facts, show, table
from server.cli.placing import Placing

if TYPE_CHECKING:
    from omnigen2.model import OmniGen2

app = App(name="bench")

T = TypeVar("T")

LEGEND = """\
Medians of the rounds. Ratio: how many times as long the reference takes; CPU ratio: how many times as much
processor time, which other work on this machine changes less. Images/s: here, reference. Pictures differ by
so many levels of 255 at most."""
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
    placing: Placing | None = None,
    side: int | None = None,
    steps: int | None = None,
    speed: Speed = "exact",
    rounds: int = 3,
    threads: int | None = None,
    against: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast a model answers on this machine, alone or beside the reference.

    Alone: generate, edit, compose and describe with the model's own defaults, and the time each takes. One
    round comes first that is not counted. Steps after the first two of a request give the time per step.

    With `--against`, the same pictures are made by turns here and by the reference implementation, with equal
    weights, noise and settings: text to image, an edit, a composition, and eight requests at once, which the
    reference takes one after another. Printed are the medians of both, how many times as long the reference
    takes, and how far the pictures differ; if that is more than rounding, it fails.

    A tiny model takes minutes: `git clone https://github.com/VectorSpaceLab/OmniGen2 reference`, then
    `omnigen2-mcp bench --against reference --side 256 --steps 20 --threads 1`.

    Parameters
    ----------
    model
        `nano`, a folder, or a repository id.
    side
        Width and height of the pictures; the model's own if absent.
    steps
        Denoising steps; the model's own number if absent.
    speed
        How the pictures are denoised; the reference always computes every step.
    rounds
        Rounds that are counted.
    threads
        CPU threads to compute with at most; all if absent.
    against
        A folder with the reference implementation, which runs in this environment.
    """
    for name, value in (("rounds", rounds), ("side", side), ("steps", steps), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: {value} given; at least 1 is needed")
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when torch is imported
    placement = (placing or Placing()).placement
    asked = Settings(model, side, steps, rounds, placement, speed)
    if against:
        _beside(against, asked, as_json)
    else:
        _alone(asked, as_json)


def _alone(asked: Settings, as_json: bool) -> None:
    """Measure this implementation, one request at a time, and print it."""
    from omnigen2.model import OmniGen2  # imports torch

    load_s, loaded = _timed(lambda: OmniGen2.load(asked.model, asked.placement))
    width, height = (asked.side, asked.side) if asked.side else _size(loaded)
    measured = [
        _images(loaded, ability, (width, height), count, asked) for ability, count in ABILITIES.items()
    ]
    measured.append(_text(loaded, (width, height), asked.rounds))
    rows = [
        (one.ability, f"{one.total_s:.2f} s", one.steps or "", _milliseconds(one.step_s)) for one in measured
    ]
    show(
        {"model": asked.model, "width": width, "height": height, "load_s": load_s}
        | {"memory": asdict(loaded.pipeline.residency.choice), "quantize": loaded.card.quantize}
        | {"results": [asdict(one) for one in measured]},
        f"{loaded.card.title}, {width} x {height}, loaded in {load_s:.1f} s, "
        f"memory {loaded.pipeline.residency.mode}, quantize {loaded.card.quantize}",
        table(("", "time", "steps", "per step"), rows),
        as_json=as_json,
    )


def _beside(reference: Path, settings: Settings, as_json: bool) -> None:
    """Measure both implementations and print how they compare.

    Raises ValueError, after printing, if their pictures differ by more than rounding.
    """
    with counting_bar() as bar:
        turns = bar.add_task("loading both", total=len(CASES) * (1 + settings.rounds))
        number = itertools.count()
        found, comparing = compare(
            reference,
            settings,
            lambda case: bar.update(turns, description=case, completed=next(number)),
        )
        results = list(comparing)
    rows = [
        (
            one.case,
            f"{one.ours_s:.2f} s",
            f"{one.reference_s:.2f} s",
            f"{one.ratio:.2f}",
            f"{one.cpu_ratio:.2f}",
            f"{one.ours_images_per_s:.2f}, {one.reference_images_per_s:.2f}",
            f"{one.max_difference}, {one.psnr_db:.0f} dB",
        )
        for one in results
    ]
    columns = ("", "here", "reference", "ratio", "CPU ratio", "images/s", "differ by")
    show(
        {**found, "results": [asdict(one) for one in results]},
        facts({name.replace("_", " "): value for name, value in found.items()}),
        table(columns, rows),
        LEGEND,
        as_json=as_json,
    )
    if others := [one.case for one in results if not one.same]:
        raise ValueError(
            f"against: the two make other pictures ({'; '.join(others)}): the ratios mean nothing"
        )


def _images(
    model: "OmniGen2", ability: str, size: tuple[int, int], references: int, asked: Settings
) -> Measured:
    """The median time of making one picture. Each round has its own words and pictures: nothing is reused."""
    totals: list[float] = []
    step_times: list[float] = []
    marks: list[float] = []
    for number in range(asked.rounds + 1):
        marks.clear()
        words = f"a red circle, number {number}"
        pictures = [_picture(size, number, i) for i in range(references)]
        started = time.perf_counter()
        model.generate(
            words,
            pictures,
            width=size[0],
            height=size[1],
            steps=asked.steps,
            speed=asked.speed,
            seed=number,
            on_step=lambda index, total, latents: marks.append(time.perf_counter()),
        )
        if number:
            totals.append(time.perf_counter() - started)
            step_times += [after - before for before, after in itertools.pairwise(marks[1:])]
    step = statistics.median(step_times) if step_times else None
    return Measured(ability, asked.rounds, statistics.median(totals), len(marks), step)


def _text(model: "OmniGen2", size: tuple[int, int], rounds: int) -> Measured:
    """The median time of describing one picture."""
    times = [
        _timed(lambda number=number: model.describe([_picture(size, number, 0)], "What is in this image?"))[0]
        for number in range(rounds + 1)
    ]
    return Measured("describe", rounds, statistics.median(times[1:]))


def _picture(size: tuple[int, int], number: int, index: int) -> Image.Image:
    """A plain picture, another one for every round and place."""
    return Image.new("RGB", size, (40 * number % 256, 90 * index % 256, 128))


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
