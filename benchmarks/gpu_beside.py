"""The reference and this implementation by turns on a GPU: `python -m benchmarks.gpu --against FOLDER`.

1024 x 1024 in 50 steps with 0 to 3 references: seconds and peak of both, of ours also at `fast`, and how many
times as long the reference takes. At the end, what `benchmarks.plan --against` computes for this GPU, counted
meanwhile by the host, and the share of the data sheet's FLOP/s that each reached.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.machines import MACHINES, TERA, Machine
from benchmarks.plan import CASES
from omnigen2.comparison.compare import (
    PROMPT,
    ROOT,
    WARM_UP_STEPS,
    Worker,
    placement_words,
    reference_picture,
)
from omnigen2.memory.placement import Placement

Facts = dict[str, Any]


def machine_here() -> Machine | None:
    """The assumed rates of this machine's GPU, if there are any."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return next((machine for machine in MACHINES if machine.name in name), None)


def measure(model: Path, reference: Path, side: int, steps: int, tiny: bool, until: float) -> Iterator[Facts]:
    """Each case by turns while there is time, then what was expected of those that were measured."""
    counting = [sys.executable, "-m", "benchmarks.plan", "--json", "--against", str(reference)]
    counting += ["--side", str(side), *(["--tiny"] if tiny else [])]
    with subprocess.Popen(counting, stdout=subprocess.PIPE, text=True) as expecting:
        measured: dict[str, Facts] = {}
        ours = Worker("ours", ROOT, model, *placement_words(Placement(memory="resident")))
        theirs = Worker("reference", reference.resolve(), model, ours.facts["device"], ours.facts["dtype"])
        try:
            for case, count in CASES.items():
                if time.time() > until:
                    yield {"case": case, "side": side, "not_measured": "the time was over"}
                    continue
                sampling = ours.facts["sampling"][min(count, 2)] | {"width": side, "height": side}
                measured[case] = by_turns(ours, theirs, count, sampling | {"steps": steps})
                yield {"case": case, "side": side, "steps": steps, **measured[case]}
        finally:
            ours.close()
            theirs.close()
        assert expecting.stdout
        for line in expecting.stdout:
            told = json.loads(line)
            if told["case"] in measured:
                yield compared(told, measured[told["case"]], steps)


def by_turns(ours: Worker, theirs: Worker, count: int, sampling: Facts) -> Facts:
    """One case: a short request of each first, then ours, the reference's and ours at `fast`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def ask(worker: Worker, number: int, **changed: Any) -> Facts:
            side = sampling["width"]
            images = [str(reference_picture(folder, side, 10 * number + i)) for i in range(count)]
            own = sampling | {"seed": number, "speed": "exact"} | changed
            picture = {"prompt": PROMPT.format(number, 0), "images": images, "sampling": own}
            return worker.ask([picture | {"to": str(folder / "made.png")}])

        for worker in (ours, theirs):
            ask(worker, 0, steps=WARM_UP_STEPS)
        here, there, fast = ask(ours, 1), ask(theirs, 1), ask(ours, 2, speed="fast")
    return {
        "ours_s": here["seconds"],
        "reference_s": there["seconds"],
        "fast_s": fast["seconds"],
        "ratio": there["seconds"] / here["seconds"],
        "fast_ratio": there["seconds"] / fast["seconds"],
        "ours_gb": here["device_gb"],
        "reference_gb": there["device_gb"],
    }


def compared(told: Facts, measured: Facts, steps: int) -> Facts:
    """Expected seconds and ratios beside the measured ones; `told` as `benchmarks.plan` prints it."""
    facts: Facts = {"case": told["case"], "side": told["side"], "attention": told["reference_attention"]}
    machine = machine_here()
    if machine is None or steps != told["steps"]:
        return facts | {"not_compared": f"nothing is assumed of this machine, or of {steps} steps"}
    expected = told["expected"][machine.name]
    names = {"ours_s": "compiled_s", "ratio": "compiled_ratio"}
    for name in ("ours_s", "reference_s", "fast_s", "ratio", "fast_ratio"):
        facts |= {name: measured[name], f"{name}_expected": expected[names.get(name, name)]}
    for side in ("ours", "reference"):
        reached = told[side]["request"]["tflop"] * TERA / measured[f"{side}_s"]
        facts[f"{side}_utilisation"] = reached / machine.peak
    return facts
