"""What a conversation costs the model of an agent: sizes in tokens of four characters.

    python -m benchmarks.sizes [MODEL]

Starts the server over stdio in a store of its own, and counts what its client gets: instructions, the list
of tools, a result, a list of 20 images, and five calls (generate, view, edit, compose, describe). Of results
`text` is the text alone, `all` text, links and structured content; pictures are not counted.
"""

import json
import os
import sys
import tempfile
from typing import Any

import anyio
import mcp_types as types
from mcp import Client, StdioServerParameters

CHARACTERS = 4
"""Characters of a token."""


def tokens(*texts: str) -> int:
    """Tokens of some texts, four characters each."""
    return round(sum(map(len, texts)) / CHARACTERS)


def compact(value: Any) -> str:
    """JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def sizes(result: types.CallToolResult) -> tuple[int, int]:
    """Tokens of a result's text, and of all but its pictures."""
    if result.is_error:
        raise RuntimeError(str(result.content))
    text = [block.text for block in result.content if isinstance(block, types.TextContent)]
    links = [
        block.model_dump_json(by_alias=True, exclude_none=True)
        for block in result.content
        if isinstance(block, types.ResourceLink)
    ]
    structured = [] if result.structured_content is None else [compact(result.structured_content)]
    return tokens(*text), tokens(*text, *links, *structured)


async def measure(client: Client) -> None:
    """Print a line per part of a conversation."""
    listed = (await client.list_tools()).tools
    whole = [tool.model_dump_json(by_alias=True, exclude_none=True) for tool in listed]
    asked = [compact(tool.input_schema) + tool.name + (tool.description or "") for tool in listed]
    said = client.instructions or ""
    print(f"instructions: {tokens(said)} tokens, {len(said)} characters")
    print(f"tools/list: {tokens(*whole)} for {len(listed)} tools; of these, for the model {tokens(*asked)}")

    async def call(tool: str, **arguments: Any) -> types.CallToolResult:
        return await client.call_tool(tool, arguments)

    made = await call("generate_image", prompt="a red circle on a white background", seed=1, steps=2)
    first = made.structured_content["images"][0]["id"]  # type: ignore[index]
    edited = await call("edit_image", image=first, instruction="make the circle blue", seed=1, steps=2)
    both = [first, edited.structured_content["images"][0]["id"]]  # type: ignore[index]
    words = "the circle of the first image and the circle of the second image"
    results = {
        "generate": made,
        "view": await call("view_image", image=first),
        "edit": edited,
        "compose": await call("compose_from_references", images=both, instruction=words, seed=1, steps=2),
        "describe": await call("describe_image", images=both),
    }
    print_sizes("one result", [made])
    print_sizes("five calls", list(results.values()))
    for seed in range(2, 5):
        await call("generate_image", prompt="a blue star", num_images=8, seed=seed * 10, steps=1)
    print_sizes("a list of 20", [await call("list_images")])


def print_sizes(name: str, results: list[types.CallToolResult]) -> None:
    """Print the tokens of some results together."""
    text, everything = (sum(part) for part in zip(*map(sizes, results), strict=True))
    print(f"{name}: text {text}, all {everything}")


async def main(model: str) -> None:
    """Start the server, and measure."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "OMNIGEN2_STORE": folder, "OMNIGEN2_MODEL": model}
        command = ["-m", "server.cli", "serve"]
        server = StdioServerParameters(command=sys.executable, args=command, env=environment)
        async with Client(server) as client:
            await measure(client)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1] if len(sys.argv) > 1 else "nano")
