"""How soon a server answers `tools/list` over stdio, beside a hello-world server of the same SDK.

Both start in turn, several times; medians are printed. `python -m benchmarks.startup`.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 7
OURS = [str(Path(sys.executable).with_name("omnigen2-mcp")), "serve"]
HELLO = [
    sys.executable,
    "-c",
    """
import anyio
import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

async def tools(ctx, params):
    schema = {"type": "object"}
    return types.ListToolsResult(tools=[types.Tool(name="hello", description="Hello", input_schema=schema)])

async def main():
    server = Server("hello", on_list_tools=tools)
    async with stdio_server() as (incoming, outgoing):
        await server.run(incoming, outgoing, server.create_initialization_options())

anyio.run(main)
""",
]
REQUEST = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "tools/list",
    "params": {
        "_meta": {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }
    },
}


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """From the start of the process to its complete answer."""
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as server:
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(REQUEST).encode() + b"\n")
        server.stdin.flush()
        answer = json.loads(server.stdout.readline())
        took = time.perf_counter() - started
        server.stdin.close()
    if not answer.get("result", {}).get("tools"):
        raise SystemExit(f"no tools: {answer}")
    return took


def main() -> None:
    """Measure both, one after the other, and print the medians."""
    with tempfile.TemporaryDirectory() as store:
        environment = os.environ | {"OMNIGEN2_STORE": store}
        times = [(seconds(HELLO, environment), seconds(OURS, environment)) for _ in range(ROUNDS + 1)][1:]
    hello, ours = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"hello-world server: {hello:.2f} s, omnigen2-mcp: {ours:.2f} s to tools/list ({ROUNDS} rounds)")


if __name__ == "__main__":
    main()
