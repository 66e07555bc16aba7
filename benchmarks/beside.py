"""How many times as long the reference takes as this implementation on some GPUs: counted and computed.

Part of `python -m benchmarks.plan --against FOLDER`. Both run the same request on tensors without values
(`benchmarks.counting`), the reference in a process of its own (`benchmarks.reference`), once as if flash_attn
were installed and once without. Seconds follow from assumed rates (`benchmarks.machines`).
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import shapes
from benchmarks.counting import Work
from benchmarks.machines import LAUNCH, MACHINES, SYNC, Machine
from omnigen2.comparison.compare import check_reference
from omnigen2.guidance import guide
from omnigen2.params import ReferenceSampling, Speed

if TYPE_CHECKING:
    from benchmarks.plan import Case

SCRIPT = Path(__file__).with_name("reference.py")
STEPS = 50
GB, TERA = 1e9, 1e12
ATTENTION = {"flash_attn": True, "SDPA": False}
"""What the reference attends with: the package it recommends, or torch alone."""
SPEEDS: tuple[Speed, ...] = ("balanced", "fast")


@dataclass(frozen=True)
class Counted:
    """One implementation's request: what is done once, and a step; `compiled` is a step with fused blocks."""

    once: tuple[Work, ...]
    step: Work
    compiled: Work

    def request(self, steps: int) -> Work:
        """All of it, with that many steps computed."""
        return sum(self.once, self.step * steps)

    def seconds(self, machine: Machine, steps: int, compiled: bool = False) -> float:
        """How long it takes."""
        step = self.compiled if compiled else self.step
        return sum(map(machine.seconds, self.once)) + steps * machine.seconds(step)


@dataclass(frozen=True)
class Beside:
    """A case in both implementations; `computed` says how many of the steps each speed computes."""

    case: str
    side: int
    attention: str
    ours: Counted
    reference: Counted
    computed: dict[Speed, int]

    def told(self) -> dict[str, Any]:
        """Counts and expected seconds, as they are printed."""
        return {
            "case": self.case,
            "side": self.side,
            "steps": STEPS,
            "reference_attention": self.attention,
            "computed_steps": self.computed,
            "reference": _told(self.reference),
            "ours": _told(self.ours),
            "expected": {machine.name: self.expected(machine) for machine in MACHINES},
        }

    def expected(self, machine: Machine) -> dict[str, float]:
        """Seconds of the request, and how many times as long the reference takes."""
        reference = self.reference.seconds(machine, STEPS)
        ours = {
            "eager": self.ours.seconds(machine, STEPS),
            "compiled": self.ours.seconds(machine, STEPS, compiled=True),
            **{speed: self.ours.seconds(machine, self.computed[speed], compiled=True) for speed in SPEEDS},
        }
        return {
            "reference_s": round(reference, 2),
            **{f"{name}_s": round(seconds, 2) for name, seconds in ours.items()},
            **{f"{name}_ratio": round(reference / seconds, 2) for name, seconds in ours.items()},
        }


def counted(case: "Case", size: shapes.Size) -> Counted:
    """Our side of a case, with all weights on the device; blocks are compiled at full size only."""
    once = tuple(work for name, work in case.stages.items() if "step" not in name)
    step = case.stages["step"]
    return Counted(once, step, case.compiled_step() if size == "full" else step)


def rows(
    folder: Path, cases: list["Case"], size: shapes.Size, dtype: torch.dtype, attention: Iterable[str]
) -> Iterator[Beside]:
    """The cases beside the reference in `folder`, each when it is counted.

    Raises:
        ValueError: `folder` holds no reference implementation, or it does not run; it said why on stderr.
    """
    for name in attention:
        given = asked([request(case) for case in cases], size, dtype, ATTENTION[name])
        for case, other in zip(cases, count_reference(folder, given), strict=True):
            computed = computed_steps(case.task.sampling, bool(case.task.images))
            yield Beside(case.case, case.side, name, counted(case, size), other, computed)


def request(case: "Case") -> dict[str, Any]:
    """A case, as the reference is asked for it."""
    sampling = case.task.sampling
    return {
        "side": case.side,
        "references": len(case.task.images),
        "prompt": case.task.prompt,
        **sampling.model_dump(include={"negative_prompt", "text_guidance_scale", "image_guidance_scale"}),
    }


def computed_steps(sampling: ReferenceSampling, references: bool) -> dict[Speed, int]:
    """How many of `STEPS` steps each of `SPEEDS` computes."""

    def count(speed: Speed) -> int:
        steps = guide(sampling.model_copy(update={"steps": STEPS, "speed": speed}), references)
        return sum(bool(step.weights) for step in steps)

    return {speed: count(speed) for speed in SPEEDS}


def asked(
    requests: list[dict[str, Any]], size: shapes.Size, dtype: torch.dtype, flash: bool
) -> dict[str, Any]:
    """What `benchmarks.reference` is asked: shapes of the model, and its requests."""
    made = shapes.parts(size, dtype)
    return {
        "transformer": shapes.TRANSFORMERS[size],
        "vae": {name: value for name, value in made["vae"].config.items() if not name.startswith("_")},
        "mllm": made["mllm"].config.to_dict(),
        "processor": str(shapes.PROCESSOR),
        "dtype": str(dtype).removeprefix("torch."),
        "flash_attn": flash,
        "requests": requests,
    }


def count_reference(folder: Path, given: dict[str, Any]) -> Iterator[Counted]:
    """The requests of `given` (`asked`), each when it is counted.

    Raises:
        ValueError: `folder` holds no reference implementation, or it does not run; it said why on stderr.
    """
    check_reference(folder)
    with subprocess.Popen(
        [sys.executable, "-P", str(SCRIPT), str(folder.resolve())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin and process.stdout
        with process.stdin:
            json.dump(given, process.stdin)
        for line in process.stdout:
            stages = {name: Work(**work) for name, work in json.loads(line).items()}
            yield Counted((stages["before"], stages["after"]), stages["step"], stages["step"])
    if process.returncode:
        raise ValueError(f"against: counting the reference in {folder} ended with {process.returncode}")


def _told(counted: Counted) -> dict[str, Any]:
    """A step, and the whole request."""

    def figures(work: Work) -> dict[str, Any]:
        return {
            "tflop": round((work.product_flop + work.attention_flop) / TERA, 1),
            "elementwise_gb": round(work.elementwise_bytes / GB, 1),
            "kernels": work.kernels,
            "copies": work.copies,
            "syncs": work.syncs,
        }

    told = {"step": figures(counted.step), "request": figures(counted.request(STEPS))}
    if counted.compiled is not counted.step:
        told["compiled_step"] = figures(counted.compiled)
    return told | {"peak_gb": round(counted.request(STEPS).peak_bytes / GB, 2)}


def assumptions() -> Iterator[str]:
    """What the seconds rest on."""
    yield (
        f"Computed, not measured: one request in bfloat16, {STEPS} steps, all weights on the GPU. A stage "
        "takes the time of its products, its attention and its elementwise traffic one after the other, or "
        f"{LAUNCH * 1e6:g} us for each kernel if that is longer, and {SYNC * 1e6:g} us for each wait for a "
        "value of the device. Both get the same rates, whatever the reference attends with, and its norms "
        "are Triton's. Not counted: work of the host on pictures and text, and updates of steps that compute "
        "nothing."
    )
    for machine in MACHINES:
        yield (
            f"{machine.name}: products {machine.products / TERA:g} TFLOP/s, attention "
            f"{machine.attention / TERA:g} TFLOP/s, memory {machine.memory / TERA:g} TB/s"
        )


def show(folder: Path, cases: list["Case"], size: shapes.Size, as_json: bool) -> None:
    """Count the reference and print both: a JSON object per case and line, or tables with what is assumed."""
    found = rows(folder, cases, size, torch.bfloat16, ATTENTION)
    lines = (json.dumps(row.told()) for row in found) if as_json else table(list(found))
    for line in lines:
        print(line, flush=True)
    for line in () if as_json else assumptions():
        print(f"\n{line}")


def table(rows: list[Beside]) -> Iterator[str]:
    """Two tables in Markdown: counts of a step and of the request, then expected seconds and ratios."""
    counts = "TFLOP a step | elementwise GB | kernels | copies | syncs | TFLOP in all | peak GB"
    yield f"| case | implementation | {counts} |"
    yield f"|---|---|{'---:|' * 7}"
    for row in rows:
        sides = {f"reference, {row.attention}": row.reference}
        if row.attention == next(iter(ATTENTION)):
            sides |= {"ours, eager": row.ours}
        for name, counted in sides.items():
            told = _told(counted)
            values = [*told["step"].values(), told["request"]["tflop"], told["peak_gb"]]
            yield f"| {row.case} | {name} | {' | '.join(map(str, values))} |"
        if len(sides) > 1 and (step := _told(row.ours).get("compiled_step")):
            yield f"| {row.case} | ours, compiled | {' | '.join(map(str, step.values()))} | | |"
    yield ""
    yield f"| case | reference with | GPU | reference | eager | compiled | {' | '.join(SPEEDS)} |"
    yield f"|---|---|---|{'---:|' * (3 + len(SPEEDS))}"
    for row in rows:
        for machine in MACHINES:
            told = row.expected(machine)
            ours = [
                f"{told[f'{name}_s']} s: {told[f'{name}_ratio']}" for name in ("eager", "compiled", *SPEEDS)
            ]
            head = f"| {row.case} | {row.attention} | {machine.name} | {told['reference_s']} s"
            yield f"{head} | {' | '.join(ours)} |"
