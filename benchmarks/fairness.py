"""How long a small request waits behind a long one that was there first: through a server, with a client.

    python -m benchmarks.fairness [SECONDS [shares]]

For each kind of long request, prints when 4 steps of 64 x 64 pixels were done that were asked for while it
ran, and how long they would have waited for its end, by its steps per second. Small ones come one after the
other for up to SECONDS (20); then the long one is cancelled. The last lines say what a picture and a text get
beside each other: of the device's time, by the server's own account (`/status`: CPU time, on a CPU), and in
steps and tokens a second, which on a shared machine depend on what else runs there. `shares`: that alone.
"""

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import anyio
from mcp import Client

import omnigen2
from benchmarks.adapters import write_adapter
from benchmarks.patience import listening

CHECKPOINT = Path(__file__).parents[1] / "tests" / "data" / "golden" / "pipeline" / "checkpoint"
OTHER = "other/tiny"
QUESTION = "What is this, 0?"
"""One that the tiny model answers without end."""
TOKENS = 2048
SMALL = {"prompt": "a red circle", "width": 64, "height": 64, "steps": 4}
LONG = {"prompt": "a blue square", "width": 64, "height": 64, "steps": 1000}
CASES: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("1000 steps of 64 x 64, another adapter", "generate_image", LONG | {"lora": "one"}, {"lora": "two"}),
    (
        "1000 steps of 8 of 256 x 256",
        "generate_image",
        LONG | {"width": 256, "height": 256, "num_images": 8},
        {},
    ),
    ("1000 steps of another model", "generate_image", LONG | {"model": OTHER}, {}),
    (
        "2048 tokens of a description",
        "describe_image",
        {"model": OTHER, "max_tokens": 2048},
        {"model": OTHER},
    ),
]
"""What the long request is, its tool and arguments, and what the small one asks for beside `SMALL`."""


class Studio:
    """The tools of a server."""

    def __init__(self, client: Any):
        self.client = client

    async def call(self, tool: str, **arguments: Any) -> Any:
        """The structured content of an answer."""
        answer = await self.client.call_tool(tool, arguments)
        if answer.is_error:
            raise RuntimeError(f"{tool}: {answer.content}")
        return answer.structured_content

    async def step(self, job: str) -> tuple[int, float]:
        """The step at which a job is, and when that was."""
        status = await self.call("get_job", job_id=job, wait_seconds=0)
        return (status.get("progress") or status).get("step") or 0, time.monotonic()

    async def made(self, **more: Any) -> Any:
        """The result of a small request, however long that takes."""
        answer = await self.call("generate_image", **SMALL, **more)
        while answer["status"] in ("queued", "running"):
            answer = await self.call("get_job", job_id=answer["job_id"], wait_seconds=45)
        return answer.get("result") or answer

    async def small(self, seed: int, **more: Any) -> float:
        """Seconds until a small picture is done."""
        started = time.monotonic()
        await self.made(seed=seed, **more)
        return time.monotonic() - started


async def measure(
    studio: Studio, image: str, seconds: float, seed: int, case: tuple[str, str, Any, Any]
) -> None:
    """Start the long request, send small ones while it runs, cancel it."""
    name, tool, arguments, more = case
    total = arguments.get("steps") or arguments["max_tokens"]
    own = (
        {"images": [image], "question": QUESTION, "temperature": 0}
        if tool == "describe_image"
        else {"seed": seed}
    )
    alone = await studio.small(seed, **more)
    began = time.monotonic()
    job = (await studio.call(tool, **arguments, **own, background=True))["job_id"]
    while (first := await studio.step(job))[0] < 2:
        await anyio.sleep(0.05)
    taken = []
    while not taken or (time.monotonic() - began < seconds and len(taken) < 9):
        taken.append(await studio.small(seed + 1 + len(taken), **more))
    last = await studio.step(job)
    if (await studio.call("get_job", job_id=job, wait_seconds=0))["status"] != "running":
        raise RuntimeError(f"{name}: it has ended before it was cancelled")
    await studio.call("cancel_job", job_id=job)
    pace = (last[1] - first[1]) / max(1, last[0] - first[0])
    wait = (total - first[0]) * pace
    worst = max(taken)
    print(
        f"{name}: small one alone {alone:.2f} s; beside it median {statistics.median(taken):.2f}, "
        f"worst of {len(taken)} {worst:.2f} s; in turn it would wait {wait:.1f} s: {worst / wait:.1%}",
        flush=True,
    )


def device_seconds(url: str) -> dict[str, float]:
    """Seconds for which the device has worked for pictures and for texts of the model `OTHER`."""
    with urllib.request.urlopen(f"{url}/status") as answer:
        models = json.load(answer)["models"]
    return next(model["device_seconds"] for model in models if model["model"] == OTHER)


async def shares(studio: Studio, url: str, image: str, seconds: float) -> None:
    """Time, steps and tokens per second of a picture and a text, each alone and both at once."""
    asked = {"model": OTHER, "background": True}
    tools = {
        "picture": ("generate_image", LONG | {"width": 128, "height": 128, "seed": 1}),
        "text": (
            "describe_image",
            {"images": [image], "question": QUESTION, "temperature": 0},
        ),
    }
    pace: dict[tuple[str, ...], dict[str, float]] = {}
    used: dict[tuple[str, ...], dict[str, float]] = {}
    for number, names in enumerate((("picture",), ("text",), ("picture", "text"))):
        tools["picture"][1]["seed"], tools["text"][1]["max_tokens"] = number, TOKENS - number
        jobs = {
            name: (await studio.call(tools[name][0], **tools[name][1], **asked))["job_id"] for name in names
        }
        await anyio.sleep(1.0)
        before = {name: await studio.step(job) for name, job in jobs.items()}
        used_before = device_seconds(url)
        after, until = before, time.monotonic() + seconds / 2
        while time.monotonic() < until and all(step < 0.9 * LONG["steps"] for step, _ in after.values()):
            await anyio.sleep(0.2)
            after = {name: await studio.step(job) for name, job in jobs.items()}
        used_after = device_seconds(url)
        pace[names] = {n: (after[n][0] - before[n][0]) / (after[n][1] - before[n][1]) for n in names}
        used[names] = {
            n: (used_after[f"{n}s"] - used_before[f"{n}s"]) / (after[n][1] - before[n][1]) for n in names
        }
        for job in jobs.values():
            await studio.call("cancel_job", job_id=job)
    both = ("picture", "text")
    for name in both:
        alone, beside, share = (
            pace[name,][name],
            pace[both][name],
            used[both][name] / sum(used[both].values()),
        )
        print(
            f"{name}: {share:.1%} of the device's time; {alone:.1f} a second alone, {beside:.1f} beside the "
            f"other: {beside / alone:.0%}; a second of the device's time: {alone / used[name,][name]:.1f} "
            f"and {beside / used[both][name]:.1f}"
        )


async def run(url: str, seconds: float, cases: bool) -> None:
    """All cases, then the shares."""
    async with Client(f"{url}/mcp", mode="legacy") as client:
        studio = Studio(client)
        image = (await studio.made(seed=0, model=OTHER))["images"][0]["id"]
        await studio.small(0)
        for number, case in enumerate(CASES if cases else ()):
            await measure(studio, image, seconds, 100 * (number + 1), case)
        await shares(studio, url, image, seconds)


def main() -> None:
    """Start the server, measure."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 20.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(CHECKPOINT, folder / "models" / OTHER)
        (folder / "lora").mkdir()
        model = omnigen2.load("nano", device="cpu")
        for adapter in ("one", "two"):
            write_adapter(model, folder / "lora" / f"{adapter}.safetensors")
        del model
        environment = os.environ | {
            "OMNIGEN2_STORE": str(folder / "store"),
            "OMNIGEN2_MODELS": str(folder / "models"),
            "OMNIGEN2_LORA_DIR": str(folder / "lora"),
        }
        with listening(environment, folder / "log") as url:
            anyio.run(run, url, seconds, sys.argv[2:] != ["shares"])


if __name__ == "__main__":
    main()
