"""`omnigen2-mcp`: serve, a command for every tool, and the commands that plugins bring.

Here every failure becomes a line on stderr and an exit status; a person never sees a traceback. Imports stay
inside the functions that need them: `serve` must answer at once, and help needs no server.
"""

import inspect
import json
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any

import anyio
from cyclopts import App as Command
from cyclopts.exceptions import CycloptsError
from pydantic import ValidationError

from omnigen2.explain import explain
from server import allocator, log
from server.cli.options import given, parameters
from server.ending import leave
from server.errors import as_tool_error
from server.settings import Settings
from storage.errors import StoreError
from tools.base import ToolError

if TYPE_CHECKING:
    from omnigen2.checkpoints.card import ModelCard

NAME = "omnigen2-mcp"
HELP = "An image studio for agents: generate, edit, compose and describe, with a model on this machine."
USAGE, FAILED, INTERRUPTED = 2, 1, 130
"""Exit statuses: what was typed is wrong; it did not work; Ctrl-C."""


def main() -> None:
    """The console script."""
    _mend_streams()
    level = os.environ.get("OMNIGEN2_LOG_LEVEL", "").upper()
    # A person gets a failure as a sentence; who wants the traceback, too, says so.
    log.configure(level if level in logging.getLevelNamesMapping() else "critical")
    leave(run(sys.argv[1:]))


def run(words: Sequence[str]) -> int:
    """Run a command line; its exit status."""
    try:
        status = command_line(words)(list(words))
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as ending:  # a plugin's command may do that, too
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        print(ending.code, file=sys.stderr)
        return FAILED
    except Exception as error:  # a plugin's command may fail in any way
        if _stdout_is_gone() and isinstance(error, BrokenPipeError):
            return FAILED  # whoever read along, such as `head`, has seen enough
        return report(error, as_json="--json" in words)
    finally:
        _stdout_is_gone()


def _mend_streams() -> None:
    """Make stdin, stdout and stderr fit to be used: open, and able to take any text."""
    # If one were closed, the next file that is opened would take its place.
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _stdout_is_gone() -> bool:
    """Whether stdout takes nothing any more; if so, what is left goes nowhere, rather than failing again."""
    try:
        sys.stdout.flush()
    except OSError:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        return True
    return False


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
        from server.cli.tools import tool_command
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
        allocator.keep_little()
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
            failure = ToolError("invalid_argument", f"{explain(error, Settings)}.")
        case ValueError():
            failure = ToolError("invalid_argument", str(error))
        case OSError():
            failure = ToolError("invalid_argument", f"{error}.")
        case _:
            failure = as_tool_error(error)
    cause = error.__cause__ if isinstance(error, ToolError) else error
    # Whoever typed the command is the host, so nothing is kept from them.
    if isinstance(cause, StoreError) and cause.place:
        failure.advice = f"{failure.advice} The store is {cause.place}.".strip()
    elif failure.code == "internal" and cause is not None:
        failure.message = f"Unforeseen failure: {type(cause).__name__}: {cause}"
        failure.advice = "OMNIGEN2_LOG_LEVEL=error in the environment shows where."
    if as_json:
        from server.schema import dump_error

        print(json.dumps(dump_error(failure), indent=2))
    from server.cli.output import printable

    print(printable(f"{NAME}: {failure}"), file=sys.stderr)
    return USAGE if failure.code == "invalid_argument" else FAILED


def _card() -> "ModelCard | None":
    """The default model's card, whose defaults help shows; None if it is not here."""
    from omnigen2.manager import Manager

    try:
        return Manager(Settings().model).card()
    except (OSError, ValueError):
        return None
