"""The core as a plugin: the commands that are not tools."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from server.hookspecs import hookimpl

if TYPE_CHECKING:
    from cyclopts import App

COMMANDS = ("install", "models", "bench", "store", "doctor", "train", "eval")
"""Modules of this folder, each with its `app`."""


@hookimpl
def register_commands(register: Callable[["App"], None]) -> None:
    """Offer the commands; each is imported only here, when a command line is to be read."""
    for name in COMMANDS:
        register(import_module(f"server.cli.{name}").app)
