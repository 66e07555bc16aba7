"""The README's snippets are files in examples/, and what it points at exists."""

import json
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"<!-- file: (\S+) -->\n+```\w*\n(.*?)```", README, re.DOTALL)


def test_every_marked_snippet_is_followed_by_its_code() -> None:
    assert len(SNIPPETS) == README.count("<!-- file: ") >= 6


@pytest.mark.parametrize(("path", "shown"), SNIPPETS, ids=[path for path, _ in SNIPPETS])
def test_snippet_is_the_file(path: str, shown: str) -> None:
    assert shown == (PROJECT / path).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted((PROJECT / "examples").glob("*.json")), ids=lambda path: path.name)
def test_client_configuration_starts_the_server_by_absolute_path(path: Path) -> None:
    described = json.loads(path.read_text(encoding="utf-8"))
    (server,) = (described.get("mcpServers") or described["servers"]).values()
    assert Path(server["command"]).is_absolute() and Path(server["command"]).name == "omnigen2-mcp"
    assert server["args"][0] == "serve"


def test_links_of_the_readme_lead_to_files() -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)(?:#([^)]+))?\)", README)
    assert [path for path, _ in links if not (PROJECT / path).exists()] == []
    for path, place in links:
        if place:
            headings = re.findall(r"^#+ (.+)$", (PROJECT / path).read_text("utf-8"), re.MULTILINE)
            assert place in [re.sub(r"[^\w -]", "", own.lower()).replace(" ", "-") for own in headings]
