"""From a wish to a file of the project, through a server process with nano; its history in another store."""

import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from PIL import Image

from tests.clients.conftest import COMMAND, listening

pytestmark = pytest.mark.anyio
QUICK = {"width": 96, "height": 96, "steps": 4, "seed": 1}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project" / "assets").mkdir(parents=True)
    return tmp_path / "project"


@asynccontextmanager
async def talking(transport: str, project: Path, store: Path, *, allowed: bool) -> AsyncGenerator[Client]:
    """A client of a server process that works in `project`; over HTTP it may use it if `allowed`."""
    environment = {"OMNIGEN2_STORE": str(store), "OMNIGEN2_MODEL": "nano"}
    if transport == "stdio":
        server = StdioServerParameters(
            command=COMMAND[0], args=COMMAND[1:], env=inherited() | environment, cwd=project
        )
        async with Client(server) as client:
            yield client
        return
    folders = {"OMNIGEN2_ALLOW_DIR": str(project)} if allowed else {}
    with listening(inherited() | environment | folders) as url:
        async with Client(f"{url}/mcp") as client:
            yield client


def inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("OMNIGEN2_")}


async def called(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return result.structured_content


@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_a_logo_is_made_looked_at_made_blue_and_saved(
    transport: str, project: Path, tmp_path: Path
) -> None:
    async with talking(transport, project, tmp_path / "store", allowed=True) as client:
        logo = (await called(client, "generate_image", prompt="a red circle", **QUICK))["images"][0]["id"]
        look = await client.call_tool("view_image", {"image": logo})
        assert [block.type for block in look.content if block.type == "image"] == ["image"]
        edited = await called(client, "edit_image", image=logo, instruction="make the circle blue", seed=1)
        blue = edited["images"][0]["id"]
        wanted = {"image": blue, "path": "assets/logo.webp", "width": 64, "height": 64}
        saved = await client.call_tool("save_image", wanted)
        again = await client.call_tool("save_image", wanted)
    file = project / "assets" / "logo.webp"
    with Image.open(file) as picture:
        assert (picture.size, picture.format) == ((64, 64), "WEBP")
        red, _, bluish = picture.convert("RGB").resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
        assert bluish > red
    assert saved.structured_content["path"] == str(file) and str(file) in saved.content[0].text
    assert saved.structured_content["bytes"] == file.stat().st_size
    assert any("Resized from 96x96 to 64x64" in note for note in saved.structured_content["notes"])
    assert again.is_error and "'assets/logo.webp' exists already" in again.content[0].text
    assert list((project / "assets").iterdir()) == [file]

    async with talking(transport, project, tmp_path / "other", allowed=True) as client:
        taken = await called(client, "import_image", image="assets/logo.webp")
        history = await client.call_tool("image_history", {"image": taken["image"]["id"]})
    claims = history.structured_content["claims"]
    assert [claim["tool"] for claim in claims] == ["generate_image", "edit_image", "save_image"]
    assert [claim["images"] for claim in claims] == [[logo], [blue], []]
    assert claims[0]["replay"]["arguments"]["prompt"] == "a red circle"
    assert claims[0]["replay"]["arguments"]["seed"] == 1 and claims[1]["inputs"] == [logo]
    assert "as the file of" in history.content[0].text and "make the circle blue" in history.content[0].text


async def test_without_an_allowed_folder_the_answer_over_http_is_what_the_host_must_do(
    project: Path, tmp_path: Path
) -> None:
    async with talking("http", project, tmp_path / "store", allowed=False) as client:
        refused = await client.call_tool("save_image", {"image": "deadbeef", "path": "assets/logo.webp"})
    text = refused.content[0].text
    assert refused.is_error and "writes files to no folder" in text and "serve --allow-dir FOLDER" in text
    assert list((project / "assets").iterdir()) == []
