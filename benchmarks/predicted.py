"""How far computed ratios to the reference are from measured ones, where both can be had: on a CPU.

    python -m benchmarks.predicted FOLDER        # a checkout of the reference; ten minutes in one thread

The model has 63 million parameters in its transformer. Rates of this CPU are measured first, on sizes of
this model; then both implementations are counted as for a GPU (`python -m benchmarks.plan --against`), and
measured by turns (`omnigen2-mcp bench --against`). One JSON object per line. On a CPU launches add to the
work, and not all the code is the one that was counted: sequences are attended one by one, some sums are made
in place.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import torch.nn.functional as F
from transformers import AutoTokenizer

from benchmarks import beside, shapes
from benchmarks.full_size import make
from benchmarks.machines import Machine
from benchmarks.plan import count
from omnigen2.checkpoints.card import published_card
from omnigen2.comparison.compare import PROMPT, Compared, Settings, compare
from omnigen2.memory.placement import Placement
from omnigen2.network.language import generation_chat

NAMES = {"text to image": "text to image", "edit": "edit", "compose": "compose of two"}
"""Cases of `benchmarks.plan`, as `bench` calls them."""
STEPS, SIDE = 4, 256


def measured_cpu() -> Machine:
    """Rates for 1,024 tokens of the mid-size model, in float32."""
    tokens, width, inner, heads = 1024, 480, 2048, 4
    x, wide, small = torch.randn(tokens, width), torch.randn(tokens, inner), torch.randn(8)
    weight, query = torch.randn(inner, width), torch.randn(1, heads, tokens, width // heads)
    attend = F.scaled_dot_product_attention
    return Machine(
        "this CPU",
        peak=0.0,
        products=2 * tokens * width * inner / quickest(lambda: F.linear(x, weight)),
        attention=4 * tokens**2 * width / quickest(lambda: attend(query, query, query)),
        memory=3 * 4 * wide.numel() / quickest(lambda: wide * wide),
        link=0.0,
        launch=quickest(lambda: small * small),
        is_host=True,
    )


def quickest(work: Callable[[], object], rounds: int = 50) -> float:
    """Seconds that it takes at best."""
    times: list[float] = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def expected(folder: Path, machine: Machine) -> dict[str, float]:
    """The ratio of each case, computed."""
    tokenizer = AutoTokenizer.from_pretrained(shapes.PROCESSOR)
    negative = published_card("mid").defaults_for(0).negative_prompt or ""
    prompt, other = (
        len(tokenizer(generation_chat(text))["input_ids"]) for text in (PROMPT.format(1, 0), negative)
    )
    counted = [
        count(case, SIDE, "resident", "mid", dtype=torch.float32, tokens=(prompt, other)) for case in NAMES
    ]
    found = beside.rows(folder, counted, "mid", torch.float32, ["SDPA"])
    return {
        NAMES[row.case]: row.reference.seconds(machine, STEPS) / row.ours.seconds(machine, STEPS)
        for row in found
    }


def measured(folder: Path, rounds: int) -> Iterator[Compared]:
    """The cases, measured with random weights."""
    with tempfile.TemporaryDirectory() as name:
        with contextlib.redirect_stdout(sys.stderr):
            make(Path(name), "mid")
        placement = Placement("cpu", "float32", "resident", compile="never")
        yield from compare(folder, Settings(name, SIDE, STEPS, rounds, placement, "exact"))[1]


def main() -> None:
    """Compute, then measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="a checkout of the reference")
    parser.add_argument("--rounds", type=int, default=2, help="that are measured")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes that measure
    machine = measured_cpu()
    print(json.dumps(asdict(machine)), flush=True)
    ratios = expected(asked.folder, machine)
    for one in measured(asked.folder, asked.rounds):
        facts = {"computed": ratios.get(one.case), "measured": one.ratio, "measured_cpu": one.cpu_ratio}
        rounded = {name: None if ratio is None else round(ratio, 2) for name, ratio in facts.items()}
        print(json.dumps({"case": one.case, **rounded}), flush=True)


if __name__ == "__main__":
    main()
