"""Teach nano a shape it never met, as an adapter of two megabytes, and show what came of it.

Makes a folder of examples (three quarters of them diamonds, the others what nano knows already, so that it
forgets nothing), trains what `train.toml` says, and asks for diamonds before and after, of colours and
backgrounds that were not shown together. Prints how many came out right and saves `before-after.png`.
`--steps` shortens it.

nano has one token for all words that it does not know: what it learns for "diamond", it will draw for
"hexagon", too. A model with a real vocabulary keeps them apart.
"""

import argparse
import json
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import omnigen2
from omnigen2 import lora
from omnigen2.shapeworld import COLOURS, SHAPES, SIZES, Scene, Thing, example, render
from omnigen2.training.config import TrainConfig, read_config
from omnigen2.training.run import run

NAME = "diamond"
WORDINGS = ("a {} diamond on a {} background", "{} diamond, {} background", "Picture of a {} diamond on {}")
TAUGHT, KNOWN, ASKED = 576, 64, 60
SIDE, SAMPLES = 96, 6
NEAR = 60  # farthest from its colour, in 8-bit sRGB, that a pixel may be
OVERLAP = 0.8
CONFIG = Path(__file__).with_name("train.toml")


def diamonds(count: int, *, asked: bool) -> list[tuple[str, Scene]]:
    """Prompts for one diamond, and scenes that fulfil them; what is asked pairs other colours than what is
    taught."""
    rng = np.random.default_rng(int(asked))
    pairs = [pair for n, pair in enumerate(product(COLOURS, COLOURS)) if (n % 4 == 0) == asked]
    pairs = [pair for pair in pairs if pair[0] != pair[1]]
    found = []
    for number in range(count):
        colour, background = pairs[number % len(pairs)]
        size = str(rng.choice(list(SIZES)))
        x, y = rng.uniform(0.3, 0.7, 2).tolist()
        said = colour if rng.random() < 0.4 else f"{size} {colour}"
        text = WORDINGS[number % len(WORDINGS)].format(said, background)
        found.append((text, Scene(background, (Thing(NAME, colour, size, x, y),))))
    return found


def painted(scene: Scene) -> Image.Image:
    """The picture of a scene in a world that has diamonds."""
    picture = Image.fromarray(
        render(Scene(scene.background, tuple(t for t in scene.things if t.shape != NAME)))
    )
    for thing in scene.things:
        if thing.shape == NAME:
            x, y, radius = (SAMPLES * SIDE * length for length in (thing.x, thing.y, thing.radius))
            mask = Image.new("L", (SAMPLES * SIDE, SAMPLES * SIDE))
            ImageDraw.Draw(mask).polygon(
                [(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)], fill=255
            )
            picture.paste(COLOURS[thing.colour], mask=mask.resize((SIDE, SIDE), Image.Resampling.BOX))
    return picture


def write_data(folder: Path) -> None:
    """What is new, and something of what is old."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        line(folder, f"new{n}", text, (), scene)
        for n, (text, scene) in enumerate(diamonds(TAUGHT, asked=False))
    ]
    for task in ("generate", "edit", "compose"):
        for n in range(KNOWN):
            old = example(task, "train", 10_000 + n)
            assert old.target is not None
            lines.append(line(folder, f"{task}{n}", old.text, old.inputs, old.target))
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def line(folder: Path, name: str, text: str, inputs: tuple[Scene, ...], target: Scene) -> dict[str, object]:
    """One line of `train.jsonl`; its pictures are saved."""
    paths = [f"{name}-in{n}.png" for n in range(len(inputs))]
    for path, scene in zip([*paths, f"{name}.png"], [*inputs, target], strict=True):
        painted(scene).save(folder / path)
    return {"instruction": text, "input_images": paths, "output_image": f"{name}.png"}


def is_right(picture: Image.Image, wanted: Scene) -> bool:
    """Whether the picture shows one thing of the colour on the background, and it is most like a diamond."""
    pixels = np.asarray(picture, np.float64)
    colour, background = COLOURS[wanted.things[0].colour], COLOURS[wanted.background]
    away, near = (np.linalg.norm(pixels - np.array(own), axis=-1) for own in (background, colour))
    mask = near < away
    if not mask.any() or np.median(near[mask]) > NEAR or np.median(away[~mask]) > NEAR:
        return False
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    overlaps = {shape: overlap(box, outline(shape, box.shape)) for shape in (NAME, *SHAPES)}
    return max(overlaps, key=overlaps.__getitem__) == NAME and overlaps[NAME] >= OVERLAP


def outline(shape: str, size: tuple[int, int]) -> np.ndarray:
    """The shape as a mask that fills a box of that many rows and columns."""
    large = np.asarray(painted(Scene("white", (Thing(shape, "black", "large", 0.5, 0.5),))))[..., 0] < 128
    rows, columns = (np.flatnonzero(large.any(axis)) for axis in (1, 0))
    cut = Image.fromarray(large[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])
    return np.asarray(cut.resize(size[::-1], Image.Resampling.NEAREST))


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return float((one & other).sum() / (one | other).sum())


def main() -> None:
    """Make the data, ask, train, ask again."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of those in train.toml")
    steps = parser.parse_args().steps
    config = read_config(CONFIG)
    assert config.finetune is not None
    if steps:
        config = TrainConfig.model_validate(
            config.model_dump() | {"finetune": config.finetune.model_dump() | {"steps": steps}}
        )
    write_data(config.output / "data")
    model = omnigen2.load("nano")
    asked = diamonds(ASKED, asked=True)
    prompts = [text for text, _ in asked]
    before = model.generate(prompts, seed=1)
    run(config)
    after = model.generate(prompts, seed=1, lora=config.output)
    for name, pictures in (("before", before), ("after", after)):
        right = sum(is_right(own, scene) for own, (_, scene) in zip(pictures, asked, strict=True))
        print(f"{name}: {right} of {len(asked)} right")
    rows = [np.concatenate([np.asarray(own) for own in pictures[:8]], axis=1) for pictures in (before, after)]
    Image.fromarray(np.concatenate(rows)).save(config.output / "before-after.png")
    print(f"{config.output / lora.FILE}: {(config.output / lora.FILE).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
