"""`omnigen2-mcp doctor`: what will run where and why, and what to do about what is missing.

Each check gives findings and changes nothing. A problem makes the command fail, so that scripts can ask too.
"""

import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from rich.filesize import decimal

from omnigen2 import hub
from omnigen2.card import read_card

State = Literal["ok", "note", "problem"]
PULL = "omnigen2-mcp models pull OmniGen2/OmniGen2"
LITTLE_SPACE = 2 * 10**9
"""Bytes free for the store below which doctor warns."""


@dataclass(frozen=True)
class Finding:
    """Something doctor saw; `advice` says what to do, where there is something to do."""

    about: str
    state: State
    says: str
    advice: str = ""


def check_installation() -> Iterator[Finding]:
    """Versions of what is installed."""
    yield Finding(
        "installation",
        "ok",
        f"omnigen2-mcp {version('omnigen2-mcp')}, Python {platform.python_version()}, "
        f"torch {version('torch')}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    )


def check_model(source: str, device: str, dtype: str) -> Iterator[Finding]:
    """Whether the model is here, and where, how and why there it would run."""
    try:
        folder = hub.resolve(source)
        card = read_card(folder, source)
    except (FileNotFoundError, ValueError) as error:
        yield Finding("model", "problem", str(error), f"fetch one with `{PULL}`, or ask for nano")
        return
    yield Finding("model", "ok", f"{card.title} ({source}) in {folder}")
    if card.digest and (found := hub.weights_digest(folder)) != card.digest:
        yield Finding(
            "weights", "problem", f"their digest is {found}, the card says {card.digest}", "install them anew"
        )
    yield from check_device(folder, device, dtype)


def check_device(folder: Path, device: str, dtype: str) -> Iterator[Finding]:
    """Where the checkpoint in `folder` would run, and whether it fits there."""
    from omnigen2.outlook import outlook

    try:
        seen = outlook(folder, device, dtype)
    except ValueError as error:
        yield Finding("device", "problem", str(error), "set the device to auto")
        return
    yield Finding("device", "ok", f"{seen.device} ({seen.device_name}) in {seen.dtype}: {seen.reason}")
    yield Finding(
        "memory",
        "ok" if seen.fits else "problem",
        f"needs about {decimal(seen.needed_bytes)}, {decimal(seen.free_bytes)} are free",
        "" if seen.fits else "free memory, choose another device, or use nano",
    )


def check_models() -> Iterator[Finding]:
    """Which other models are here."""
    names = [model.id for model in hub.local()]
    if any(name != hub.NANO for name in names):
        yield Finding("models", "ok", f"here: {', '.join(names)}")
    else:
        here = "only nano is here" if names else "none is here"
        yield Finding("models", "note", here, f"fetch the full model with `{PULL}`")


def check_store(folder: Path) -> Iterator[Finding]:
    """Whether the store can be written, and how much room it has."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        yield Finding(
            "store", "problem", f"{folder} cannot be written", "choose another folder with OMNIGEN2_STORE"
        )
        return
    free = shutil.disk_usage(existing).free
    state = "a new store" if existing != folder else f"holds {decimal(hub.folder_bytes(folder))}"
    little = free < LITTLE_SPACE
    yield Finding(
        "store",
        "note" if little else "ok",
        f"{folder}: {state}, {decimal(free)} free on its disk",
        "make room with `omnigen2-mcp store gc`" if little else "",
    )


def check_plugins(loaded: list[str], failed: Mapping[str, str]) -> Iterator[Finding]:
    """Which plugins there are, and which could not be loaded."""
    yield Finding("plugins", "ok", ", ".join(loaded) or "none")
    for name, reason in failed.items():
        yield Finding("plugin " + name, "problem", reason, f"update or uninstall {name}")
