"""A command for every tool: what was typed is the request, and the files it made go where the user says.

Works without a running server: the command is one itself, for a single call.
"""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import anyio
from cyclopts import App as Command
from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from omnigen2.card import ModelCard
from server import schema
from server.app import App, build_app
from server.caller import LOCAL, Caller
from server.commands.options import given, parameters
from server.commands.output import AsJson, show
from server.files import save
from server.hookspecs import AnyTool
from server.settings import Settings
from server.status import progress_line
from tools.base import JobStatus, Result

Output = Annotated[
    Path | None,
    Parameter(name="--output", help="Where to write the images: a FILE.png, or a folder. They stay stored."),
]


def tool_command(tool: AnyTool, card: ModelCard | None) -> Command:
    """The command of a tool; help shows the defaults of `card`."""
    described = schema.input_schema(tool, card)
    own = [_option("output", Output, None), _option("as_json", AsJson, False)]
    signature = inspect.Signature([*parameters(tool.request, described), *own])

    def call(*arguments: Any, **options: Any) -> None:
        typed = signature.bind(*arguments, **options).arguments
        output, as_json = typed.pop("output", None), typed.pop("as_json", False)
        settings = Settings()
        app = build_app(settings)
        result = anyio.run(_call, app, tool, given(typed), settings)
        files = save(app.store, result, output) if output else []
        value = schema.dump(result) | ({"files": [str(file) for file in files]} if output else {})
        show(value, result.line(), *map(str, files), as_json=as_json)

    call.__signature__ = signature  # type: ignore[attr-defined]
    command = Command(name=tool.command, help=f"{tool.title}.\n\n{tool.description}", group="Tools")
    command.default(call)
    return command


async def _call(app: App, tool: AnyTool, arguments: dict[str, Any], settings: Settings) -> Result:
    with _bar() as report:

        async def on_progress(status: JobStatus) -> None:
            report(status)

        folders = (*settings.folders, *_folders(arguments))
        caller = Caller(LOCAL, "command line", folders, on_progress)
        async with app:
            return await app.call(tool, arguments, caller)


def _folders(arguments: dict[str, Any]) -> Iterator[Path]:
    """The folders of the files that were typed: whoever types a path means that file to be read."""
    for value in arguments.values():
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and len(text) < 4096 and "\0" not in text:
                path = Path(text.removeprefix("file://")).expanduser()
                if path.exists():
                    yield path.resolve().parent


@contextmanager
def _bar() -> Iterator[Callable[[JobStatus], None]]:
    """A progress bar on stderr; gone when it is done, silent where stderr is no terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn())
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
