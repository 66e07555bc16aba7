"""Everything about a GPU that is wanted, by one command within ten minutes; on a CPU, to try it, with --tiny.

    python -m benchmarks.gpu                        # makes a checkpoint of the full size, 15.6 GB
    python -m benchmarks.gpu --folder FOLDER        # takes one, or makes it there
    python -m benchmarks.gpu --part memory          # or speed
    python -m benchmarks.gpu --against FOLDER       # beside the reference, a checkout of which FOLDER holds

`memory`: for each memory mode and quantisation, an edit: peak of the device, seconds to the first step and
for each further one, relative error of one forward against `resident` without quantisation, and the peak that
`benchmarks.plan` foretells. `speed`: 1024 x 1024 in 50 steps with 0 to 3 references; then 1 to 16 requests of
512 x 512 at once. With `--against`, the former by turns with the reference, and what was expected
(`benchmarks/gpu_beside.py`). One JSON object per line; what there was no time for, or what failed, is said.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import omnigen2
from benchmarks import gpu_beside
from benchmarks.full_size import GB, make, make_task
from benchmarks.plan import count
from benchmarks.shapes import Size
from omnigen2.engine.engine import Engine
from omnigen2.memory.choice import MODES
from omnigen2.memory.placement import KINDS
from omnigen2.task import ImageTask, Progress

COMPANY = (1, 2, 4, 8, 16)
Facts = dict[str, Any]


def load(folder: Path, memory: str, quantize: str) -> Any:
    """The model, with its weights kept as asked."""
    return omnigen2.load(str(folder), memory=memory, quantize=quantize)


def timed(engine: Engine, tasks: Iterable[ImageTask]) -> Facts:
    """Seconds of tasks that are submitted at once, and the peak of the device."""
    at: list[float] = []

    def progress(told: Progress) -> None:
        if told.step:
            at.append(time.perf_counter())

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    tickets = [engine.submit(task, progress) for task in tasks]
    for ticket in tickets:
        ticket.future.result()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / GB if torch.cuda.is_available() else None
    later = [after - before for before, after in itertools.pairwise(at)] if len(tickets) == 1 else []
    return {
        "seconds": seconds,
        "first_step_s": at[0] - started,
        "step_s": sum(later) / len(later) if later else None,
        "images_per_s": len(tickets) / seconds,
        "peak_gb": peak,
    }


def velocity(model: Any, side: int) -> torch.Tensor:
    """What one forward of an edit adds to noise."""
    noise = torch.randn(1, 16, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    picture = Image.effect_noise((side, side), 60).convert("RGB")
    made = model.generate("a cat", [picture], noise=noise, steps=1, output="latents", speed="exact")
    return made.float().cpu() - noise


def measure_memory(folder: Path, memory: str, quantize: str, side: int, steps: int) -> Iterator[Facts]:
    """One memory mode and quantisation."""
    model = load(folder, memory, quantize)
    moved = velocity(model, side)
    kept = folder / "resident.pt"
    if (memory, quantize) == ("resident", "none"):
        torch.save(moved, kept)
    right = torch.load(kept) if kept.exists() else None
    engine = Engine(model)
    facts = timed(engine, [make_task(model, side, steps, 1)])
    engine.close()
    error = None if right is None else float((moved - right).norm() / right.norm())
    yield {"case": "edit", "side": side, **facts, "relative_error": error}


def measure_speed(folder: Path, side: int, steps: int, until: float, alone: bool) -> Iterator[Facts]:
    """Requests of 0 to 3 references if `alone`, then many small ones at once, while there is time."""
    model = load(folder, "resident", "none")
    engine = Engine(model)
    timed(engine, [make_task(model, side, 2, 1)])  # what is done once
    cases = [(f"{references} references", side, references, 1) for references in range(4) if alone]
    cases += [(f"{company} at once", side // 2, 0, company) for company in COMPANY]
    for name, own, references, company in cases:
        if time.time() > until:
            yield {"case": name, "side": own, "not_measured": "the time was over"}
            continue
        tasks = [make_task(model, own, steps, references) for _ in range(company)]
        yield {"case": name, "side": own, "steps": steps, **timed(engine, tasks)}
    engine.close()


def apart(arguments: list[str], facts: Facts, until: float) -> None:
    """Measure in a process of its own, which gives all memory back; print what it says."""
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--until", str(until)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=max(1, until - time.time() + 30)
        )
    except subprocess.TimeoutExpired as late:
        told = [json.loads(line) for line in (late.stdout or b"").decode().splitlines()]
        found = [*told, {"not_measured": "the time was over"}]
    except subprocess.CalledProcessError as error:
        told = [json.loads(line) for line in error.stdout.splitlines()]
        found = [*told, {"not_measured": (error.stderr.strip().splitlines() or ["it ended"])[-1]}]
    else:
        found = [json.loads(line) for line in done.stdout.splitlines()]
    for own in found:
        show(facts | own)


def show(facts: Facts) -> None:
    """Print a line."""
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in facts.items()}
    print(json.dumps(rounded), flush=True)


def main() -> None:
    """Measure, or be one of the processes that do."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="the checkpoint; made if it is not there")
    parser.add_argument("--part", nargs="+", default=["memory", "speed"], choices=["memory", "speed"])
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="a checkout of the reference")
    parser.add_argument("--seconds", type=float, default=570, help="after which nothing is begun")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and small pictures")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    side, steps = (64, 3) if asked.tiny else (1024, 50)
    if asked.one and asked.one[0] == "speed":
        for facts in measure_speed(asked.folder, side, steps, asked.until, not asked.against):
            show(facts)
    elif asked.one and asked.one[0] == "against":
        for facts in gpu_beside.measure(asked.folder, asked.against, side, steps, asked.tiny, asked.until):
            show(facts)
    elif asked.one:
        for facts in measure_memory(asked.folder, asked.one[1], asked.one[2], side, min(steps, 6)):
            show(facts)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            everything(asked, asked.folder or Path(temporary) / "full", side)


def everything(asked: argparse.Namespace, folder: Path, side: int) -> None:
    """Every part, each case in a process of its own."""
    until = time.time() + asked.seconds
    if not torch.cuda.is_available():
        show({"device": "cpu", "note": "there is no GPU: nothing of it is measured"})
    size: Size = "tiny" if asked.tiny else "full"
    if not folder.exists():
        make(folder, size)
    common = ["--folder", str(folder), *(["--tiny"] if asked.tiny else [])]
    if asked.against:
        common += ["--against", str(asked.against)]
        apart([*common, "--one", "against"], {"part": "against"}, until)
    if "speed" in asked.part:
        apart([*common, "--one", "speed"], {"part": "speed"}, until)
    for memory, quantize in itertools.product(MODES, KINDS) if "memory" in asked.part else ():
        facts = {"part": "memory", "memory": memory, "quantize": quantize}
        if time.time() > until:
            show(facts | {"not_measured": "the time was over"})
            continue
        facts["planned_peak_gb"] = count("edit", side, memory, size, quantize).told()["peak_gb"]
        apart([*common, "--one", "memory", memory, quantize], facts, until)


if __name__ == "__main__":
    main()
