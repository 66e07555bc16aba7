"""Both implementations asked for the same pictures by turns: how their times and their pictures compare.

Each computes in a process of its own (`omnigen2.comparison.worker`); nothing here imports torch.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from omnigen2.checkpoints import locate
from omnigen2.memory.placement import Placement
from omnigen2.params import Speed

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name("worker.py")
REFERENCE = Path("omnigen2", "pipelines", "omnigen2", "pipeline_omnigen2.py")
"""The file by which a checkout of the reference implementation is known."""
WARM_UP_STEPS = 2
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "dotenv": "python-dotenv", "PIL": "Pillow"}
"""Packages that the reference uses and that are not called what they are imported as."""
SAME_LEVELS = 2
"""Levels of 255 by which exact pictures in float32 may differ: both compute the same, up to rounding."""
SAME_DB = 25.0
"""Likeness of the pictures below which a comparison in another precision or speed means nothing."""
PROMPT = "a red circle beside a blue square, number {}, variant {}"
"""The words of a request: of a round, and of one of those at once."""


class Case(NamedTuple):
    """A kind of request: how many reference images, how many requests at once."""

    name: str
    references: int
    together: int


CASES = (
    Case("text to image", 0, 1),
    Case("edit", 1, 1),
    Case("compose of two", 2, 1),
    Case("eight at once", 0, 8),
)


@dataclass(frozen=True)
class Settings:
    """What both make their pictures with. `side` in pixels and `steps` are the model's own if None.

    Of `placement` the reference has device and precision only.
    """

    model: str
    side: int | None
    steps: int | None
    rounds: int
    placement: Placement
    speed: Speed


@dataclass(frozen=True)
class Compared:
    """A case: medians over the rounds, and how many times as long the reference takes.

    Seconds are of all requests of a round. `ratio` and `cpu_ratio` (of processor time) are medians of those
    of each round. Pictures differ by at most `max_difference` levels of 255; `psnr_db` is the least of all.
    """

    case: str
    ours_s: float
    reference_s: float
    ratio: float
    cpu_ratio: float
    ours_images_per_s: float
    reference_images_per_s: float
    ours_device_gb: float | None
    reference_device_gb: float | None
    max_difference: int
    psnr_db: float
    same: bool


class Turn(NamedTuple):
    """One round: what each said about its requests, and the largest and mean squared differences."""

    ours: dict[str, Any]
    reference: dict[str, Any]
    max_difference: int
    squared: float


class Worker:
    """The process of one implementation."""

    def __init__(self, side: str, root: Path, model: Path, *placed: str):
        """`placed`: device and precision, and for ours what else a `Placement` has, in its order."""
        environment = dict(os.environ)
        if side == "reference":
            environment.pop("MKL_CBWR", None)  # a choice of ours (`omnigen2`), not its
            environment["PYTHONWARNINGS"] = "ignore"  # of what it lacks; the facts say it
        self.side = side
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), side, str(root), str(model), *placed],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.facts = self._answer()

    def ask(self, pictures: list[dict[str, Any]]) -> dict[str, Any]:
        """Have pictures made at once; what it says of the time they took."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"pictures": pictures}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        told: dict[str, Any] = json.loads(line or '{"missing": ""}')
        if "missing" not in told:
            return told
        self.close()
        name: str = told["missing"]
        if not name:
            raise ValueError(f"{self.side}: its process ended ({self._process.returncode}); it said why")
        package = DISTRIBUTIONS.get(name, name)
        own = name.partition(".")[0] == "omnigen2"
        remedy = "the checkout is incomplete" if own else f"{sys.executable} -m pip install {package}"
        raise ValueError(f"against: the reference cannot be imported without {name}; {remedy}")


def compare(
    reference: Path, settings: Settings, on_turn: Callable[[str], None] = lambda case: None
) -> tuple[dict[str, Any], Iterator[Compared]]:
    """What both run on, and the cases, each measured when it is asked for.

    `on_turn` is told the name of a case whenever both begin with its requests, `settings.rounds` + 1 times.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: `reference` holds no checkout of the reference implementation, or it cannot be imported; a
            process ended.
    """
    check_reference(reference)
    model = locate.find(settings.model).folder
    ours = Worker("ours", ROOT, model, *placement_words(settings.placement))
    facts = dict(ours.facts)
    try:
        other = Worker("reference", reference.resolve(), model, facts["device"], facts["dtype"])
    except ValueError:
        ours.close()
        raise
    sampling = facts.pop("sampling")
    side = settings.side or sampling[0]["width"]
    steps = settings.steps or sampling[0]["steps"]
    asked = {"width": side, "height": side, "steps": steps, "speed": settings.speed}
    facts = {"model": settings.model, "side": side, "steps": steps, "speed": settings.speed, **facts}
    facts["reference_threads"] = other.facts["threads"]
    for package, found in other.facts["packages"].items():
        facts[f"reference_{package}"] = "found" if found else "not installed"
    return facts, _cases(ours, other, settings.rounds, [own | asked for own in sampling], on_turn)


def check_reference(folder: Path) -> None:
    """Raise ValueError unless a folder holds a checkout of the reference implementation."""
    if not (folder / REFERENCE).is_file():
        raise ValueError(
            f"against: {folder} holds no reference implementation ({REFERENCE} is missing); "
            "give the folder of a checkout of it: git clone https://github.com/VectorSpaceLab/OmniGen2"
        )


def placement_words(placement: Placement) -> list[str]:
    """A placement as the arguments of our worker."""
    return [str(getattr(placement, field.name)) for field in fields(placement)]


def _cases(
    ours: Worker, other: Worker, rounds: int, sampling: list[dict[str, Any]], on_turn: Callable[[str], None]
) -> Iterator[Compared]:
    exact = sampling[0]["speed"] == "exact" and ours.facts["dtype"] == "float32"
    exact = exact and ours.facts["quantize"] == "none"
    try:
        for case in CASES:
            turns: list[Turn] = []
            for number in range(rounds + 1):
                on_turn(case.name)
                asked = sampling[case.references] | ({} if number else {"steps": WARM_UP_STEPS})
                turns.append(_turn(ours, other, case, asked, number))
            yield _summary(case, turns[1:], exact)
    finally:
        ours.close()
        other.close()


def _turn(ours: Worker, other: Worker, case: Case, sampling: dict[str, Any], number: int) -> Turn:
    """One round of a case; who goes first changes. Each has words, pictures and noise of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        side = sampling["width"]
        images = [str(reference_picture(folder, side, 10 * number + i)) for i in range(case.references)]

        def pictures(side: str) -> list[dict[str, Any]]:
            return [
                {
                    "prompt": PROMPT.format(number, index),
                    "images": images,
                    "sampling": sampling | {"seed": 100 * number + index},
                    "to": str(folder / f"{side}_{index}.png"),
                }
                for index in range(case.together)
            ]

        order = (ours, other) if number % 2 else (other, ours)
        told = {worker.side: worker.ask(pictures(worker.side)) for worker in order}
        differences = [
            _levels(folder / f"ours_{index}.png") - _levels(folder / f"reference_{index}.png")
            for index in range(case.together)
        ]
    return Turn(
        told["ours"],
        told["reference"],
        max(int(np.abs(own).max()) for own in differences),
        max(float(np.square(own).mean()) for own in differences),
    )


def reference_picture(folder: Path, side: int, number: int) -> Path:
    """A picture with something in it: waves of colour, others for every number."""
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [np.sin(2 * math.pi * (x * (1 + number % 3) + y * (1 + i) + 0.1 * number)) for i in range(3)]
    path = folder / f"reference_image_{number}.png"
    Image.fromarray((127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)).save(path)
    return path


def _levels(path: Path) -> np.ndarray[Any, np.dtype[np.float64]]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"), dtype=np.float64)


def _summary(case: Case, turns: list[Turn], exact: bool) -> Compared:
    ours_s = statistics.median(turn.ours["seconds"] for turn in turns)
    reference_s = statistics.median(turn.reference["seconds"] for turn in turns)
    difference = max(turn.max_difference for turn in turns)
    psnr = min(10 * math.log10(255**2 / max(turn.squared, 1e-9)) for turn in turns)
    return Compared(
        case=case.name,
        ours_s=ours_s,
        reference_s=reference_s,
        ratio=statistics.median(turn.reference["seconds"] / turn.ours["seconds"] for turn in turns),
        cpu_ratio=statistics.median(
            turn.reference["cpu_seconds"] / turn.ours["cpu_seconds"] for turn in turns
        ),
        ours_images_per_s=case.together / ours_s,
        reference_images_per_s=case.together / reference_s,
        ours_device_gb=turns[-1].ours["device_gb"],
        reference_device_gb=turns[-1].reference["device_gb"],
        max_difference=difference,
        psnr_db=psnr,
        same=difference <= SAME_LEVELS if exact else psnr >= SAME_DB,
    )
