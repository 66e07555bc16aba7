"""All tools of the core as values: offered through the hook, and each one passes the suite for tools."""

import subprocess
import sys
from typing import Any

import pluggy
import pytest

import tools.core
from omnigen2.params import ReferenceSampling
from tests.suites.tool import ToolSuite
from tools.base import Tool
from tools.core import TOOLS

NAMES = [
    "generate_image",
    "edit_image",
    "compose_from_references",
    "describe_image",
    "import_image",
    "list_images",
    "view_image",
    "image_history",
    "save_image",
    "get_job",
    "cancel_job",
]


@pytest.mark.parametrize("tool", TOOLS, ids=lambda tool: tool.name)
class TestCoreTool(ToolSuite):
    """`tool` comes from the parametrisation."""


def test_the_core_offers_its_tools_through_the_hook() -> None:
    from server import hookspecs

    plugins = pluggy.PluginManager(hookspecs.PROJECT)
    plugins.add_hookspecs(hookspecs)
    plugins.register(tools.core)
    plugins.check_pending()
    offered: list[Tool[Any, Any]] = []
    plugins.hook.register_tools(register=offered.append)
    assert [tool.name for tool in offered] == NAMES


def test_the_model_has_every_parameter_once_for_all_tools() -> None:
    """Tools that share a parameter of the model share its definition."""
    for name in ReferenceSampling.model_fields:
        fields = {
            str(tool.request.model_fields[name]) for tool in TOOLS[:3] if name in tool.request.model_fields
        }
        assert len(fields) == 1, name


def test_what_matters_most_comes_first() -> None:
    first = {tool.name: list(tool.request.model_fields)[:2] for tool in TOOLS}
    assert first["generate_image"] == ["prompt", "negative_prompt"]
    assert first["edit_image"] == ["image", "instruction"]
    assert first["compose_from_references"] == ["images", "instruction"]
    assert first["describe_image"] == ["images", "question"]
    fields = [name for name in TOOLS[0].result.model_fields if name != "notes"]  # which surfaces put last
    assert fields[0] == "images"


def test_the_tools_are_described_without_torch() -> None:
    code = "import sys, tools.core; sys.exit('torch' in sys.modules or 'mcp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
