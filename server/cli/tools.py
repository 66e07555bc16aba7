"""A command for every tool; `--output` writes the images of its result to files.

Needs no running server: the command runs the app in its own process, for one call.
"""

import inspect
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import anyio
from cyclopts import App as Command
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from omnigen2.checkpoints.card import ModelCard
from server import schema
from server.app import App, build_app
from server.arguments import read_arguments
from server.caller import LOCAL, Caller
from server.cli.options import given, parameters
from server.cli.output import AsJson, show
from server.cli.stores import Store, settings_with
from server.files import check, save
from server.hookspecs import AnyTool
from server.settings import Settings
from server.status import progress_line
from tools.base import JobStatus, Result, ToolError
from tools.references import FileRef, parse_reference

Output = Annotated[
    Path | None,
    Parameter(name="--output", help="Where to write the images: a FILE.png, or a folder. They stay stored."),
]


def tool_command(tool: AnyTool, card: ModelCard | None) -> Command:
    """The command of a tool; help shows the defaults of `card`."""
    described = schema.input_schema(tool, card)
    own = [
        _option("output", Output, None),
        _option("store", Store, None),
        _option("as_json", AsJson, False),
    ]
    signature = inspect.Signature([*parameters(tool.request, described), *own])

    def call(*arguments: Any, **options: Any) -> None:
        typed = signature.bind(*arguments, **options).arguments
        output, as_json = typed.pop("output", None), typed.pop("as_json", False)
        settings = settings_with(typed.pop("store", None))
        if output:
            check(output, tool.result)
        app = build_app(settings)
        result = anyio.run(_call, app, tool, given(typed), settings)
        files = save(app.store, result, output) if output else []
        value = schema.dump(result) | ({"files": [str(file) for file in files]} if output else {})
        show(value, result.summary(), *map(str, files), as_json=as_json)

    call.__signature__ = signature  # type: ignore[attr-defined]
    command = Command(
        name=tool.command, help=f"{tool.title}.\n\n{schema.description(tool, card)}", group="Tools"
    )
    command.default(call)
    return command


async def _call(app: App, tool: AnyTool, arguments: dict[str, Any], settings: Settings) -> Result:
    with _bar() as report:

        async def on_progress(status: JobStatus) -> None:
            report(status)

        folders = (Path.cwd(), *settings.allow_dir, *_typed_paths(tool, arguments))
        caller = Caller(LOCAL, "command line", folders, on_progress)
        async with app:
            return await app.call(tool, arguments, caller)


def _typed_paths(tool: AnyTool, arguments: dict[str, Any]) -> Iterator[Path]:
    """The files and folders named on the command line, or the nearest folders above them that exist.

    The person who typed them may read and write there, even through links.
    """
    try:
        request, _ = read_arguments(tool.request, arguments)
    except ToolError:  # the call says so
        return
    for text in _texts(request.model_dump()):
        if path := _path(text):
            yield path


def _texts(value: object) -> Iterator[str]:
    """Every text in a value, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _texts([*cast("dict[str, object]", value).values()])
    elif isinstance(value, list | tuple):
        for part in cast("list[object]", value):
            yield from _texts(part)


def _path(text: str) -> Path | None:
    if text[:5].lower() == "data:":
        return None
    try:
        named = parse_reference(text, "file")
        path = Path(os.path.abspath(named.path)) if isinstance(named, FileRef) else None
        return next((there for there in (path, *path.parents) if there.exists()), None) if path else None
    except (ToolError, OSError, ValueError):  # a prompt, or a name that no file can have
        return None


@contextmanager
def _bar() -> Generator[Callable[[JobStatus], None]]:
    """A progress bar on stderr; gone when it is done, silent if stderr is not a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        line = progress.add_task("loading", total=None)

        def report(status: JobStatus) -> None:
            progress.update(
                line,
                description=progress_line(status),
                completed=status.step,
                total=status.steps or None,
                refresh=True,
            )

        yield report


def _option(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
