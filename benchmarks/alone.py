"""Random requests at once, each compared with what it gives alone.

    python -m benchmarks.alone [COUNT] [SEED]          # 50 requests of the tiny golden checkpoint

Sizes, numbers of references and pictures, seeds, guidance, samplers, steps, speeds and adapters are random.
Prints the largest difference of a pixel, in levels of 255, for an engine as it is on a CPU, where it must be
0, and for one that packs all pictures into one forward, as on a GPU: through the operator that attends to
packed sequences, as written and traced by the compiler. There rounding may change a pixel by one level.
"""

import random
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import wait
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import omnigen2
from benchmarks.shapes import GOLDEN
from omnigen2.adapters.file import Adapter, WeightedAdapter
from omnigen2.adapters.loaded import linear_layers
from omnigen2.completion import complete_sampling
from omnigen2.denoise import Denoiser
from omnigen2.engine import running_pictures
from omnigen2.engine.engine import Engine
from omnigen2.model import OmniGen2
from omnigen2.network.compiled import compile_blocks
from omnigen2.params import ReferenceSampling
from omnigen2.task import ImageTask

ADAPTERS = 2
WORDS = ("a red circle", "make it green", "both, side by side", "a blue square above a star")


def make_adapter(model: OmniGen2, path: Path, seed: int) -> Adapter:
    """An adapter of some layers, with random values."""
    draw, rng, stored = torch.Generator().manual_seed(seed), random.Random(seed), {}
    for layer, (out, into) in linear_layers(model.pipeline.transformer).items():
        if rng.random() < 0.5:
            stored[f"{layer}.lora_A.weight"] = torch.randn((4, into), generator=draw)
            stored[f"{layer}.lora_B.weight"] = 0.05 * torch.randn((out, 4), generator=draw) / into**0.5
    save_file(stored, path)
    return Adapter.of(path)


def picture(rng: random.Random) -> Image.Image:
    """Noise of a random size."""
    shape = (16 * rng.randint(1, 4), 16 * rng.randint(1, 4), 3)
    return Image.fromarray(np.frombuffer(rng.randbytes(shape[0] * shape[1] * 3), np.uint8).reshape(shape))


def random_task(model: OmniGen2, adapters: Sequence[Adapter], rng: random.Random) -> ImageTask:
    """A request of any kind."""
    images = tuple(picture(rng) for _ in range(rng.choice((0, 0, 1, 1, 2, 3))))
    asked: dict[str, Any] = {
        "width": 16 * rng.randint(1, 5),
        "height": 16 * rng.randint(1, 5),
        "seed": rng.randrange(1 << 32),
        "steps": rng.randint(1, 12),
        "num_images": rng.choice((1, 1, 1, 2)),
        "text_guidance_scale": rng.choice((1.0, rng.uniform(1.5, 8.0))),
        "image_guidance_scale": rng.choice((1.0, rng.uniform(1.5, 4.0))),
        "cfg_range": rng.choice(((0.0, 1.0), (0.2, 0.7))),
        "scheduler": rng.choice(("euler", "dpmsolver++")),
        "speed": rng.choice(("exact", "balanced", "fast")),
    }
    sampling = complete_sampling(
        ReferenceSampling(**asked), [image.size for image in images], model.card
    ).params
    used = rng.sample(adapters, rng.choice((0, 0, 1, 2)))
    weighted = tuple(WeightedAdapter(own, rng.uniform(0.3, 1.2)) for own in used)
    return ImageTask(rng.choice(WORDS), images, sampling, weighted)


def made(model: OmniGen2, tasks: Sequence[ImageTask], at_once: bool, together: bool = False) -> list[Any]:
    """The pixels of each task, from an engine that has them all at once, or one after the other."""
    packed: AbstractContextManager[Any] = nullcontext()
    if together:
        packed = mock.patch.object(running_pictures, "Denoiser", partial(Denoiser, together=True))
    with packed:
        engine = Engine(model)
    futures = []
    for task in tasks:
        futures.append(engine.submit(task).future)
        wait([] if at_once else futures)
    results = [future.result().pictures for future in futures]
    engine.close()
    return [np.stack([np.asarray(own, np.int16) for own in pictures]) for pictures in results]


def main(count: str = "50", seed: str = "0") -> None:
    """Make all requests in each way, and compare."""
    model = omnigen2.load(str(GOLDEN), device="cpu", dtype="float32")
    rng = random.Random(int(seed))
    with tempfile.TemporaryDirectory() as folder:
        adapters = [make_adapter(model, Path(folder) / f"{n}.safetensors", n) for n in range(ADAPTERS)]
        tasks = [random_task(model, adapters, rng) for _ in range(int(count))]
        alone = made(model, tasks, at_once=False)
        for way in ("a forward each", "one forward", "one forward, compiled"):
            if "compiled" in way:
                compile_blocks(model.pipeline.transformer, "eager")
                assert model.pipeline.transformer.compiled is not None
            company = made(model, tasks, at_once=True, together="one" in way)
            off = [int(np.abs(a - b).max()) for a, b in zip(alone, company, strict=True)]
            print(
                f"{way:22} {off.count(0)} of {count} requests are the same, others differ by {max(off)}",
                flush=True,
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
