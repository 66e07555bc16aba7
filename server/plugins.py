"""Which plugins there are, and what they bring.

The list is an argument, so that tests say what they load; without one it is the core and the entry points. A
plugin that cannot be loaded is skipped and written down for `doctor`; two that claim one name are an error.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from omnigen2.factory import BackendFactory
from server import hookspecs
from server.hookspecs import PROJECT, AnyTool, StoreOpener

if TYPE_CHECKING:
    from cyclopts import App

CORE = ("tools.core", "server.core", "server.cli.commands")


class NameTaken(ValueError):
    """Two plugins register the same name."""


def core_plugins() -> list[object]:
    """The plugins that make up the core."""
    return [import_module(name) for name in CORE]


class Plugins:
    """The plugins of a process, and what each kind of hook gives."""

    def __init__(self, plugins: Sequence[object] | None = None) -> None:
        """Use `plugins`, modules or objects; None means the core and every installed entry point."""
        self.failed: dict[str, str] = {}
        """Why a plugin was skipped, by its name."""
        self._pluggy = pluggy.PluginManager(PROJECT)
        self._pluggy.add_hookspecs(hookspecs)
        for plugin in core_plugins() if plugins is None else plugins:
            self._pluggy.register(plugin)
        for entry in entry_points(group=PROJECT) if plugins is None else ():
            self._load(entry)

    def names(self) -> list[str]:
        """The plugins in use, in the order in which they are asked."""
        return [name for name, plugin in self._pluggy.list_name_plugin() if plugin is not None]

    def tools(self) -> dict[str, AnyTool]:
        """Every tool by its name."""
        return self._ask("register_tools", _named_tool)

    def backends(self) -> dict[str, BackendFactory]:
        """Every kind of models, by its name."""
        return self._ask("register_backends", _pair)

    def stores(self) -> dict[str, StoreOpener]:
        """How to open a store, by the scheme of its URL."""
        return self._ask("register_stores", _pair)

    def commands(self) -> dict[str, "App"]:
        """Every command by its name."""
        return self._ask("register_commands", _named_command)

    def _load(self, entry: EntryPoint) -> None:
        try:
            plugin = entry.load()
            self._pluggy.register(plugin, entry.name)
            self._pluggy.check_pending()
        except Exception as error:  # a stranger's module may fail in any way
            self._skip(entry.name, error)

    def _ask(self, hook: str, named: Callable[..., tuple[str, Any]]) -> dict[str, Any]:
        """What every plugin registers with `hook`; `named` makes name and value of it."""
        found: dict[str, tuple[str, Any]] = {}
        for plugin in self.names():
            try:
                offered = self._offered(hook, plugin, named)
            except Exception as error:  # a stranger's code may fail in any way; ours should not
                if plugin in CORE:
                    raise
                self._skip(plugin, error)
                continue
            for name, value in offered:
                if name in found:
                    raise NameTaken(
                        f"{hook}: plugins {found[name][0]!r} and {plugin!r} both register {name!r}; "
                        "uninstall one of them"
                    )
                found[name] = (plugin, value)
        return {name: value for name, (_, value) in found.items()}

    def _offered(
        self, hook: str, plugin: str, named: Callable[..., tuple[str, Any]]
    ) -> list[tuple[str, Any]]:
        """Names and values that one plugin registers."""
        offered: list[tuple[str, Any]] = []

        def register(*given: Any) -> None:
            offered.append(named(*given))

        self._only(hook, plugin)(register=register)
        return offered

    def _only(self, hook: str, plugin_name: str) -> Callable[..., Any]:
        """The hook of one plugin."""
        others = [plugin for name, plugin in self._pluggy.list_name_plugin() if name != plugin_name]
        return self._pluggy.subset_hook_caller(hook, [other for other in others if other is not None])

    def _skip(self, name: str, error: Exception) -> None:
        self.failed[name] = f"{type(error).__name__}: {error}"
        if (plugin := self._pluggy.get_plugin(name)) is not None:
            self._pluggy.unregister(plugin)


def _pair(name: str, value: Any) -> tuple[str, Any]:
    return name, value


def _named_tool(tool: AnyTool) -> tuple[str, AnyTool]:
    return tool.name, tool


def _named_command(command: "App") -> tuple[str, "App"]:
    return command.name[0], command
