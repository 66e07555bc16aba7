"""The reference page: tools, settings and commands, as they declare themselves.

`python -m server.cli.reference` writes docs/reference.md (`make docs`); a test fails when that file is stale.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cyclopts import App as Command

from omnigen2.checkpoints.card import published_card
from server import schema
from server.cli.main import command_line
from server.hookspecs import AnyTool
from server.http.rest import path
from server.plugins import Plugins, core_plugins
from server.settings import Settings

PAGE = Path(__file__).parents[2] / "docs" / "reference.md"
HEAD = """\
# Reference

Made by `make docs` from the tools, the settings and the commands themselves; do not edit. Defaults that the
model decides on are those of OmniGen2; another model has its own, which a running server shows.
"""
SETTINGS = """\
Every setting is a flag of `serve`, an environment variable and a key of the TOML file (its name with `_`);
the first of these that is given counts.
"""


def page() -> str:
    """The whole page as Markdown."""
    tools = Plugins(core_plugins()).tools().values()
    parts = [HEAD, "## Tools\n", *map(tool_section, tools), "## Settings\n", settings_section()]
    return "\n".join([*parts, "## Commands\n", commands_section(command_line())])


def tool_section(tool: AnyTool) -> str:
    """What a tool takes and gives."""
    asked, answered = schema.input_schema(tool, published_card("")), schema.output_schema(tool)
    hints = [name for name in ("read_only", "destructive", "idempotent", "open_world") if getattr(tool, name)]
    facts = [f"Command `{tool.command}`", f"`POST {path(tool)}`", *(name.replace("_", " ") for name in hints)]
    required = asked.get("required", ())
    takes = (
        (
            f"`{name}`" + (" (required)" if name in required else ""),
            _kind(field),
            _default(field),
            _words(field),
        )
        for name, field in asked["properties"].items()
    )
    gives = (
        (f"`{name}`", _kind(field), _words(field))
        for name, field in answered["properties"].items()
        if name != "error" or field is not schema.ERROR
    )
    return "\n".join(
        [
            f"### {tool.name}\n",
            f"{tool.description}\n",
            f"{', '.join(facts)}.\n",
            *_table(("parameter", "type", "default", ""), takes),
            *_table(("result", "type", ""), gives),
        ]
    )


def settings_section() -> str:
    """Every setting, by its three names."""
    properties = Settings.model_json_schema()["properties"]
    rows = (
        (f"`--{name.replace('_', '-')}`", f"`OMNIGEN2_{name.upper()}`", _default(field), _words(field))
        for name, field in properties.items()
    )
    return "\n".join([SETTINGS, *_table(("flag", "environment", "default", ""), rows)])


def commands_section(root: Command) -> str:
    """Every command and its subcommands, a line each; `--help` of each tells the rest."""
    return "\n".join(_table(("command", ""), _commands(root, root.name[0]))).rstrip() + "\n"


def _commands(command: Command, name: str) -> Iterator[tuple[str, str]]:
    for word, below in command.resolved_commands().items():
        if word.startswith("-"):
            continue
        full = f"{name} {word}"
        if any(not one.startswith("-") for one in below.resolved_commands()):
            yield from _commands(below, full)
        else:
            yield f"`{full}`", _first_sentence(below.help)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(head)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return [*(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines), ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _kind(field: Mapping[str, Any]) -> str:
    """A field's type and bounds, in words."""
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    kind = field.get("type", "any")
    if kind == "array":
        low, high = field.get("minItems"), field.get("maxItems")
        count = (
            "" if low is high is None else f", {low}" if low == high else f", {low or 0} to {high or 'any'}"
        )
        return f"list of {_kind(field['items'])}{count}"
    low, high = field.get("minimum"), field.get("maximum")
    return kind if low is high is None else f"{kind}, {low} to {high}"


def _default(field: Mapping[str, Any]) -> str:
    value = field.get("default")
    return (
        ""
        if value in (None, "", [], ())
        else f"`{value}`".replace("`True`", "`true`").replace("`False`", "`false`")
    )


def _words(field: Mapping[str, Any]) -> str:
    return field.get("description", "")


def _first_sentence(text: str | None) -> str:
    return (text or "").strip().split("\n", 1)[0]


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)
