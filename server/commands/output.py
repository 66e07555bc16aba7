"""How a command shows what it found: a table for people, one JSON document for programs.

Results go to stdout, progress and errors to stderr, so that output can be piped.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON document.")]


def show(value: Any, *text: RenderableType, as_json: bool) -> None:
    """Print `value` as JSON, or `text` for people."""
    if as_json:
        print(json.dumps(value, indent=2, default=str))
        return
    console = Console(soft_wrap=True)
    for part in text:
        console.print(part, highlight=False)


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A table without frames. Its cells are plain text."""
    made = _frameless()
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(escape(str(cell)) for cell in row))
    return made


def facts(pairs: Mapping[str, object]) -> Table:
    """Names on the left, what they are on the right. Both are plain text."""
    made = _frameless(show_header=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in pairs.items():
        made.add_row(escape(name), escape(str(value)))
    return made


def _frameless(show_header: bool = True) -> Table:
    return Table(box=None, header_style="bold", pad_edge=False, show_header=show_header)


@contextmanager
def download_bar() -> Iterator[Progress]:
    """A progress bar in bytes on stderr; gone when it is done, silent where stderr is no terminal."""
    with _bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        yield progress


@contextmanager
def counting_bar() -> Iterator[Progress]:
    """As `download_bar`, for things that are counted."""
    with _bar(MofNCompleteColumn()) as progress:
        yield progress


@contextmanager
def _bar(*amounts: ProgressColumn) -> Iterator[Progress]:
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *amounts,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield progress
