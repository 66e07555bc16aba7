"""`omnigen2-mcp`: serve, a command for every tool, and the commands that plugins bring.

Here every failure becomes a line on stderr and an exit status; a person never sees a traceback. Imports stay
inside the functions that need them: `serve` must answer at once, and help needs no server.
"""

import inspect
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import anyio
from cyclopts import App as Command
from cyclopts.exceptions import CycloptsError
from pydantic import ValidationError

from omnigen2.params import explain
from server import log
from server.commands.options import given, parameters
from server.ending import leave
from server.errors import as_tool_error
from server.settings import Settings
from tools.base import ToolError

if TYPE_CHECKING:
    from omnigen2.card import ModelCard

NAME = "omnigen2-mcp"
HELP = "An image studio for agents: generate, edit, compose and describe, with a model on this machine."
USAGE, FAILED, INTERRUPTED = 2, 1, 130
"""Exit statuses: what was typed is wrong; it did not work; Ctrl-C."""


def main() -> None:
    """The console script."""
    leave(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run a command line; its exit status."""
    try:
        status = command_line(words)(list(words))
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as ending:  # a plugin's command may do that, too
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        print(ending.code, file=sys.stderr)
        return FAILED
    except Exception as error:  # a plugin's command may fail in any way
        return report(error, as_json="--json" in words)


def command_line(words: Sequence[str] = ()) -> Command:
    """The commands that `words` may mean: all, but `serve` alone where it is meant, as it must be quick."""
    root = Command(
        name=NAME,
        help=HELP,
        version=version(NAME),
        result_action="return_value",
        exit_on_error=False,
        print_error=False,
        suppress_keyboard_interrupt=False,
    )
    root.command(serve_command())
    if list(words[:1]) != ["serve"]:
        from server.commands.tools import tool_command
        from server.plugins import Plugins

        plugins = Plugins()
        card = _card()
        for tool in plugins.tools().values():
            root.command(tool_command(tool, card))
        for command in plugins.commands().values():
            root.command(command)
    return root


def serve_command() -> Command:
    """`serve`: every setting is an option of it."""
    signature = inspect.Signature(parameters(Settings, Settings.model_json_schema()))

    def serve(**options: Any) -> None:
        settings = Settings(**given(options))
        log.configure(settings.log_level)
        from server.app import build_app

        app = build_app(settings)
        if settings.transport == "stdio":
            from server.mcp import serve_stdio

            anyio.run(serve_stdio, app)
        else:
            from server.http import serve_http

            anyio.run(serve_http, app)

    serve.__signature__ = signature  # type: ignore[attr-defined]
    command = Command(name="serve", help="Serve agents over MCP, and programs over REST.")
    command.default(serve)
    return command


def report(error: Exception, *, as_json: bool = False) -> int:
    """Say what went wrong; the exit status."""
    match error:
        case CycloptsError():
            failure = ToolError("invalid_argument", str(error), f"See {NAME} --help.")
        case ValidationError():
            failure = ToolError("invalid_argument", f"{explain(error)}.")
        case ValueError() | OSError():
            failure = ToolError("invalid_argument", str(error))
        case _:
            failure = as_tool_error(error)
    if as_json:
        from server.schema import dump_error

        print(json.dumps(dump_error(failure), indent=2))
    print(f"{NAME}: {failure}", file=sys.stderr)
    return USAGE if failure.code == "invalid_argument" else FAILED


def _card() -> "ModelCard | None":
    """The default model's card, whose defaults help shows; None if it is not here."""
    from omnigen2.manager import Manager

    try:
        return Manager(Settings().model).card()
    except (OSError, ValueError):
        return None
