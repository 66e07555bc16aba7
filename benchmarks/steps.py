"""What each speed computes, how far its pictures are from exact ones, and whether they are right.

    python -m benchmarks.steps                                 # nano, 100 ShapeWorld prompts of 50 steps
    python -m benchmarks.steps --steps 12 --count 400          # at nano's own number of steps
    python -m benchmarks.steps --model FOLDER --side 64 --count 20

Half of the prompts are text to image, a quarter edits, a quarter compositions. Evaluations are runs of one
branch, weighted with the pixels that it sees. PSNR and SSIM compare pictures of 8 bits with those of `exact`.
"""

import argparse
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import omnigen2
from omnigen2.completion import complete_sampling
from omnigen2.cost import cost
from omnigen2.nano.world.evaluate import Answer, answers, picture
from omnigen2.nano.world.tasks import Task
from omnigen2.params import ReferenceSampling, Speed
from omnigen2.task import ImageTask

SHARES: Mapping[Task, float] = {"generate": 0.5, "edit": 0.25, "compose": 0.25}
SPEEDS: tuple[Speed, ...] = get_args(Speed)
WINDOW = 7
"""Side in pixels of the squares over which SSIM compares."""


class Paced:
    """A model that makes every picture with these settings, as `answers` takes it."""

    def __init__(self, model: Any, settings: Mapping[str, Any]):
        self._model, self._settings = model, settings

    def generate(self, prompt: Any, images: Any = (), **given: Any) -> Any:
        """Pictures of the prompts."""
        return self._model.generate(prompt, images, **given, **self._settings)

    def describe(self, images: Any, question: str) -> str:
        """Text about the images."""
        return self._model.describe(images, question)


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB; 99 where nothing differs."""
    error = np.square(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean()
    return min(99.0, 10 * math.log10(255**2 / error)) if error else 99.0


def ssim(one: Image.Image, other: Image.Image) -> float:
    """Structural similarity (Wang et al. 2004, eq. 13), over squares of `WINDOW` pixels."""
    x, y = (torch.from_numpy(np.array(image, np.float64)).permute(2, 0, 1) for image in (one, other))

    def mean(values: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(values, WINDOW, stride=1)

    small, also = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    product = mean(x) * mean(y)
    squares = mean(x).square() + mean(y).square()
    spread = mean(x * x) + mean(y * y) - squares
    values = (
        (2 * product + small) * (2 * (mean(x * y) - product) + also) / (squares + small) / (spread + also)
    )
    return values.mean().item()


def evaluations(model: Any, given: Sequence[Answer], settings: Mapping[str, Any]) -> float:
    """The work of all pictures, in the queue's measure."""
    total = 0.0
    for answer in given:
        inputs = tuple(picture(scene) for scene in answer.example.inputs)
        asked = ReferenceSampling(seed=0, **settings)
        sampling = complete_sampling(asked, [image.size for image in inputs], model.card).params
        total += cost(ImageTask(answer.example.text, inputs, sampling), model.card.limits)
    return total


def made(model: Any, count: int, settings: Mapping[str, Any]) -> list[Answer]:
    """A model's pictures, and the verdicts on them."""
    paced = Paced(model, settings)
    return [
        answer
        for task, share in SHARES.items()
        for answer in answers(paced, task, "test", max(1, round(share * count)))
    ]


def main() -> None:
    """Measure every speed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nano", help="a model, or the folder of a checkpoint")
    parser.add_argument("--count", type=int, default=100, help="number of prompts")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--side", type=int, help="side of the pictures in pixels, if not the model's own")
    parser.add_argument("--scheduler", help="if not the model's own")
    options = parser.parse_args()
    model = omnigen2.load(options.model)
    common: dict[str, Any] = {"steps": options.steps}
    if options.side:
        common |= {"width": options.side, "height": options.side}
    if options.scheduler:
        common["scheduler"] = options.scheduler
    exact: list[Answer] = []
    work = 0.0
    for speed in SPEEDS:
        settings = {**common, "speed": speed}
        started = time.process_time()
        own = made(model, options.count, settings)
        seconds = time.process_time() - started
        exact = exact or own
        pairs: list[Any] = [(a.output, b.output) for a, b in zip(own, exact, strict=True)]
        decibels, alike = [psnr(*pair) for pair in pairs], [ssim(*pair) for pair in pairs]
        needed = evaluations(model, own, settings)
        work = work or needed
        right = sum(answer.verdict.ok for answer in own)
        changed = sum(a.verdict.ok != b.verdict.ok for a, b in zip(own, exact, strict=True))
        print(
            f"{speed:9} evaluations {needed / work:4.0%}  PSNR mean {np.mean(decibels):.1f} "
            f"min {min(decibels):.1f} dB  SSIM mean {np.mean(alike):.4f} min {min(alike):.4f}  "
            f"right {right} of {len(own)}, verdicts changed {changed}  CPU {seconds:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
