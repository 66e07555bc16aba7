"""The plugin of docs/plugins.md: it is found, conforms, works, and the page shows its files."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from server.app import build_app
from server.http.app import http_app
from server.plugins import core_plugins
from server.settings import Settings
from storage import ImageStore
from tests.suites.tool import ToolSuite

PROJECT = Path(__file__).parents[2]
MODULE = PROJECT / "examples" / "plugin" / "omnigen2_mirror.py"
PAGE = (PROJECT / "docs" / "plugins.md").read_text(encoding="utf-8")
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


@pytest.mark.parametrize(("path", "shown"), SNIPPETS, ids=[path for path, _ in SNIPPETS])
def test_the_page_shows_the_files_as_they_are(path: str, shown: str) -> None:
    assert shown == (PROJECT / path).read_text(encoding="utf-8")


def test_links_of_the_page_lead_to_files() -> None:
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL)
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", prose)
    assert links and [link for link in links if not (PROJECT / "docs" / link).exists()] == []
