"""Evaluation on ShapeWorld: a model's outputs with its default settings, checked one by one.

A model is anything with the methods `generate` and `describe`. Correctness is decided by `judge` alone.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from omnigen2.nano.world.judge import Verdict, judge
from omnigen2.nano.world.render import render
from omnigen2.nano.world.scene import Scene
from omnigen2.nano.world.spec import Example
from omnigen2.nano.world.tasks import Split, Task, example

BATCH = 16
"""Examples per call of the model; batching does not change the pictures."""
TILE, MARGIN, LINE = 96, 6, 14


class Autoencoder(Protocol):
    """What `decibels` needs of `omnigen2.network.autoencoder.Autoencoder`."""

    def encode(self, image: Image.Image, max_pixels: int, max_side: int) -> Any:
        """Latents."""
        ...

    def decode(self, latents: Any) -> Image.Image:
        """The picture of latents."""
        ...


class Model(Protocol):
    """The two methods that are evaluated."""

    def generate(
        self, prompt: Any, images: Any = (), *, seed: int | None = None, lora: Path | None = None
    ) -> Any:
        """One picture per prompt."""
        ...

    def describe(self, images: Any, question: str) -> str:
        """Text about the images."""
        ...


@dataclass(frozen=True)
class Answer:
    """A model's output for the example with that number, and the verdict on it."""

    number: int
    example: Example
    output: Image.Image | str
    verdict: Verdict


@dataclass(frozen=True)
class Score:
    """The numbers of correct answers and of examples."""

    right: int
    asked: int

    @property
    def share(self) -> float:
        """Between 0 and 1."""
        return self.right / self.asked

    @property
    def interval(self) -> tuple[float, float]:
        """95 % confidence interval of the share (Wilson 1927)."""
        z, n, p = 1.96, self.asked, self.share
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


def answers(
    model: Model, task: Task, split: Split, count: int, first: int = 0, lora: Path | None = None
) -> Iterator[Answer]:
    """The model's answers to the examples `first` to `first + count - 1` of a split.

    The number of an example is also the seed of its noise. Settings are the model's defaults; `lora` is an
    optional adapter.
    """
    for start in range(first, first + count, BATCH):
        numbers = range(start, min(start + BATCH, first + count))
        batch = [example(task, split, number) for number in numbers]
        for number, asked, output in zip(numbers, batch, _outputs(model, batch, start, lora), strict=True):
            yield Answer(number, asked, output, judge(asked, output))


def scores(given: Iterable[Answer], key: Callable[[Answer], str]) -> dict[str, Score]:
    """The score of each group of answers, by name."""
    groups: dict[str, list[bool]] = defaultdict(list)
    for answer in given:
        groups[key(answer)].append(answer.verdict.ok)
    return {name: Score(sum(groups[name]), len(groups[name])) for name in sorted(groups)}


def decibels(autoencoder: Autoencoder, split: Split, count: int, first: int = 0) -> list[float]:
    """Peak signal-to-noise ratio of each scene's reconstruction by the autoencoder, in dB."""
    values = []
    for number in range(first, first + count):
        target = example("generate", split, number).target
        assert target is not None
        before = picture(target)
        after = autoencoder.decode(autoencoder.encode(before, before.width * before.height, before.width))
        error = np.asarray(before, np.float64) - np.asarray(after, np.float64)
        values.append(20 * math.log10(255 / max(1e-9, math.sqrt(np.square(error).mean()))))
    return values


def contact_sheet(given: Sequence[Answer], columns: int = 3) -> Image.Image:
    """A sheet of answers: inputs, output and target side by side; below, the text and the reasons."""
    shown = [(_tiles(answer), _caption(answer)) for answer in given]
    cell_width = max((len(tiles) for tiles, _ in shown), default=1) * (TILE + MARGIN) + 3 * MARGIN
    cell_height = TILE + 2 * MARGIN + 4 * LINE
    rows = math.ceil(len(shown) / columns)
    sheet = Image.new("RGB", (columns * cell_width, max(rows, 1) * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for index, (tiles, caption) in enumerate(shown):
        left, top = index % columns * cell_width + MARGIN, index // columns * cell_height + MARGIN
        for place, tile in enumerate(tiles):
            sheet.paste(tile.resize((TILE, TILE)), (left + place * (TILE + MARGIN), top))
        text = _wrapped(caption, lambda line: draw.textlength(line, font=font), cell_width - 2 * MARGIN)
        draw.multiline_text((left, top + TILE + MARGIN), "\n".join(text[:4]), fill="black", font=font)
    return sheet


def _outputs(
    model: Model, batch: Sequence[Example], seed: int, lora: Path | None
) -> Sequence[Image.Image | str]:
    inputs = [[picture(scene) for scene in asked.inputs] for asked in batch]
    texts = [asked.text for asked in batch]
    if batch[0].answer is not None:
        return [model.describe(images, text) for images, text in zip(inputs, texts, strict=True)]
    return list(model.generate(texts, inputs, seed=seed, lora=lora))


def picture(scene: Scene) -> Image.Image:
    """A scene as the picture that a model is shown."""
    return Image.fromarray(render(scene))


def _tiles(answer: Answer) -> list[Image.Image]:
    tiles = [picture(scene) for scene in answer.example.inputs]
    if isinstance(answer.output, Image.Image):
        tiles.append(answer.output.convert("RGB"))
    if answer.example.target is not None:
        tiles.append(picture(answer.example.target))
    return tiles


def _caption(answer: Answer) -> str:
    return f"{answer.number}: {answer.example.text} → {'; '.join(answer.verdict.reasons) or 'right'}"


def _wrapped(text: str, measure: Callable[[str], float], width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if measure(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
