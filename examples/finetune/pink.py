"""Fine-tune nano on a colour that it was not trained on, as an adapter (LoRA) of two megabytes.

Writes a folder of examples, half of them with pink things, the others marked as known, trains an adapter as
`train.toml` says, and generates pictures of pink things before and after. Prints how many are correct and
saves `before-after.png`. `--steps` shortens the training.

nano has one token for all unknown words: after learning "pink" it paints "turquoise" pink too. A model with a
real vocabulary distinguishes them.
"""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

import omnigen2
from omnigen2.adapters.file import FILE
from omnigen2.nano.world import COLOURS, Example, example, judge, render
from omnigen2.nano.world.tasks import Split, Task
from omnigen2.training.config import FinetuneConfig, read_config
from omnigen2.training.finetune import finetune

NAME, VALUE = "pink", (255, 120, 180)
STANDS_FOR = "purple"
"""ShapeWorld does not have pink, so pink replaces purple in examples that mention it."""
TAUGHT: dict[Task, int] = {"generate": 500, "edit": 200}
KNOWN: dict[Task, int] = {"generate": 150, "edit": 400, "compose": 200}
ASKED = 100
CONFIG = Path(__file__).with_name("train.toml")


def examples(task: Task, split: Split, *, pink: bool) -> Iterator[Example]:
    """Examples whose text mentions the replaced colour (`pink`), or examples that do not."""
    drawn = (example(task, split, number) for number in itertools.count(10_000))
    return (own for own in drawn if (STANDS_FOR in own.text.lower()) == pink)


def in_pink(text: str) -> str:
    """The text with pink instead of the replaced colour."""
    return text.lower().replace(STANDS_FOR, NAME)


def write_data(folder: Path) -> None:
    """Write `train.jsonl` and its pictures: new examples and known ones."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for pink, counts in ((True, TAUGHT), (False, KNOWN)):
        for task, count in counts.items():
            drawn = itertools.islice(examples(task, "train", pink=pink), count)
            lines += [line(folder, f"{task}{n}{NAME * pink}", own, pink) for n, own in enumerate(drawn)]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")


def line(folder: Path, name: str, own: Example, pink: bool) -> dict[str, object]:
    """A line of `train.jsonl`; saves its pictures."""
    assert own.target is not None
    colours = COLOURS | {STANDS_FOR: VALUE} if pink else COLOURS
    paths = [f"{name}-in{n}.png" for n in range(len(own.inputs))]
    for path, scene in zip([*paths, f"{name}.png"], [*own.inputs, own.target], strict=True):
        Image.fromarray(render(scene, colours=colours)).save(folder / path)
    text = in_pink(own.text) if pink else own.text
    return {
        "instruction": text,
        "input_images": paths,
        "output_image": f"{name}.png",
        "known": not pink,
    }


def is_right(picture: Image.Image, own: Example) -> bool:
    """Whether ShapeWorld's checker accepts the picture with pink and the replaced colour exchanged."""
    palette = np.array([*COLOURS.values(), VALUE])
    distance = np.linalg.norm(np.asarray(picture, np.float64)[..., None, :] - palette, axis=-1)
    swapped = COLOURS | {STANDS_FOR: VALUE, NAME: COLOURS[STANDS_FOR]}
    repainted = np.array(list(swapped.values()), np.uint8)[distance.argmin(-1)]
    return judge(own, Image.fromarray(repainted)).ok


def main() -> None:
    """Write the data, generate, train, generate again, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, help="optimiser steps, instead of those in train.toml")
    steps = parser.parse_args().steps
    config = read_config(CONFIG, FinetuneConfig)
    if steps:
        config = config.model_copy(update={"finetune": config.finetune.model_copy(update={"steps": steps})})
    write_data(config.output / "data")
    model = omnigen2.load(config.finetune.model)
    asked = list(itertools.islice(examples("generate", "test", pink=True), ASKED))
    prompts = [in_pink(own.text) for own in asked]
    before = list(model.generate(prompts, seed=1))
    finetune(config)
    after = list(model.generate(prompts, seed=1, lora=config.output))
    for name, pictures in (("before", before), ("after", after)):
        right = sum(is_right(picture, own) for picture, own in zip(pictures, asked, strict=True))
        print(f"{name}: {right} of {len(asked)} right")
    rows = [np.concatenate([np.asarray(own) for own in pictures[:8]], axis=1) for pictures in (before, after)]
    Image.fromarray(np.concatenate(rows)).save(config.output / "before-after.png")
    print(f"{config.output / FILE}: {(config.output / FILE).stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
