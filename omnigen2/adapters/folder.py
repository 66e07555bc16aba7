"""Adapters by name: those in a folder that the host chose, and what their files say of themselves.

`pink.safetensors` is `pink`; a folder below with one adapter, as trainers write them, has the folder's name,
and the files of any other folder below are `folder/file`. What a file says was written by whoever made it: it
is cut, and only what can be printed is kept. Needs no torch.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from omnigen2.adapters.file import metadata, open_adapter, pick_adapter
from omnigen2.params import InvalidTask

ENDING = ".safetensors"
MAX_HEADER = 2**24
"""Bytes of a header that is read."""
MAX_ABOUT = 80
"""Characters of what a file says of itself that are passed on."""
MAX_NAME = 100
MAX_LISTED = 600
"""Characters of a list of names in one line."""
TITLES = ("modelspec.title", "ss_output_name", "title", "name")
DESCRIPTIONS = ("modelspec.description", "description")
TRIGGERS = ("modelspec.trigger_phrase", "trigger_words", "trigger_word", "ss_trigger_words")
"""Keys of the metadata that say so, in the order of preference."""


@dataclass(frozen=True)
class Listed:
    """An adapter in the folder."""

    path: Path
    bytes: int
    about: str
    """What the file says of itself, in one line; empty if it says nothing."""
    problem: str = ""
    """Why it cannot be used."""


class AdapterFolder:
    """The adapters in a folder, as they are at each moment; none without a folder."""

    def __init__(self, folder: Path | None):
        self.folder = folder

    def find(self, name: str) -> Path | None:
        """The file of a name, which may end in `.safetensors`; None if there is none of that name."""
        files = dict(self._files())
        return files.get(name) or files.get(name.removesuffix(ENDING))

    def names(self) -> list[str]:
        """The names of those that can be used."""
        return [name for name, own in self.all().items() if not own.problem]

    def all(self) -> Mapping[str, Listed]:
        """Every adapter by its name, in the order of names."""
        return {name: _listed(name, path) for name, path in sorted(self._files())}

    def line(self) -> str:
        """The names and what their files say, in a line; it ends where it would be too long."""
        shown: list[str] = []
        adapters = {name: own for name, own in self.all().items() if not own.problem}
        for name, own in adapters.items():
            shown.append(f'{name} ("{own.about}")' if own.about else name)
            if sum(len(text) + 2 for text in shown) > MAX_LISTED:
                return f"{', '.join(shown[:-1])}, and {len(adapters) - len(shown) + 1} more"
        return ", ".join(shown)

    def _files(self) -> Iterator[tuple[str, Path]]:
        """Names and files; where a folder and a file have one name, the file comes last and counts."""
        folders, files = _children(self.folder) if self.folder else ([], [])
        for folder in folders:
            own = _children(folder)[1]
            try:
                yield folder.name, folder / pick_adapter([file.name for file in own])
            except InvalidTask:
                yield from ((f"{folder.name}/{file.stem}", file) for file in own)
        yield from ((file.stem, file) for file in files)


def _children(folder: Path) -> tuple[list[Path], list[Path]]:
    """The folders and the safetensors files in a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        paths = sorted(Path(entry.path) for entry in entries if not entry.name.startswith("."))
        folders = [path for path in paths if path.is_dir()]
        return folders, [path for path in paths if path.suffix == ENDING and path not in folders]
    return [], []


def _listed(name: str, path: Path) -> Listed:
    if not name.isprintable() or len(name) > MAX_NAME:
        return Listed(path, 0, "", "its name is too long or cannot be printed")
    try:
        with open_adapter(path) as file:
            state = os.fstat(file.fileno())
        stamp = (state.st_ino, state.st_size, state.st_mtime_ns)
        return Listed(path, state.st_size, _about(path, name, stamp))
    except (OSError, ValueError) as error:
        return Listed(path, 0, "", str(error).removeprefix("lora: "))


@lru_cache(maxsize=4096)
def _about(path: Path, name: str, stamp: tuple[int, ...]) -> str:
    """What the file of that stamp says of itself. Raises OSError and ValueError if it has no header."""
    with open_adapter(path) as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(MAX_HEADER, stamp[1]):
            raise InvalidTask(f"lora: {path.name} is damaged or not a safetensors file")
        said = metadata(start + file.read(length))
    title, description, trigger = (_first(said, keys) for keys in (TITLES, DESCRIPTIONS, TRIGGERS))
    parts = [title if title != name else "", description, f"say: {trigger}" if trigger else ""]
    return _line("; ".join(filter(None, parts)))


def _first(said: Mapping[str, str], keys: tuple[str, ...]) -> str:
    return next((line for key in keys if (line := _line(said.get(key, "")))), "")


def _line(text: str) -> str:
    """A text in one line of what can be printed, without quotes, cut."""
    kept = (own if own.isprintable() and own not in "\"'`<>{}" else " " for own in text[:1000])
    line = " ".join("".join(kept).split())
    return line if len(line) <= MAX_ABOUT else f"{line[: MAX_ABOUT - 1].rstrip()}…"
