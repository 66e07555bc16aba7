"""How a client that asks for no progress fares with a long job: when it gets a job id, and when the result.

Each transport has a server process of its own, with nano. `python -m benchmarks.patience [STEPS]`, by default
1000: about 90 seconds on one core.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters

PROGRAM = str(Path(sys.executable).with_name("omnigen2-mcp"))
WAIT_S = 45
STEPS = 1000
IMAGES = 3


async def measure(transport: str, server: Any, steps: int) -> None:
    """Make one long call, and ask for its job until it is done; print when what happened."""
    call = {"prompt": "a red circle", "num_images": IMAGES, "steps": steps, "seed": 1}
    async with Client(server, mode="legacy") as client:  # the older handshake is what most clients speak
        await client.call_tool("generate_image", call | {"num_images": 1, "steps": 2})
        started = time.monotonic()
        answer = await client.call_tool("generate_image", call)
        answered = time.monotonic() - started
        status = content = answer.structured_content
        while status["status"] in ("queued", "running"):
            asked = {"job_id": content["job_id"], "wait_seconds": WAIT_S}
            status = (await client.call_tool("get_job", asked)).structured_content
    result = status.get("result", status)
    print(
        f"{transport}: answered after {answered:.1f} s with {content.get('job_id')}, {content['status']}; "
        f"{status['status']} after {time.monotonic() - started:.1f} s with {len(result['images'])} images",
        flush=True,
    )


@contextmanager
def listening(environment: dict[str, str], log: Path, program: Sequence[str] = (PROGRAM,)) -> Iterator[str]:
    """A server over HTTP; its address."""
    command = [*program, "serve", "--transport", "http", "--port", "0"]
    with log.open("w") as file, subprocess.Popen(command, env=environment, stderr=file) as server:
        try:
            while not (said := re.search(r'"listening".*?"url": "([^"]+)"', log.read_text("utf-8"))):
                if server.poll() is not None:
                    raise RuntimeError(log.read_text("utf-8"))
                time.sleep(0.05)
            yield said[1]
        finally:
            server.terminate()


def main() -> None:
    """Measure both transports."""
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMNIGEN2_STORE": f"{folder}/http"}
        with listening(environment, Path(folder, "log")) as url:
            anyio.run(measure, "http", f"{url}/mcp", steps)
        environment = os.environ | {"OMNIGEN2_STORE": f"{folder}/stdio"}
        stdio = StdioServerParameters(command=PROGRAM, args=["serve"], env=environment)
        anyio.run(measure, "stdio", stdio, steps)


if __name__ == "__main__":
    main()
