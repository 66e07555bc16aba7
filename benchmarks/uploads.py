"""What large pictures over HTTP cost others: uploads, and smaller copies of 64 megapixels.

`python -m benchmarks.uploads`: a server process with nano; `/healthz` is asked 50 times a second meanwhile.
"""

import io
import os
import tempfile
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
from PIL import Image

from benchmarks.patience import listening

SIDE = 8000
JUNK = 45_000_000
COPIES = 8
LEAVING = 24
PATIENCE_S = 0.3


@asynccontextmanager
async def measured(client: httpx.AsyncClient, what: str) -> AsyncGenerator[None]:
    """Print how long the block took, and the slowest answer about health in that time."""
    slowest = 0.0

    async def watch() -> None:
        nonlocal slowest
        while True:
            begun = time.monotonic()
            await client.get("/healthz")
            slowest = max(slowest, time.monotonic() - begun)
            await anyio.sleep(0.02)

    begun = time.monotonic()
    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        yield
        group.cancel_scope.cancel()
    print(f"{what}: {time.monotonic() - begun:.2f} s, slowest /healthz {slowest:.2f} s", flush=True)


async def measure(url: str) -> None:
    """Bring a picture of the largest size and a file that is none; ask for copies, and leave some."""
    out = io.BytesIO()
    Image.effect_noise((SIDE // 8, SIDE // 8), 90).resize((SIDE, SIDE)).save(out, "JPEG", quality=90)
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        async with measured(client, f"upload of {len(out.getvalue()):,} bytes"):
            answer = await client.post("/v1/images", files={"file": ("big.jpg", out.getvalue())})
        path = f"/images/{answer.json()['image']['id']}"
        async with measured(client, f"{JUNK:,} bytes that are no picture"):
            answer = await client.post("/v1/images", files={"file": ("junk", os.urandom(JUNK))})
            assert answer.status_code == 422, answer.text
        async with measured(client, f"{COPIES} copies at once"), anyio.create_task_group() as group:
            for width in range(100, 100 + COPIES):
                group.start_soon(client.get, f"{path}?w={width}")
        async with measured(client, "one of them again"):
            await client.get(f"{path}?w=100")

        async def leave(width: int) -> None:
            with anyio.move_on_after(PATIENCE_S):
                await client.get(f"{path}?w={width}")

        async with measured(client, f"a copy after {LEAVING} clients that hung up"):
            async with anyio.create_task_group() as group:
                for width in range(200, 200 + LEAVING):
                    group.start_soon(leave, width)
            await client.get(f"{path}?w=300")


def main() -> None:
    """Measure one server."""
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMNIGEN2_STORE": f"{folder}/store"}
        with listening(environment, Path(folder, "log")) as url:
            anyio.run(measure, url)


if __name__ == "__main__":
    main()
