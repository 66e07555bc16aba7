"""What one front carries with a model that computes nothing: repeats from the store, and new pictures stored.

    python -m benchmarks.front [--seconds 10] [--clients 8] [--only REST|MCP] [--profile FILE]

A server process over HTTP and its clients share this machine. `repeats` ask again for what is stored already,
`new` for a picture of one megapixel that is not: it is encoded, hashed, stored durably and answered with its
record; over MCP with a preview as well. Prints calls a second, the CPU time that server and clients spent on
a call, and the load. Bars, on two cores: 200 repeats and 25 new pictures a second.
`--profile` samples the server with py-spy, where that is installed, and writes a file for speedscope.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil

from benchmarks.front_model import NAME
from benchmarks.patience import listening
from server.hookspecs import PROJECT

ROOT = Path(__file__).parents[1]
KNOWN = 50
"""Pictures that `repeats` ask for, in turn."""
BARS = {"repeats": 200, "new": 25}
PROTOCOL = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": PROTOCOL,
    "io.modelcontextprotocol/clientCapabilities": {},
}
Ask = Callable[[httpx.AsyncClient, int], Any]


async def over_rest(client: httpx.AsyncClient, seed: int) -> dict[str, Any]:
    """One call; its result."""
    answer = await client.post("/v1/tools/generate_image", json=arguments(seed))
    return answer.raise_for_status().json()


async def over_mcp(client: httpx.AsyncClient, seed: int) -> dict[str, Any]:
    """One call; its result, which comes with a preview where the picture is new."""
    message = {
        "jsonrpc": "2.0",
        "id": seed,
        "method": "tools/call",
        "params": {"name": "generate_image", "arguments": arguments(seed), "_meta": META},
    }
    headers = {
        "accept": "application/json, text/event-stream",
        "mcp-protocol-version": PROTOCOL,
        "mcp-method": "tools/call",
        "mcp-name": "generate_image",
    }
    answer = await client.post("/mcp", json=message, headers=headers)
    text = answer.raise_for_status().text
    if text.startswith("event:"):
        text = text.rpartition("data: ")[2]
    return json.loads(text)["result"]["structuredContent"]


def arguments(seed: int) -> dict[str, Any]:
    """What is asked for."""
    return {"prompt": "a lighthouse at dusk", "seed": seed}


WAYS: dict[str, Ask] = {"REST": over_rest, "MCP": over_mcp}


async def measure(
    url: str, server: psutil.Process, ask: Ask, seeds: Iterator[int], clients: int, seconds: float
) -> float:
    """Calls a second by all clients together."""
    here, taken = psutil.Process(), list[float]()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        begun, before = time.monotonic(), (spent(server), spent(here))

        async def one() -> None:
            while (started := time.monotonic()) < begun + seconds:
                seed = next(seeds)
                result = await ask(client, seed)
                assert result["images"][0]["seed"] == seed, result
                assert result["cached"] == (seed < KNOWN), result
                taken.append(time.monotonic() - started)

        async with anyio.create_task_group() as group:
            for _ in range(clients):
                group.start_soon(one)
        took = time.monotonic() - begun
    of_server, of_clients = (
        1000 * (now - was) / len(taken) for now, was in zip((spent(server), spent(here)), before, strict=True)
    )
    print(
        f"{len(taken) / took:6.1f} /s, median {1000 * statistics.median(taken):4.0f} ms; CPU of a call: "
        f"server {of_server:.1f}, clients {of_clients:.1f} ms; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return len(taken) / took


def spent(process: psutil.Process) -> float:
    """CPU seconds of a process so far."""
    times = process.cpu_times()
    return times.user + times.system


@contextmanager
def sampled(server: psutil.Process, file: str | None) -> Iterator[None]:
    """Sample the server meanwhile, if a file is given."""
    if file is None:
        yield
        return
    command = ["py-spy", "record", "--nonblocking", "--pid", str(server.pid), "--format", "speedscope"]
    with subprocess.Popen([*command, "--output", file], stdout=subprocess.DEVNULL) as sampler:
        try:
            yield
        finally:
            sampler.send_signal(signal.SIGINT)


async def known(url: str) -> None:
    """Make what `repeats` ask for, and have it asked for once on every way, so that previews are made."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        for seed in range(KNOWN):
            for ask in WAYS.values():
                await ask(client, seed)


def run(url: str, server: psutil.Process, asked: argparse.Namespace) -> bool:
    """Measure what is asked for; whether every bar holds."""
    holds, new = True, itertools.count(KNOWN)
    anyio.run(known, url)
    for what, bar in BARS.items():
        for name, ask in WAYS.items():
            if asked.only in (None, name):
                print(f"{what:7} over {name}: ", end="", flush=True)
                seeds = itertools.cycle(range(KNOWN)) if what == "repeats" else new
                with sampled(server, asked.profile and f"{asked.profile}.{what}.{name}.json"):
                    rate = anyio.run(measure, url, server, ask, seeds, asked.clients, asked.seconds)
                holds &= rate >= bar
    return holds


def main() -> int:
    """Measure one server; exit code 1 if a bar is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.front",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--only", choices=list(WAYS))
    parser.add_argument("--profile", help="beginning of the names of files for speedscope")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        installed = Path(folder, "site", "front-1.dist-info")
        installed.mkdir(parents=True)
        (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: front\nVersion: 1\n")
        (installed / "entry_points.txt").write_text(f"[{PROJECT}]\nfront = benchmarks.front_model\n")
        environment = os.environ | {
            "OMNIGEN2_STORE": f"{folder}/store",
            "OMNIGEN2_MODEL": NAME,
            "PYTHONPATH": os.pathsep.join((str(installed.parent), str(ROOT))),
        }
        with listening(environment, Path(folder, "log")) as url:
            (server,) = [one for one in psutil.Process().children() if "serve" in one.cmdline()]
            return 0 if run(url, server, asked) else 1


if __name__ == "__main__":
    sys.exit(main())
