"""What the server adds to a call, beside the model alone: queue, job, journal, and storing the picture.

    python -m benchmarks.overhead [MODEL] [STEPS] [ROUNDS] [THREADS]

Each round makes one picture with the model alone and one through `App.call`, in turn the one or the other
first, at the model's own settings (with STEPS steps if they are not 0), then asks for it again. Their prompts
differ in a word, or the second would find the first one's remembered, and have equally many tokens, as each
takes the model time. Storing picture and record durably is part of the call; it is timed by itself, too.
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
from functools import partial
from typing import Any

import anyio
import torch
from PIL import Image

import omnigen2
from omnigen2.engine import Engine
from omnigen2.factory import BackendFactory, OneModel
from omnigen2.model import OmniGen2
from server.app import App, build_app
from server.caller import LOCAL, Caller
from server.hookspecs import hookimpl
from server.plugins import core_plugins
from server.settings import Settings


class Shared:
    """A plugin with a model that is loaded already, so that both sides use the same one."""

    def __init__(self, model: OmniGen2) -> None:
        self.model = model

    @hookimpl
    def register_backends(self, register: Callable[[str, BackendFactory], None]) -> None:
        register("shared", OneModel("shared", self.model.card, lambda device, dtype: Engine(self.model)))


Times = dict[str, list[float]]
"""Milliseconds of each round."""


async def measure(app: App, model: OmniGen2, steps: int, rounds: range) -> Times:
    """The first of the rounds is not counted: it warms up."""
    caller, tool = Caller(LOCAL, "benchmark"), app.tools["generate_image"]
    times: Times = {"model": [], "call": [], "around": [], "repeat": [], "store": []}
    thread = ThreadPoolExecutor(1)

    async def alone(asked: dict[str, Any]) -> Any:
        return await asyncio.wrap_future(thread.submit(lambda: model.generate(**asked)))

    async def call(asked: dict[str, Any]) -> Any:
        return await app.call(tool, asked, caller)

    async def put(picture: Image.Image) -> Any:
        keep = partial(app.store.put_made, [picture], tool="benchmark", parameters={})
        return await anyio.to_thread.run_sync(keep)

    async def timed_call(asked: dict[str, Any]) -> None:
        spent = (await timed("call", call, asked)).timings
        times["around"].append(times["call"][-1] - spent.encode_ms - spent.denoise_ms - spent.decode_ms)

    async def timed(kind: str, work: Callable[[Any], Awaitable[Any]], given: Any) -> Any:
        started = time.perf_counter()
        result = await work(given)
        times[kind].append(1000 * (time.perf_counter() - started))
        return result

    for number in rounds:
        shapes = ("circle", "square") if number % 4 < 2 else ("square", "circle")
        one, other = (
            {"prompt": f"a red {shape} {number}", "seed": number, "steps": steps or None} for shape in shapes
        )
        if number % 2:
            await timed_call(other)
        [picture] = await timed("model", alone, one)
        if not number % 2:
            await timed_call(other)
        await timed("repeat", call, other)
        picture.putpixel((0, 0), (number % 256, 1, 2))
        await timed("store", put, picture)
    thread.shutdown()
    return {kind: values[1:] for kind, values in times.items()}


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
    added = statistics.median(call - alone for call, alone in zip(times["call"], times["model"], strict=True))
    for kind, value in middle.items():
        print(f"{kind:8} {value:8.1f} ms")
    print(f"added    {added:8.1f} ms, {100 * added / middle['model']:.1f} % (bars: 10 ms, 3 %; repeat 20 ms)")


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
