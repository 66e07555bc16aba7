"""The main job, from an agent's seat: an MCP client over stdio talks to a real `omnigen2-mcp serve`.

It generates three shapes, edits one, composes two, asks what the result shows, and follows its lineage; each
call is printed, and a contact sheet is saved. `make demo` runs it; `--output` and OMNIGEN2_MODEL change where
the pictures go and which model makes them.
"""

import argparse
import base64
import io
import os
import sys
import time
from pathlib import Path
from typing import Any

import anyio
from mcp import Client, StdioServerParameters
from PIL import Image, ImageDraw, ImageFont, ImageOps

SEED = 7
SHAPES = ("a red circle", "a blue square", "a yellow star")
EDIT = "make the circle green"
COMPOSE = "the first image and the second image side by side"
QUESTION = "What is in this image?"
TILE = 256


class Conversation:
    """Calls tools, prints what was asked and answered, and keeps the pictures for the contact sheet."""

    def __init__(self, client: Client):
        self.client = client
        self.pictures: list[tuple[str, Image.Image]] = []

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """The structured result of a tool call; ends the demo with the server's words if it failed."""
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        print(f"\n> {tool}({shown})", flush=True)
        started = time.monotonic()
        result = await self.client.call_tool(tool, arguments, progress_callback=print_progress)
        text = " ".join(block.text for block in result.content if block.type == "text")
        if result.is_error:
            sys.exit(f"  failed: {text}")
        print(f"  {text}  [{time.monotonic() - started:.1f} s]", flush=True)
        assert result.structured_content is not None
        return result.structured_content

    async def image(self, caption: str, tool: str, **arguments: Any) -> str:
        """Call a tool that makes one picture, keep the picture, and return its id."""
        (made,) = (await self.call(tool, **arguments))["images"]
        resource = await self.client.read_resource(made["id"].replace("sha256:", "image://sha256/"))
        picture = Image.open(io.BytesIO(base64.b64decode(resource.contents[0].blob)))  # type: ignore[union-attr]
        self.pictures.append((caption, picture.convert("RGB")))
        return made["id"]


async def print_progress(done: float, total: float | None, message: str | None) -> None:
    """One line that is overwritten, on terminals only."""
    if sys.stdout.isatty():
        print(f"\r  {message or ''}\033[K", end="\r", flush=True)


async def converse(talk: Conversation) -> None:
    """Generate, edit, compose, describe, history: every id is handed on as an agent would."""
    circle, square, _ = [
        await talk.image(prompt, "generate_image", prompt=prompt, seed=SEED) for prompt in SHAPES
    ]
    edited = await talk.image(EDIT, "edit_image", image=circle, instruction=EDIT, seed=SEED)
    composed = await talk.image(
        COMPOSE, "compose_from_references", images=[edited, square], instruction=COMPOSE, seed=SEED
    )
    await talk.call("describe_image", images=[composed], question=QUESTION)
    await talk.call("image_history", image=composed)
    again = await talk.call("generate_image", prompt=SHAPES[0], seed=SEED)
    print(f"  the same request again: {'from the store' if again['cached'] else 'computed anew'}")


def contact_sheet(pictures: list[tuple[str, Image.Image]]) -> Image.Image:
    """All pictures in one row, TILE pixels wide each, with what was asked above them."""
    bar = 40
    sheet = Image.new("RGB", (TILE * len(pictures), TILE + bar), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for index, (caption, picture) in enumerate(pictures):
        picture = ImageOps.contain(picture, (TILE, TILE))
        words, line, lines = caption.split(), "", []
        for word in words:
            if draw.textlength(f"{line} {word}", font=font) > TILE - 16:
                lines.append(line)
                line = ""
            line = f"{line} {word}".strip()
        draw.multiline_text((index * TILE + 8, 4), "\n".join([*lines, line]), fill="black", font=font)
        sheet.paste(picture, (index * TILE + (TILE - picture.width) // 2, bar))
    return sheet


async def main() -> None:
    """Start the server, hold the conversation, save the contact sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo-output"), help="folder for store and sheet")
    output: Path = parser.parse_args().output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    server = StdioServerParameters(
        command=str(Path(sys.executable).with_name("omnigen2-mcp")),
        args=["serve"],
        env={"OMNIGEN2_STORE": str(output / "store"), "OMNIGEN2_LOG_LEVEL": "warning", **os.environ},
    )
    started = time.monotonic()
    async with Client(server) as client:
        tools = (await client.list_tools()).tools
        print(f"server: {client.server_info.name} {client.server_info.version}, {len(tools)} tools:")
        print("  " + ", ".join(tool.name for tool in tools))
        talk = Conversation(client)
        await converse(talk)
    sheet = output / "contact-sheet.png"
    contact_sheet(talk.pictures).save(sheet)
    print(f"\nDone in {time.monotonic() - started:.1f} s. Contact sheet: {sheet}")


if __name__ == "__main__":
    anyio.run(main)
