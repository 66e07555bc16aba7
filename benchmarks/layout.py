"""What a change of company costs: the layout of ten pictures of 512 x 512 at full size, made anew.

    python -m benchmarks.layout [PICTURES] [SIDE]

Prints milliseconds of one thread, the least of many: for text to image (two branches) and for an edit with
one reference (three), with tokens in memory, and without any (on meta): what the host takes beside a GPU.
"""

import sys
import time
from functools import partial

import numpy as np
import torch

from benchmarks.shapes import FULL_TRANSFORMER
from omnigen2.denoise import Denoiser, Sample
from omnigen2.guidance import Branch, Guidance
from omnigen2.network.packing import Condition
from omnigen2.network.positions import Grid, rotations, sample_positions
from omnigen2.network.threads import limited_to
from omnigen2.network.transformer import OmniGen2Transformer2DModel

T2I = Guidance(((Branch.FULL, 4.0), (Branch.BARE, -3.0)))
EDIT = Guidance(((Branch.FULL, 5.0), (Branch.REFERENCES, -3.0), (Branch.BARE, -1.0)))
ROUNDS = 100


def conditions(text: int, grid: Grid, guidance: Guidance, device: torch.device) -> dict[Branch, Condition]:
    """What the branches of a picture see: a prompt of `text` tokens and a negative prompt of 100."""
    made: dict[Branch, Condition] = {}
    for branch, _ in guidance.weights:
        length = text if branch == Branch.FULL else 100
        references = [grid] * (len(guidance.weights) == 3 and branch != Branch.BARE)
        places = np.concatenate(sample_positions(length, references, grid))
        empty = partial(torch.zeros, dtype=torch.bfloat16, device=device)
        made[branch] = Condition(
            empty(length, FULL_TRANSFORMER["hidden_size"]),
            tuple(empty(h * w, FULL_TRANSFORMER["hidden_size"]) for h, w in references),
            grid,
            rotations(places, FULL_TRANSFORMER["axes_dim_rope"], device),
        )
    return made


def layout_ms(pictures: int, side: int, guidance: Guidance, device: torch.device) -> float:
    """The least time to make the layout, and what its first step makes of it."""
    with torch.device("meta"):
        transformer = OmniGen2Transformer2DModel(**FULL_TRANSFORMER)  # pyright: ignore[reportArgumentType]
    grid = (side // 16, side // 16)
    samples = [
        Sample(
            torch.zeros(grid[0] * grid[1], 64, device=device),
            conditions(300 + n, grid, guidance, device),
            [guidance],
            [],
        )
        for n in range(pictures)
    ]
    denoiser = Denoiser(transformer, together=True)
    times: list[float] = []
    for _ in range(ROUNDS):
        denoiser.forget()
        started = time.perf_counter()
        batch = denoiser._layout(samples).batch
        for segments in (batch.references, batch.pictures, batch.joint):
            assert segments.bounds is not None and segments.owner is not None
        times.append(time.perf_counter() - started)
    return 1000 * min(times)


def main(pictures: str = "10", side: str = "512") -> None:
    """Measure, print."""
    with limited_to(1), torch.inference_mode():
        for name, guidance in (("text to image", T2I), ("edit, one reference", EDIT)):
            there, host = (
                layout_ms(int(pictures), int(side), guidance, torch.device(device))
                for device in ("cpu", "meta")
            )
            print(
                f"{pictures} pictures of {side} px, {name}: {there:.2f} ms; on meta {host:.2f} ms", flush=True
            )


if __name__ == "__main__":
    main(*sys.argv[1:])
