"""A LoRA file as a value: where it is and what it holds. Needs no torch; `omnigen2.adapters.apply` puts it to
work."""

import hashlib
import json
import os
import stat
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self

from omnigen2.checkpoints.hashes import remembered_hash
from omnigen2.params import InvalidTask

FILE = "pytorch_lora_weights.safetensors"
"""Name of the file that the reference's trainer writes."""
PEFT_FILE = "adapter_model.safetensors"
"""Name of the file that PEFT writes; its configuration lies beside it."""
PEFT_CONFIG = "adapter_config.json"
MAX_CONFIG_BYTES = 2**16
MAX_BYTES = 2**31
"""Largest file that is read. Rank 512 on every attention projection of the full model takes 1.3 GB."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA. Two are equal if they hold the same, wherever they are."""

    path: Path = field(compare=False)
    file_digest: str
    """Hex SHA-256 of the file."""
    config: str = ""
    """The content of PEFT's configuration beside the file, which scales what is in it."""

    @property
    def digest(self) -> str:
        """What identifies it: the digest of its file or, with a configuration beside it, of both."""
        if not self.config:
            return self.file_digest
        return hashlib.sha256(f"{self.file_digest} {self.config}".encode()).hexdigest()

    @classmethod
    def of(cls, path: str | Path) -> Self:
        """The adapter in a file, or in a folder, as its file is now.

        Raises:
            FileNotFoundError, ValueError: as `locate` and `open_adapter`.
        """
        file = locate(Path(path))
        beside = file.parent / PEFT_CONFIG
        config = open_adapter(beside) if file.name == PEFT_FILE and beside.exists() else None
        with open_adapter(file) as opened, config or nullcontext():
            return cls.opened(file, opened, config)

    @classmethod
    def opened(cls, path: Path, file: BinaryIO, config: BinaryIO | None = None) -> Self:
        """The adapter in an open file, which `path` names, with PEFT's configuration if that lies beside it.

        Raises:
            ValueError: as `open_adapter`; the configuration is not a text of reasonable length.
        """
        _check(file, path.name)
        return cls(path, remembered_hash(file), "" if config is None else _text(config))

    def pinned(self, digest: str | None) -> Self:
        """This adapter. Raises ValueError if it is not the one with this digest."""
        if digest is not None and digest.lower() != self.digest:
            raise InvalidTask(
                f"lora: {self.path.name} is not the file with the SHA-256 {digest} any more; "
                "leave the digest out to use it as it is now"
            )
        return self

    def read(self) -> bytes:
        """The bytes of the file.

        Raises:
            FileNotFoundError: it is gone.
            ValueError: it is not the file that was asked for any more.
        """
        with open_adapter(self.path) as file:
            data = file.read(os.fstat(file.fileno()).st_size + 1)
        if hashlib.sha256(data).hexdigest() != self.file_digest:
            raise InvalidTask(
                "lora: the file was changed after it was asked for; ask again to use it as it is"
            )
        return data


@dataclass(frozen=True)
class WeightedAdapter:
    """An adapter, and how strongly it is applied: 1 as trained, 0 not at all, below 0 the other way."""

    adapter: Adapter
    weight: float = 1.0


def metadata(start: bytes) -> dict[str, str]:
    """What a safetensors file says of itself, from its bytes, or those up to the end of its header.

    Empty if it says nothing, or is damaged.
    """
    length = int.from_bytes(start[:8], "little")
    try:
        header: Any = json.loads(start[8 : 8 + length])
        said = header.get("__metadata__") or {}
        return {key: own for key, own in said.items() if isinstance(own, str)}
    except (ValueError, AttributeError, RecursionError):
        return {}


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
    named = [name for name in files if name == FILE] or [name for name in files if name == PEFT_FILE] or files
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


def _text(file: BinaryIO) -> str:
    """The content of PEFT's configuration. Raises ValueError if it is too long or not a text."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        raise InvalidTask(f"lora: {PEFT_CONFIG} is not a regular file")
    data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise InvalidTask(f"lora: {PEFT_CONFIG} has more than {MAX_CONFIG_BYTES} bytes")
    try:
        return data.decode()
    except ValueError as error:
        raise InvalidTask(f"lora: {PEFT_CONFIG} is not a text ({error})") from error
