"""What it costs on a CPU that each picture has a forward of its own, as company must change none of its bits.

    python -m benchmarks.company [MODEL]

Prints the processor time of a denoising step, in milliseconds, for some sizes and numbers of pictures: with
one forward for all of them, and with one for each.
"""

import sys
import time

import omnigen2
from omnigen2.denoise import Denoiser
from omnigen2.model import OmniGen2
from omnigen2.network.threads import limited_to
from omnigen2.params import ReferenceSampling
from omnigen2.task import ImageTask

STEPS = 8


def step_ms(model: OmniGen2, side: int, pictures: int, together: bool) -> float:
    """The least processor time of a step of so many square pictures."""
    asked = ReferenceSampling(width=side, height=side, num_images=pictures, steps=STEPS + 1, seed=1)
    task = ImageTask("a red circle above a blue square", (), asked.filled(model.card.defaults_for(0)))
    denoiser = Denoiser(model.pipeline.transformer, together)
    denoiser.add(model.pipeline.prepare(task)[0])
    denoiser.step()
    times = []
    for _ in range(STEPS):
        started = time.process_time()
        denoiser.step()
        times.append(time.process_time() - started)
    return 1000 * min(times)


def main(source: str = "nano") -> None:
    """Measure, print."""
    model = omnigen2.load(source, device="cpu")
    with limited_to(1):
        for side in (64, 96, 128, 192):
            for pictures in (1, 2, 4, 8):
                one, apart = (step_ms(model, side, pictures, together) for together in (True, False))
                print(
                    f"{side:4} px, {pictures} pictures: {one:6.1f} ms together, {apart:6.1f} ms apart",
                    flush=True,
                )


if __name__ == "__main__":
    main(*sys.argv[1:])
