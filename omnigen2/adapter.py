"""A LoRA file as a value: where it is and what it holds. Needs no torch; `omnigen2.lora` puts it to work."""

import hashlib
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self

from omnigen2.checkpoints.hashes import remembered_hash
from omnigen2.params import InvalidTask

FILE = "pytorch_lora_weights.safetensors"
"""Name of the file that the reference's trainer writes."""
MAX_BYTES = 2**31
"""Largest file that is read. Rank 512 on every attention projection of the full model takes 1.3 GB."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA. Two are equal if their files hold the same bytes, wherever they are."""

    path: Path = field(compare=False)
    digest: str
    """Hex SHA-256 of the file."""

    @classmethod
    def of(cls, path: str | Path) -> Self:
        """The adapter in a file, or in a folder, as its file is now.

        Raises:
            FileNotFoundError, ValueError: as `locate` and `open_adapter`.
        """
        file = locate(Path(path))
        with open_adapter(file) as opened:
            return cls.opened(file, opened)

    @classmethod
    def opened(cls, path: Path, file: BinaryIO) -> Self:
        """The adapter in an open file, which `path` names. Raises ValueError as `open_adapter`."""
        _check(file, path.name)
        return cls(path, remembered_hash(file))

    def read(self) -> bytes:
        """The bytes of the file.

        Raises:
            FileNotFoundError: it is gone.
            ValueError: it is not the file that was asked for any more.
        """
        with open_adapter(self.path) as file:
            data = file.read(os.fstat(file.fileno()).st_size + 1)
        if hashlib.sha256(data).hexdigest() != self.digest:
            raise InvalidTask(
                "lora: the file was changed after it was asked for; ask again to use it as it is"
            )
        return data


def locate(path: Path) -> Path:
    """The file meant by the path of a LoRA: itself, or the one in that folder.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: the folder holds none or several, and none has the trainer's name.
    """
    if not path.is_dir():
        return path
    return path / pick_adapter(sorted(os.listdir(path)))


def pick_adapter(names: Sequence[str]) -> str:
    """The file meant by a folder of these files. Raises ValueError as `locate`."""
    files = [name for name in names if name.endswith(".safetensors")]
    named = [name for name in files if name == FILE] or files
    if len(named) != 1:
        raise InvalidTask(f"lora: the folder holds {len(files)} safetensors files; name one of them")
    return named[0]


def open_adapter(path: Path) -> BinaryIO:
    """A LoRA file, open for reading. Never waits for a pipe or a device.

    Raises:
        FileNotFoundError: it cannot be read.
        ValueError: it is not a regular file, or too large for a LoRA.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise FileNotFoundError(f"lora: {path.name} cannot be read: {error.strerror}") from error
    file = os.fdopen(handle, "rb")
    try:
        _check(file, path.name)
    except ValueError:
        file.close()
        raise
    return file


def _check(file: BinaryIO, name: str) -> None:
    state = os.fstat(file.fileno())
    if not stat.S_ISREG(state.st_mode):
        raise InvalidTask(f"lora: {name} is not a regular file")
    if state.st_size > MAX_BYTES:
        raise InvalidTask(f"lora: {name} has {state.st_size} bytes; a LoRA has at most {MAX_BYTES}")
