"""The core as a plugin: where images may be kept, and the commands that are no tools."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from server.hookspecs import StoreOpener, hookimpl
from storage import ImageStore

if TYPE_CHECKING:
    from cyclopts import App

COMMANDS = ("models", "bench")


@hookimpl
def register_stores(register: Callable[[str, StoreOpener], None]) -> None:
    register("file", ImageStore)


@hookimpl
def register_commands(register: Callable[["App"], None]) -> None:
    for name in COMMANDS:
        register(import_module(f"server.commands.{name}").app)
