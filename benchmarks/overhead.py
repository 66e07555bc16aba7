"""What the server adds to a call, beside the model alone: queue, job, journal, and storing the picture.

    python -m benchmarks.overhead [MODEL] [STEPS] [ROUNDS] [THREADS]

Each round makes one picture with the model alone, one through `App.call` and one through a call that is told
of its progress, each of them first in turn, at the model's own settings (with STEPS steps if they are not 0),
then asks for the second one again. Their prompts differ in a word, or one would find another's remembered,
and have equally many tokens, as each takes the model time. Storing picture and record durably is part of a
call; it is timed by itself, too.
Prints medians: `added` is that of the differences within a round, which swing with the machine, `around` the
part of a call that is not the model's own phases by its own clock, which hardly does. After ROUNDS rounds
both sides get new threads, THREADS times in all: where a thread's memory happens to lie makes it up to 2 %
quicker or slower than another, for as long as it lives. Computes with one thread: each side would have helper
threads of its own, and those wait for work on the same cores, which slows the other side down.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import anyio
import torch
from PIL import Image

import omnigen2
from omnigen2.engine.engine import Engine
from omnigen2.factory import BackendFactory, OneModel
from omnigen2.model import OmniGen2
from server.app import App, build_app
from server.caller import LOCAL, Caller
from server.hookspecs import hookimpl
from server.plugins import core_plugins
from server.settings import Settings
from tools.base import JobStatus

T = TypeVar("T")


class Shared:
    """A plugin with a model that is loaded already, so that both sides use the same one."""

    def __init__(self, model: OmniGen2) -> None:
        self.model = model

    @hookimpl
    def register_backends(self, register: Callable[[str, BackendFactory], None]) -> None:
        register("shared", OneModel("shared", self.model.card, lambda device, dtype: Engine(self.model)))


Asked = dict[str, Any]
"""Parameters of one picture."""
WORDS = ["circle", "square", "triangle"]
Times = dict[str, list[float]]
"""Milliseconds of each round."""


async def measure(app: App, model: OmniGen2, steps: int, rounds: range) -> Times:
    """The first of the rounds is not counted: it warms up."""
    tool, caller = app.tools["generate_image"], Caller(LOCAL, "benchmark")
    listener = replace(caller, on_progress=listen)
    times: Times = {"model": [], "call": [], "told": [], "around": [], "repeat": [], "store": []}
    thread = ThreadPoolExecutor(1)

    async def alone(asked: Asked) -> Any:
        return await asyncio.wrap_future(thread.submit(lambda: model.generate(**asked)))

    async def call(asked: Asked) -> Any:
        return await app.call(tool, asked, caller)

    async def told(asked: Asked) -> Any:
        return await app.call(tool, asked, listener)

    async def put(picture: Image.Image) -> Any:
        keep = partial(app.store.put_made, [picture], tool="benchmark", parameters={})
        return await anyio.to_thread.run_sync(keep)

    async def timed(kind: str, work: Callable[[Any], Awaitable[Any]], given: Any) -> Any:
        started = time.perf_counter()
        result = await work(given)
        times[kind].append(1000 * (time.perf_counter() - started))
        return result

    sides = {"model": alone, "call": call, "told": told}
    for number in rounds:
        words = turned(WORDS, number // len(sides))
        asked: dict[str, Asked] = {
            side: {"prompt": f"a red {word} {number}", "seed": number, "steps": steps or None}
            for side, word in zip(sides, words, strict=True)
        }
        made = {side: await timed(side, sides[side], asked[side]) for side in turned(list(sides), number)}
        phases = made["call"].timings
        own = phases.encode_ms + phases.denoise_ms + phases.decode_ms
        times["around"].append(times["call"][-1] - own)
        await timed("repeat", call, asked["call"])
        [picture] = made["model"]
        picture.putpixel((0, 0), (number % 256, 1, 2))
        await timed("store", put, picture)
    thread.shutdown()
    return {kind: values[1:] for kind, values in times.items()}


async def listen(status: JobStatus) -> None:
    """Hear of progress as a client does that shows it."""


def turned(items: list[T], by: int) -> list[T]:
    """The same items, beginning with another one."""
    first = by % len(items)
    return items[first:] + items[:first]


async def main(source: str = "nano", steps: str = "0", rounds: str = "20", threads: str = "6") -> None:
    torch.set_num_threads(1)
    model = omnigen2.load(source)
    times: Times = {}
    with tempfile.TemporaryDirectory() as folder:  # one: where files were just deleted, new ones take longer
        for turn in range(int(threads)):
            first = turn * (int(rounds) + 1)
            app = build_app(Settings(store=folder, model="shared"), [*core_plugins(), Shared(model)])
            async with app:
                took = await measure(app, model, int(steps), range(first, first + int(rounds) + 1))
            times = {kind: times.get(kind, []) + values for kind, values in took.items()}
    report(times)


def report(times: Times) -> None:
    middle = {kind: statistics.median(values) for kind, values in times.items()}
    for kind, value in middle.items():
        print(f"{kind:12} {value:6.1f} ms")
    for side in ("call", "told"):
        pairs = zip(times[side], times["model"], strict=True)
        added = statistics.median(through - alone for through, alone in pairs)
        share = 100 * added / middle["model"]
        print(f"added, {side:5} {added:6.1f} ms, {share:.1f} % (bars: 10 ms, 3 %; repeat 20 ms)")


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
