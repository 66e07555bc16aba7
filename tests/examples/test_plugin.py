"""The plugin of docs/plugins.md: it is found, conforms, works, and the page shows its files."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import httpx
import pytest
from mcp import Client
from PIL import Image
from starlette.testclient import TestClient

from server.app import build_app
from server.hookspecs import PROJECT
from server.http.app import http_app
from server.plugins import core_plugins
from server.settings import Settings
from storage import ImageStore
from tests.clients.conftest import listening
from tests.plugins import with_plugins
from tests.suites.tool import ToolSuite

ROOT = Path(__file__).parents[2]
MODULE = ROOT / "examples" / "plugin" / "omnigen2_mirror.py"
PAGE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"<!-- file: (\S+) -->\n+```\w*\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def plugin() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location(MODULE.stem, MODULE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[MODULE.stem] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[MODULE.stem]


class TestMirror(ToolSuite):
    @pytest.fixture
    def tool(self, plugin: ModuleType) -> Any:
        return plugin.TOOL


def test_the_mirror_tool_works_over_http_and_keeps_the_lineage(plugin: ModuleType, tmp_path: Path) -> None:
    store = ImageStore(tmp_path)
    picture = Image.new("RGB", (20, 10), "red")
    picture.paste("blue", (0, 0, 10, 10))
    source = store.put(picture)
    app = build_app(Settings(store=str(tmp_path)), [*core_plugins(), plugin])
    with TestClient(http_app(app), base_url="http://127.0.0.1") as client:
        answer = client.post("/v1/tools/mirror_image", json={"image": str(source.id)})
        described = client.get("/openapi.json").json()["paths"]
        app.manager.acquire().result(60)  # what loads beside it must not reach into the next test
    assert answer.status_code == 200, answer.text
    made = store.open(answer.json()["image"]["id"])
    assert (made.getpixel((0, 0)), made.getpixel((19, 0))) == ((255, 0, 0), (0, 0, 255))
    oldest = store.lineage(answer.json()["image"]["id"])[0]
    assert oldest.image.id == source.id
    assert "/v1/tools/mirror_image" in described


def test_what_the_page_shows_is_found_and_adds_to_every_surface(
    environment: dict[str, str], tmp_path: Path
) -> None:
    files = {Path(path).name: shown for path, shown in SNIPPETS}
    for name, shown in files.items():
        (tmp_path / name).write_text(shown, encoding="utf-8")
    declared = tomllib.loads(files["pyproject.toml"])["project"]["entry-points"][PROJECT]
    assert {f"{module}.py" for module in declared.values()} == files.keys() - {"pyproject.toml"}
    environment = with_plugins(environment, tmp_path, *declared.values())

    command = ["omnigen2-mcp", "roll", "--dice", "3", "--json"]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert len(json.loads(printed.stdout)["values"]) == 3 and printed.stderr == ""

    async def over_mcp(url: str) -> None:
        async with Client(f"{url}/mcp") as client:
            names = {tool.name for tool in (await client.list_tools()).tools}
            assert {"roll_dice", "mirror_image", "generate_image"} <= names
            rolled = await client.call_tool("roll_dice", {"dice": 1})
            assert [block.type for block in rolled.content] == ["text", "resource"]
            (rules,) = (await client.read_resource("dice://rules")).contents
            assert rules.model_dump()["text"] == "A die shows 1 to 6."
            prompt = (await client.get_prompt("who_begins", {"players": "5"})).messages[0].content
            assert "players: 5." in prompt.model_dump()["text"]

    with listening(environment) as url:
        events = httpx.post(
            f"{url}/v1/tools/roll_dice", json={}, headers={"Accept": "text/event-stream"}, timeout=60
        ).text
        assert events.count("event: progress") == 2 and events.count("event: result") == 1
        rolled = httpx.get(f"{url}/dice", params={"dice": "4"}, timeout=60).json()
        assert rolled["for"] == "local" and rolled["said"].startswith("Rolled ")
        refused = httpx.get(f"{url}/dice", params={"dice": "many"}, timeout=60)
        assert refused.status_code == 400 and "dice" in refused.json()["error"]["message"]
        anyio.run(over_mcp, url)


@pytest.mark.parametrize(("path", "shown"), SNIPPETS, ids=[path for path, _ in SNIPPETS])
def test_the_page_shows_the_files_as_they_are(path: str, shown: str) -> None:
    assert shown == (ROOT / path).read_text(encoding="utf-8")


def test_links_of_the_page_lead_to_files() -> None:
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", prose)
    assert links and [link for link in links if not (ROOT / "docs" / link).exists()] == []
