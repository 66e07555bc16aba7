"""Adapters as a request names them: by name, from the folder that the host offers, or by path."""

import difflib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import anyio.to_thread

from omnigen2.adapters.file import PEFT_CONFIG, PEFT_FILE, Adapter, WeightedAdapter, pick_adapter
from omnigen2.params import NamedAdapter
from tools.base import Context, ToolError
from tools.references import shown

FIELD = "lora"
ADVICE = "Give the path of a safetensors file, or of a folder that holds just one."
_HASHING = anyio.CapacityLimiter(2)
"""Threads that read adapters: never those that everything else waits for."""

Found = tuple[WeightedAdapter, NamedAdapter]


async def find_adapters(asked: Sequence[NamedAdapter], context: Context) -> list[Found]:
    """Each adapter with its weight, and how a record names it: with its digest, so that it stays that one.

    Raises:
        ToolError: `forbidden`, or `invalid_argument` if it is not there or not the one that was demanded.
    """
    return [await anyio.to_thread.run_sync(_find, own, context, limiter=_HASHING) for own in asked]


def _find(asked: NamedAdapter, context: Context) -> Found:
    try:
        name, adapter = _open(asked.name, context)
    except ValueError as error:
        raise ToolError("invalid_argument", f"{error}.", ADVICE) from error
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ToolError(
            "invalid_argument", f"{FIELD}: {shown(asked.name)} cannot be read: {reason}.", ADVICE
        ) from error
    if asked.digest is not None and asked.digest.lower() != adapter.digest:
        raise ToolError(
            "invalid_argument",
            f"{FIELD}: {shown(asked.name)} is not the file with the SHA-256 {asked.digest} any more.",
            "Leave the digest out to use the file as it is now.",
        )
    recorded = NamedAdapter(name=name, weight=asked.weight, digest=adapter.digest)
    return WeightedAdapter(adapter, asked.weight), recorded


def _open(name: str, context: Context) -> tuple[str, Adapter]:
    """The adapter of that name, or else at that path, and its name or whole path.

    Raises:
        ToolError, OSError, ValueError: as `Context.open_file` and `Adapter.opened`; what is no path, where
            the host offers adapters by name, is taken for a misspelt name.
    """
    if path := context.adapters.find(name):
        return name, Adapter.of(path)
    try:
        file, opened = context.open_file(name, FIELD, pick_adapter)
    except (ToolError, OSError, ValueError) as error:
        known = context.adapters.names()
        if not known or "/" in name:
            raise
        near = difflib.get_close_matches(name, known, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        message = f"{FIELD}: there is no adapter {shown(name)}{meant}."
        raise ToolError("invalid_argument", message, f"There are: {context.adapters.line()}.") from error
    with opened, _config(file, context) or nullcontext() as config:
        return str(file), Adapter.opened(file, opened, config)


def _config(file: Path, context: Context) -> BinaryIO | None:
    """PEFT's configuration beside a file of PEFT's, if there is one. Raises what `Context.open_file` does."""
    if file.name != PEFT_FILE:
        return None
    try:
        return context.open_file(str(file.parent / PEFT_CONFIG), FIELD)[1]
    except FileNotFoundError:
        return None
