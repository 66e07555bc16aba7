"""How a command shows what it found: a table for people, one JSON document for programs.

Results go to stdout, progress and errors to stderr, so that output can be piped.
"""

import json
import sys
import unicodedata
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console, RenderableType
from rich.filesize import decimal
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
from rich.text import Text

from omnigen2.memory.choice import MemoryChoice

_BIDI = frozenset(("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"))
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print one JSON document.")]


def show(value: Any, *text: RenderableType, as_json: bool) -> None:
    """Print `value` as JSON, or `text` for people."""
    if as_json:
        print(json.dumps(value, indent=2, default=str))
        return
    console = Console(soft_wrap=True)
    for part in text:
        console.print(Text(printable(part)) if isinstance(part, str) else part, highlight=False)


def memory_words(choice: MemoryChoice) -> str:
    """The memory mode of a model, why, and what each mode needs."""
    needed = [
        f"{mode} {decimal(need.device_bytes)}"
        + (f" (and {decimal(need.host_bytes)} on the host)" if need.host_bytes else "")
        for mode, need in choice.needs.items()
    ]
    return f"{choice.mode}, {choice.reason}; modes need about: {', '.join(needed)}"


def printable(text: str, keep: str = "\n\t") -> str:
    """`text` as a terminal can show it: what would control the terminal, or stdout cannot encode, is escaped.

    Control characters other than those to `keep` could move the cursor, set colours or the title; others
    reverse the direction of writing.
    """
    plain = "".join(sign if sign in keep or not _controls(sign) else ascii(sign)[1:-1] for sign in text)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return plain.encode(encoding, "backslashreplace").decode(encoding)


def _controls(sign: str) -> bool:
    return unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") or unicodedata.bidirectional(sign) in _BIDI


def table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A table without frames. Its cells are plain text."""
    made = _frameless()
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(_cell(cell) for cell in row))
    return made


def facts(pairs: Mapping[str, object]) -> Table:
    """A table of names and values, both plain text."""
    made = _frameless(show_header=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in pairs.items():
        made.add_row(_cell(name), _cell(value))
    return made


def _cell(value: object) -> Text:
    return Text(printable(str(value), keep=""))


def _frameless(show_header: bool = True) -> Table:
    return Table(box=None, header_style="bold", pad_edge=False, show_header=show_header)


@contextmanager
def download_bar() -> Generator[Progress]:
    """A progress bar in bytes on stderr; gone when it is done, silent if stderr is not a terminal."""
    with _bar(DownloadColumn(), TransferSpeedColumn()) as progress:
        yield progress


@contextmanager
def counting_bar() -> Generator[Progress]:
    """A progress bar that counts items, like `download_bar`."""
    with _bar(MofNCompleteColumn()) as progress:
        yield progress


@contextmanager
def _bar(*amounts: ProgressColumn) -> Generator[Progress]:
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        *amounts,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        yield progress
