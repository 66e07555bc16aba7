"""Whether a server that works for long keeps its memory.

    python -m benchmarks.soak [REQUESTS] [CLIENTS]

Clients ask at the same time and one after another, with every tool that makes something: pictures, edits,
compositions, texts; a tenth of the calls is given up in the middle. Prints the resident memory after every
tenth of the requests, and fails if it still grows by more than 5 % over the second half.
"""

import random
import sys
import tempfile
from typing import Any

import anyio
import psutil
import torch

from server.app import App, build_app
from server.caller import Caller
from server.settings import Settings
from tools.base import ToolError

MOST_GROWTH = 0.05
STEPS = 4


class Soak:
    """Requests that are still to be made, the images made so far, and the memory on the way."""

    def __init__(self, app: App, requests: int) -> None:
        self.app, self.left, self.every = app, requests, max(1, requests // 10)
        self.images: list[str] = []
        self.memory: list[float] = []
        self.answers = {"answered": 0, "given up": 0, "refused": 0}

    async def client(self, name: str) -> None:
        """Ask until enough was asked."""
        chance = random.Random(name)
        while self.left > 0:
            self.left -= 1
            if self.left % self.every == 0:
                self.memory.append(psutil.Process().memory_info().rss / 1e6)
                print(f"{self.left:6} left {self.memory[-1]:8.0f} MB", flush=True)
            await self.ask(chance, Caller(name, name))

    async def ask(self, chance: random.Random, caller: Caller) -> None:
        """One call, of any kind."""
        tool, arguments = self.request(chance)
        with anyio.move_on_after(0.05 if chance.random() < 0.1 else 600) as patience:
            try:
                result = await self.app.call(self.app.tools[tool], arguments, caller)
                self.answers["answered"] += 1
                self.images = [*self.images[-50:], *result.previewed()]
            except ToolError as error:
                print(f"refused: {error}", flush=True)
                self.answers["refused"] += 1
        self.answers["given up"] += patience.cancelled_caught

    def request(self, chance: random.Random) -> tuple[str, dict[str, Any]]:
        """A tool and its arguments; no two alike."""
        seed = {"seed": chance.randrange(2**31)}
        kinds = ["generate_image", "edit_image", "compose_from_references", "describe_image"]
        kind = chance.choice(kinds) if self.images else kinds[0]
        if kind == "edit_image":
            return kind, seed | {
                "image": chance.choice(self.images),
                "instruction": "make it blue",
                "steps": STEPS,
            }
        if kind == "compose_from_references":
            images = [chance.choice(self.images) for _ in range(chance.randint(2, 4))]
            return kind, seed | {"images": images, "instruction": "side by side", "steps": STEPS}
        if kind == "describe_image":
            return kind, seed | {
                "images": [chance.choice(self.images)],
                "temperature": 0.5,
                "question": "What is it?",
            }
        side = {"width": chance.choice((64, 80, 96)), "height": chance.choice((64, 80, 96))}
        return kind, seed | side | {"prompt": "a red circle", "steps": STEPS}


async def main(requests: str = "2000", clients: str = "16") -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        async with build_app(Settings(store=folder)) as app:
            soak = Soak(app, int(requests))
            async with anyio.create_task_group() as group:
                for number in range(int(clients)):
                    group.start_soon(soak.client, f"client {number}")
    print(", ".join(f"{count} {what}" for what, count in soak.answers.items()))
    middle = soak.memory[len(soak.memory) // 2]
    growth = soak.memory[-1] / middle - 1
    print(f"grown by {100 * growth:.1f} % over the second half (bar: {100 * MOST_GROWTH:.0f} %)")
    if growth > MOST_GROWTH:
        raise SystemExit("memory grows")


if __name__ == "__main__":
    anyio.run(main, *sys.argv[1:])
