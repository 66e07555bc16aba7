"""Talk to the server as an agent does: start it, generate, edit what came back, save the file."""

import base64
from pathlib import Path

import anyio
from mcp import Client, StdioServerParameters


async def main() -> None:
    async with Client(StdioServerParameters(command="omnigen2-mcp", args=["serve"])) as studio:
        made = await studio.call_tool("generate_image", {"prompt": "a red circle", "seed": 1})
        circle = made.structured_content["images"][0]
        edited = await studio.call_tool(
            "edit_image", {"image": circle["id"], "instruction": "make the circle blue"}
        )
        image = edited.structured_content["images"][0]
        link = next(block for block in edited.content if block.type == "resource_link")
        full = await studio.read_resource(link.uri)
        Path("blue.png").write_bytes(base64.b64decode(full.contents[0].blob))
        print("blue.png", image["id"])


anyio.run(main)
