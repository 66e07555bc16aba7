"""Teach nano a colour it never met, as an adapter of half a megabyte, and show what came of it.

Makes a folder of examples (half of them pink, half what nano knows already, so that it forgets nothing),
trains what `train.toml` says, and asks for pink things before and after. Prints how many came out right and
saves `before-after.png`. `--steps` shortens it.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

import omnigen2
from omnigen2 import lora
from omnigen2.shapeworld import COLOURS, Example, Scene, example, render
from omnigen2.training.config import TrainConfig, read_config
from omnigen2.training.run import run

NAME, VALUE = "pink", (255, 120, 180)
STANDS_FOR = "purple"  # pink stands wherever a training example has purple
TAUGHT, ASKED = 400, 40
NEAR = 60  # farthest from pink, in 8-bit sRGB, that a pixel may be and count as pink
OVERLAP = 0.8
CONFIG = Path(__file__).with_name("train.toml")


def pink_examples(count: int, first: int) -> list[tuple[str, Scene]]:
    """Prompts for pink things, and the pictures they want; different numbers give different prompts."""
    found: list[tuple[str, Scene]] = []
    number = first
    while len(found) < count:
        drawn = example("generate", "train", number)
        number += 1
        text = drawn.text.lower()
        if STANDS_FOR in text and drawn.target and drawn.target.background != STANDS_FOR:
            found.append((text.replace(STANDS_FOR, NAME), in_pink(drawn.target)))
    return found


def in_pink(scene: Scene) -> Scene:
    """The scene with pink things for purple ones."""
    things = (replace(t, colour=NAME) if t.colour == STANDS_FOR else t for t in scene.things)
    return Scene(scene.background, tuple(things))


def painted(scene: Scene) -> np.ndarray:
    """The picture of a scene in a world that has pink."""
    COLOURS[NAME] = VALUE
    try:
        return render(scene)
    finally:
        del COLOURS[NAME]  # or examples drawn later would have it too


def write_data(folder: Path) -> None:
    """Half new, half old."""
    folder.mkdir(parents=True, exist_ok=True)
    known = [example("generate", "train", 10_000 + n) for n in range(TAUGHT // 2)]
    known += [example("edit", "train", n) for n in range(TAUGHT // 2)]
    lines = [
        line(folder, f"new{n}", text, (), target) for n, (text, target) in enumerate(pink_examples(TAUGHT, 0))
    ]
    lines += [line(folder, f"old{n}", own.text, own.inputs, wanted(own)) for n, own in enumerate(known)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def line(folder: Path, name: str, text: str, inputs: tuple[Scene, ...], target: Scene) -> dict[str, object]:
    """One line of `train.jsonl`; its pictures are saved."""
    paths = [f"{name}-in{n}.png" for n in range(len(inputs))]
    for path, scene in zip([*paths, f"{name}.png"], [*inputs, target], strict=True):
        Image.fromarray(painted(scene)).save(folder / path)
    return {"instruction": text, "input_images": paths, "output_image": f"{name}.png"}


def wanted(own: Example) -> Scene:
    """The target of a picture example."""
    assert own.target is not None
    return own.target


def is_right(picture: Image.Image, target: Scene) -> bool:
    """Whether what should be pink is, and nothing else."""
    pink = np.array(VALUE, np.int64)
    masks = [
        np.linalg.norm(np.asarray(own, np.int64) - pink, axis=-1) < NEAR for own in (picture, painted(target))
    ]
    return bool((masks[0] & masks[1]).sum() >= OVERLAP * (masks[0] | masks[1]).sum())


def main() -> None:
    """Make the data, ask, train, ask again."""
    parser = argparse.ArgumentParser(description=__doc__)
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
    asked = pink_examples(ASKED, 50_000)
    prompts = [text for text, _ in asked]
    before = model.generate(prompts, seed=1)
    run(config)
    after = model.generate(prompts, seed=1, lora=config.output)
    for name, pictures in (("before", before), ("after", after)):
        right = sum(is_right(own, target) for own, (_, target) in zip(pictures, asked, strict=True))
        print(f"{name}: {right} of {len(asked)} right")
    rows = [np.concatenate([np.asarray(own) for own in pictures[:8]], axis=1) for pictures in (before, after)]
    Image.fromarray(np.concatenate(rows)).save(config.output / "before-after.png")
    print(f"{config.output / lora.FILE}: {(config.output / lora.FILE).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
