"""How two models take turns that do not fit into memory together: through a server, with a client.

    python -m benchmarks.two_models [SECONDS]

The server is told that its memory has room for one tiny model. While one makes 1,000 steps, the other is
asked for 4 steps of 64 x 64 pixels again and again, for SECONDS (40). Prints how long these took, how far the
long one came, what the jobs said, and when models came and left.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
from mcp import Client

from benchmarks.fairness import CHECKPOINT, LONG, Studio
from benchmarks.patience import listening

MODELS = ("one/tiny", "other/tiny")
SERVER = (sys.executable, "-m", "benchmarks.two_models", "server")


def run_server(arguments: list[str]) -> None:
    """The server of the console script, with a memory that holds one of the models."""
    import torch

    from omnigen2 import start
    from omnigen2.checkpoints import fit, locate
    from omnigen2.engine import engine

    engines: list[Any] = []

    class Counted(engine.Engine):
        def __init__(self, model: Any):
            super().__init__(model)
            engines.append(self)

    def taken(_: Any = None) -> int:
        return sum(each.memory_bytes() for each in engines if each._thread.is_alive())

    engine.Engine = Counted
    room = fit.needed_bytes(locate.find(str(CHECKPOINT)), torch.float32) + 1000
    fit.free_bytes, fit.held_bytes = lambda device: room - taken(), taken
    sys.argv = ["omnigen2-mcp", *arguments]
    start.main()


async def said(studio: Studio, job: str, lines: Counter[str]) -> dict[str, Any]:
    """Where a job stands, which is counted."""
    status = await studio.call("get_job", job_id=job, wait_seconds=0)
    lines[f"{status['status']}: {status['stage']}"] += 1
    return status


async def run(url: str, seconds: float) -> None:
    """The long request, and small ones while it runs."""
    async with Client(url, mode="legacy") as client:
        studio, lines, taken = Studio(client), Counter[str](), list[float]()
        one, other = ({"model": model, "background": True} for model in MODELS)
        long = (await studio.call("generate_image", **LONG, **one, seed=1))["job_id"]
        while not (await said(studio, long, lines))["step"]:
            await anyio.sleep(0.05)
        began = time.monotonic()
        while time.monotonic() - began < seconds:
            asked = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 4, "seed": len(taken)}
            started = time.monotonic()
            job = (await studio.call("generate_image", **asked, **other))["job_id"]
            while (await said(studio, job, lines))["status"] in ("queued", "running"):
                await said(studio, long, lines)
                await anyio.sleep(0.1)
            taken.append(time.monotonic() - started)
        steps, spent = (await said(studio, long, lines))["step"], time.monotonic() - began
        await anyio.sleep(6)
        ended = (await said(studio, long, lines))["step"]
        await studio.call("cancel_job", job_id=long)
    print(
        f"{len(taken)} small requests in {spent:.0f} s: median {statistics.median(taken):.1f}, "
        f"worst {max(taken):.1f} s; the long one made {steps} steps, and {ended - steps} in the 6 s after"
    )
    print(*sorted(lines), sep="\n")


def main() -> None:
    """Start the server, measure."""
    if sys.argv[1:2] == ["server"]:
        return run_server(sys.argv[2:])
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 40.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in MODELS:
            shutil.copytree(CHECKPOINT, folder / "models" / model)
        environment = os.environ | {
            "OMNIGEN2_STORE": str(folder / "store"),
            "OMNIGEN2_MODELS": str(folder / "models"),
            "OMNIGEN2_MODEL": MODELS[0],
            "OMNIGEN2_MEMORY": "resident",
        }
        with listening(environment, folder / "log", SERVER) as url:
            anyio.run(run, f"{url}/mcp", seconds)
        for line in (folder / "log").read_text("utf-8").splitlines():
            event = json.loads(line)
            if event.get("logger") == "omnigen2.manager":
                print(event["timestamp"][11:21], event["event"])


if __name__ == "__main__":
    main()
