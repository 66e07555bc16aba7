"""`omnigen2-mcp`: serve, a command for every tool, and the commands that plugins bring.

Here every failure becomes a line on stderr and an exit status; a person never sees a traceback. Imports stay
inside the functions that need them: `serve` must answer at once, and help needs no server.
"""

import inspect
import json
import logging
import os
import select
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from io import TextIOWrapper, UnsupportedOperation
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
"""Exit statuses: wrong usage, failure, interrupted by Ctrl-C."""


def main() -> None:
    """The console script."""
    _mend_streams()
    level = os.environ.get("OMNIGEN2_LOG_LEVEL", "").upper()
    # Failures are printed as a sentence; OMNIGEN2_LOG_LEVEL=error adds the traceback.
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
    except SystemExit as ending:  # a plugin's command may raise it
        if ending.code is None or isinstance(ending.code, int):
            return ending.code or 0
        print(ending.code, file=sys.stderr)
        return FAILED
    except Exception as error:  # a plugin's command may fail in any way
        if _stdout_is_gone() and isinstance(error, BrokenPipeError):
            return FAILED  # the reader, such as `head`, has exited
        return report(error, as_json="--json" in words)
    finally:
        _stdout_is_gone()


def _mend_streams() -> None:
    """Make sure that stdin, stdout and stderr are open and can encode any text."""
    # If one is closed, the next file that is opened gets its descriptor.
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
    """Whether stdout is closed; if so, the rest of the output is discarded."""
    try:
        sys.stdout.flush()
        _refuse_broken_pipe()
    except OSError:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
        return True
    return False


def _refuse_broken_pipe() -> None:
    """Raise BrokenPipeError if nobody reads stdout: what failed to be written is not there to be flushed."""
    with suppress(ValueError, UnsupportedOperation):  # stdout is closed, or no file
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        if any(event & select.POLLERR for _, event in poll.poll(0)):
            raise BrokenPipeError


def command_line(words: Sequence[str] = ()) -> Command:
    """All commands, or `serve` alone if `words` begin with it: it must start quickly."""
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
        for name, reason in plugins.failed.items():
            print(f"{NAME}: the plugin {name} is left out: {reason}", file=sys.stderr)
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
            from server.http.serve import serve_http

            anyio.run(serve_http, app)

    serve.__signature__ = signature  # type: ignore[attr-defined]
    command = Command(name="serve", help="Serve agents over MCP, and programs over REST.")
    command.default(serve)
    return command


def report(error: Exception, *, as_json: bool = False) -> int:
    """Print an error; return the exit status."""
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
    # The person at the command line is the host, who may see where the store is.
    if isinstance(cause, StoreError) and cause.place:
        failure.advice = f"{failure.advice} The store is {cause.place}.".strip()
    elif failure.code == "internal" and cause is not None:
        failure.message = f"Unexpected error: {type(cause).__name__}: {cause}"
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
