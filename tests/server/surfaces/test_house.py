"""What holds of the surfaces as a whole: one definition per tool, no stale docs, a quick and clean start."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from cyclopts import App as Command
from pydantic import Field

import server
from server import schema
from server.cli.options import parameters
from server.cli.reference import PAGE, page, tool_section
from server.hookspecs import AnyTool, hookimpl
from server.http import rest
from server.plugins import Plugins, core_plugins
from tests.server.core.conftest import CHECKPOINT
from tests.server.surfaces.conftest import Connect, succeeded
from tools.base import Context, Request, Result, Tool
from tools.core import TOOLS

SERVER = Path(server.__file__).parent
TRANSLATION = "openai"
"""The one folder of `server/http` that may name tools and parameters: it translates what others call them."""
SURFACES = (
    "schema",
    "mcp",
    *(
        path.relative_to(SERVER).with_suffix("").as_posix()
        for path in sorted((SERVER / "http").rglob("*.py"))
        if path.parent.name != TRANSLATION
    ),
    "cli/main",
    "cli/reference",
    "cli/tools",
    "cli/options",
    "files",
)
COMMON = {"model", "images", "query", "limit", "cursor", "tool", "path"}
"""Parameters whose names are words that a surface may use for something else."""


@pytest.mark.parametrize("name", SURFACES)
def test_a_surface_names_no_tool_and_no_parameter(name: str) -> None:
    names = {tool.name for tool in TOOLS} | {field for tool in TOOLS for field in tool.request.model_fields}
    tree = ast.parse((SERVER / f"{name}.py").read_text(encoding="utf-8"))
    said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    keywords = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    assert (said | keywords) & names - COMMON == set()
    tools = {tool.name for tool in TOOLS}
    assert [text for text in said if isinstance(text, str) and any(tool in text for tool in tools)] == []


class Count(Request):
    """What to count."""

    letters: str = Field(max_length=100)
    """Letters to count."""
    twice: bool = False
    """Whether each counts twice."""


class Number(Result):
    """How many."""

    number: int

    def line(self) -> str:
        return f"There are {self.number}."


async def count(request: Count, context: Context) -> Number:
    return Number(number=len(request.letters) * (2 if request.twice else 1))


COUNT = Tool(
    "count_letters", "count", "Count letters", "Counts letters.", Count, Number, count, read_only=True
)


class Counting:
    """A plugin with a tool."""

    @hookimpl
    def register_tools(self, register: object) -> None:
        register(COUNT)  # type: ignore[operator]


@pytest.mark.anyio
async def test_tool_of_a_plugin_is_on_every_surface(
    make_app: object, engine: object, connect: Connect
) -> None:
    app = make_app(lambda: engine, [Counting()])  # type: ignore[operator]
    async with connect(app) as client:
        assert "count_letters" in {tool.name for tool in (await client.list_tools()).tools}
        assert await succeeded(client, "count_letters", letters="abc", twice=True) == {
            "number": 6,
            "notes": [],
        }
        assert "/v1/tools/count_letters" in rest.described(app)
    assert "Letters to count." in tool_section(COUNT)
    described = schema.input_schema(COUNT, None)
    assert [one.name for one in parameters(COUNT.request, described)] == ["letters", "twice"]


def test_reference_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run `make docs`"


def test_every_tool_of_the_core_and_every_command_is_in_the_reference() -> None:
    text = PAGE.read_text(encoding="utf-8")
    plugins = Plugins(core_plugins())
    tools: list[AnyTool] = list(plugins.tools().values())
    commands: list[Command] = list(plugins.commands().values())
    assert [tool.name for tool in tools if f"### {tool.name}\n" not in text] == []
    assert [command.name for command in commands if f"`omnigen2-mcp {command.name[0]}" not in text] == []


def test_tools_are_listed_over_stdio_without_torch_and_stdout_holds_the_answer_only(tmp_path: Path) -> None:
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": meta}}
    program = (
        "import sys, server.cli.main as cli; status = cli.run(['serve']); "
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(status)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
        timeout=60,
        env={"OMNIGEN2_STORE": str(tmp_path), "OMNIGEN2_MODEL": str(CHECKPOINT), "PATH": ""},
        check=True,
    )
    (answer,) = ran.stdout.splitlines()
    assert len(json.loads(answer)["result"]["tools"]) == len(TOOLS)
    assert ran.stderr.splitlines()[-1] == "False"
