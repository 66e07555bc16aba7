"""Everything about a GPU that is wanted, by one command within ten minutes; on a CPU, to try it, with --tiny.

    python -m benchmarks.gpu                        # makes a checkpoint of the full size, 15.6 GB
    python -m benchmarks.gpu --folder FOLDER        # takes one, or makes it there
    python -m benchmarks.gpu --part memory          # or speed
    python -m benchmarks.gpu --against FOLDER       # beside the reference, a checkout of which FOLDER holds

`memory`: for each quantisation and memory mode, an edit by the code as it is written: peak of the device,
seconds to the first step and for each further one, and relative error of one forward against `resident`
without quantisation; then the peaks that `benchmarks.plan` foretells. `speed`, compiled: 1024 x 1024 in 50
steps with 0 to 3 references; then 1 to 16 requests of 512 x 512 at once. With `--against`, the former by
turns with the reference, and what was expected (`benchmarks/gpu_beside.py`). One JSON object per line, as it
comes; what the time was too short for, or what failed, is said, and ends nothing else. With `--output FILE`
all lines are in it at the end.
"""

import argparse
import gc
import itertools
import json
import multiprocessing
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
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
from omnigen2.memory.choice import MODES, Mode
from omnigen2.memory.placement import KINDS, Kind
from omnigen2.task import ImageTask, Progress

COMPANY = (1, 2, 4, 8, 16)
GRACE_S = 30
"""Seconds beyond its time that a process has to end what it is at."""
LATE = {"not_measured": "the time was over"}
Facts = dict[str, Any]


def load(folder: Path, memory: str, quantize: str, compile: str) -> Any:
    """The model, with its weights kept as asked."""
    return omnigen2.load(str(folder), memory=memory, quantize=quantize, compile=compile)


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
    picture = Image.linear_gradient("L").resize((side, side)).convert("RGB")  # the same each time
    made = model.generate("a cat", [picture], noise=noise, steps=1, output="latents", speed="exact")
    return made.float().cpu() - noise


def measure_memory(
    folder: Path, quantize: str, side: int, steps: int, until: float, right: Path
) -> Iterator[Facts]:
    """One quantisation in every memory mode; `right`: the file of the velocity that is right."""
    model = load(folder, "auto", quantize, "never")
    for memory in MODES:
        about = {"memory": memory, "case": "edit", "side": side}
        if time.time() > until:
            yield about | LATE
            continue
        try:
            if model.pipeline.residency.mode != memory:
                model.pipeline.residency.arrange(memory)
            yield about | _edit(model, side, steps, right, (memory, quantize) == ("resident", "none"))
        except Exception as error:  # memory may run out in one mode, and not in the next
            yield about | {"not_measured": _words(error)}
        gc.collect()
        torch.cuda.empty_cache()


def _edit(model: Any, side: int, steps: int, right: Path, is_right: bool) -> Facts:
    moved = velocity(model, side)
    if is_right:
        torch.save(moved, right)
    wanted = torch.load(right) if right.exists() else None
    engine = Engine(model)
    try:
        facts = timed(engine, [make_task(model, side, steps, 1)])
    finally:
        engine.close()
    error = None if wanted is None else float((moved - wanted).norm() / wanted.norm())
    return facts | {"relative_error": error}


def measure_speed(folder: Path, side: int, steps: int, until: float, alone: bool) -> Iterator[Facts]:
    """Requests of 0 to 3 references if `alone`, then many small ones at once, while there is time."""
    started = time.time()
    model = load(folder, "resident", "none", "auto")
    engine = Engine(model)
    timed(engine, [make_task(model, side, 2, 1)])  # what is done once
    yield {"case": "load, compile and warm up", "seconds": time.time() - started}
    cases = [(f"{references} references", side, references, 1) for references in range(4) if alone]
    cases += [(f"{company} at once", side // 2, 0, company) for company in COMPANY]
    for name, own, references, company in cases:
        about = {"case": name, "side": own, "steps": steps}
        if time.time() > until:
            yield about | LATE
            continue
        try:
            yield about | timed(engine, [make_task(model, own, steps, references) for _ in range(company)])
        except Exception as error:
            yield about | {"not_measured": _words(error)}
    engine.close()


def apart(arguments: list[str], until: float) -> Iterator[Facts]:
    """Measure in a process of its own, which gives all memory back; what it says, as it comes."""
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments, "--until", str(until)]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, text=True)
        assert process.stdout
        timer = threading.Timer(max(1, until - time.time() + GRACE_S), process.kill)
        timer.start()
        for line in process.stdout:
            yield json.loads(line)
        if process.wait():
            said.seek(0)
            late = {"the time was over"} if time.time() > until else set[str]()
            yield {"not_measured": (*late, *(said.read().strip().splitlines()[-1:] or ["it ended"]))[0]}
        timer.cancel()


def show(facts: Facts) -> Facts:
    """Print a line."""
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in facts.items()}
    print(json.dumps(rounded), flush=True)
    return rounded


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0]


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
    parser.add_argument("--output", type=Path, help="a file for all lines as one JSON document, at the end")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    side, steps = (64, 3) if asked.tiny else (1024, 50)
    if asked.one:
        for facts in _one(asked, side, steps):
            show(facts)
        return
    lines: list[Facts] = []
    try:
        with tempfile.TemporaryDirectory() as temporary:
            lines.extend(map(show, everything(asked, Path(temporary), side)))  # kept, whatever ends it
    finally:
        if asked.output:
            asked.output.write_text(json.dumps(lines, indent=2) + "\n", encoding="utf-8")


def everything(asked: argparse.Namespace, temporary: Path, side: int) -> Iterator[Facts]:
    """Every part; each quantisation has a process of its own, and so have the predictions."""
    until = time.time() + asked.seconds
    yield _device()
    size: Size = "tiny" if asked.tiny else "full"
    folder = asked.folder or temporary / "full"
    if not folder.exists():
        make(folder, size)
    common = ["--folder", str(folder), *(["--tiny"] if asked.tiny else [])]
    if asked.against:
        common += ["--against", str(asked.against)]
        for facts in apart([*common, "--one", "against"], until):
            yield {"part": "against", **facts}
    if "speed" in asked.part:
        for facts in apart([*common, "--one", "speed"], until):
            yield {"part": "speed", **facts}
    if "memory" not in asked.part:
        return
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        planned = {
            (memory, quantize): pool.submit(planned_gb, side, memory, size, quantize)
            for quantize, memory in itertools.product(KINDS, MODES)
        }
        for quantize in KINDS:
            for facts in apart([*common, "--one", "memory", quantize, str(temporary / "right.pt")], until):
                yield {"part": "memory", "quantize": quantize, **facts}
        for (memory, quantize), peak in planned.items():
            about = {"part": "plan", "quantize": quantize, "memory": memory}
            yield about | {"planned_peak_gb": peak.result()}


def _one(asked: argparse.Namespace, side: int, steps: int) -> Iterator[Facts]:
    """What one of the processes measures."""
    part, *more = asked.one
    if part == "speed":
        return measure_speed(asked.folder, side, steps, asked.until, not asked.against)
    if part == "against":
        return gpu_beside.measure(asked.folder, asked.against, side, steps, asked.tiny, asked.until)
    return measure_memory(asked.folder, more[0], side, min(steps, 6), asked.until, Path(more[1]))


def planned_gb(side: int, memory: Mode, size: Size, quantize: Kind) -> float | str:
    """The peak of an edit that `benchmarks.plan` foretells; why there is none."""
    try:
        return count("edit", side, memory, size, quantize).told()["peak_gb"]
    except Exception as error:
        return _words(error)


def _device() -> Facts:
    if not torch.cuda.is_available():
        return {"device": "cpu", "note": "there is no GPU: nothing of it is measured"}
    free, total = torch.cuda.mem_get_info()
    return {
        "device": torch.cuda.get_device_name(),
        "free_gb": free / GB,
        "total_gb": total / GB,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    main()
