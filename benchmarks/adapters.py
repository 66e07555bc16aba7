"""What adapters cost: a step of pictures with different adapters, one after the other and packed.

    python -m benchmarks.adapters [MODEL]

Writes four adapters of rank 16 for every attention layer, prepares four pictures with one each, and prints
the processor time of a denoising step of all of them, in milliseconds: without adapters and with them, each
picture in a forward of its own, and packed into one forward. Then the time from the request of a picture of
two steps to its result while another one of 200 steps, with another adapter, is being made.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

import omnigen2
from omnigen2.adapters.file import Adapter, WeightedAdapter
from omnigen2.adapters.loaded import linear_layers
from omnigen2.denoise import Denoiser
from omnigen2.engine.engine import Engine
from omnigen2.model import OmniGen2
from omnigen2.network.threads import limited_to
from omnigen2.params import ReferenceSampling
from omnigen2.task import ImageTask

STEPS, RANK, SIDE = 12, 16, 64


def write_adapter(model: OmniGen2, path: Path) -> WeightedAdapter:
    """A random adapter of every attention layer."""
    layers = linear_layers(model.pipeline.transformer)
    stored = {
        f"{name}.lora_{side}.weight": 0.02 * torch.randn(shape)
        for name, (out, into) in layers.items()
        if ".attn." in name
        for side, shape in (("A", (RANK, into)), ("B", (out, RANK)))
    }
    save_file(stored, path)
    return WeightedAdapter(Adapter.of(path))


def task(model: OmniGen2, adapter: WeightedAdapter | None, steps: int) -> ImageTask:
    """A square picture."""
    asked = ReferenceSampling(width=SIDE, height=SIDE, num_images=1, steps=steps, seed=1)
    sampling = asked.filled(model.card.defaults_for(0))
    return ImageTask("a red circle above a blue square", (), sampling, (adapter,) if adapter else ())


def step_ms(model: OmniGen2, adapters: Sequence[WeightedAdapter | None], together: bool) -> float:
    """The least processor time of a step of one picture for each of `adapters`."""
    denoiser = Denoiser(model.pipeline.transformer, together)
    for adapter in adapters:
        denoiser.add(model.pipeline.prepare(task(model, adapter, STEPS + 1))[0])
    denoiser.step()
    times: list[float] = []
    for _ in range(STEPS):
        started = time.process_time()
        denoiser.step()
        times.append(time.process_time() - started)
    return 1000 * min(times)


def wait_ms(model: OmniGen2, adapters: Sequence[WeightedAdapter]) -> tuple[float, float]:
    """Milliseconds of a short task beside a long one with another adapter, and of the long one."""
    engine = Engine(model)
    for adapter in adapters:
        engine.submit(task(model, adapter, 2)).future.result()
    started = time.perf_counter()
    long = engine.submit(task(model, adapters[0], 200))
    engine.submit(task(model, adapters[1], 2)).future.result()
    short_ms = 1000 * (time.perf_counter() - started)
    long.future.result()
    long_ms = 1000 * (time.perf_counter() - started)
    engine.close()
    return short_ms, long_ms


def main(source: str = "nano") -> None:
    """Measure, print."""
    model = omnigen2.load(source, device="cpu")
    with tempfile.TemporaryDirectory() as folder, limited_to(1):
        adapters = [write_adapter(model, Path(folder) / f"{n}.safetensors") for n in range(4)]
        for name, used in (("none", [None] * 4), ("four different", adapters)):
            apart, packed = (step_ms(model, used, together) for together in (False, True))
            print(f"4 pictures, adapters: {name}: {apart:.1f} ms apart, {packed:.1f} ms packed", flush=True)
        short_ms, long_ms = wait_ms(model, adapters)
        print(f"2 steps beside 200 with another adapter: {short_ms:.0f} ms; the 200: {long_ms:.0f} ms")


if __name__ == "__main__":
    main(*sys.argv[1:])
