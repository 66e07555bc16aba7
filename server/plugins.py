"""Which plugins there are, and what they bring.

The list is an argument, so that tests say what they load; without one it is the core and the entry points. A
plugin that fails, or registers something else than it should, is skipped, with a line in the log and for
`doctor`; two that claim one name are an error.
"""

import re
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from omnigen2.factory import BackendFactory
from server import hookspecs
from server.caller import Caller
from server.hookspecs import PROJECT, AnyTool, StoreOpener
from server.log import get_logger
from server.offers import Prompt, Resource
from storage.digest import SCHEME
from tools.base import Request as ToolRequest
from tools.base import Result, Tool

if TYPE_CHECKING:
    from cyclopts import App as Command
    from starlette.requests import Request
    from starlette.routing import Route

    from server.app import App

T = TypeVar("T")
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,127}")
"""What a tool may be called: MCP's rule, but for the first letter."""
CORE = ("tools.core", "server.core", "server.cli.commands")
Offer = tuple[str, str, Any]
"""A plugin, a name that it registers, and what it registers under that name."""
log = get_logger(__name__)


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
        offers = self._offers("register_tools", _named_tool)
        _unique("register_tools", _by_command(offers))
        return _unique("register_tools", offers)

    def backends(self) -> dict[str, BackendFactory]:
        """Every kind of models, by its name."""
        return _unique("register_backends", self._offers("register_backends", _named_factory))

    def stores(self) -> dict[str, StoreOpener]:
        """How to open a store, by the scheme of its URL."""
        return _unique("register_stores", self._offers("register_stores", _named_opener))

    def commands(self) -> dict[str, "Command"]:
        """Every command by its name, without those of the tools."""
        tools = _by_command(self._offers("register_tools", _named_tool))
        commands = self._offers("register_commands", _named_command)
        return _unique("register_commands", commands, tools)

    def prompts(self) -> dict[str, Prompt]:
        """Every prompt by its name."""
        return _unique("register_prompts", self._offers("register_prompts", _named_prompt))

    def resources(self) -> dict[str, Resource]:
        """Every resource by its URI or template of URIs."""
        return _unique("register_resources", self._offers("register_resources", _named_resource))

    def routes(
        self, app: "App", caller: Callable[["Request"], Caller], own: Sequence["Route"]
    ) -> list["Route"]:
        """The routes of plugins, none of which may have the path of one of our `own`."""
        offers = self._offers("register_routes", _named_route, app=app, caller=caller)
        ours = [("server.http", path, None) for path in {route.path for route in own}]
        return list(_unique("register_routes", offers, ours).values())

    def _load(self, entry: EntryPoint) -> None:
        try:
            plugin = entry.load()
            self._pluggy.register(plugin, entry.name)
            self._pluggy.check_pending()
        except Exception as error:  # a stranger's module may fail in any way
            self._skip(entry.name, error)

    def _offers(self, hook: str, named: Callable[..., tuple[str, Any]], **given: Any) -> list[Offer]:
        """What every plugin registers with `hook`. `named` makes name and value of it, or raises."""
        offers: list[Offer] = []
        for plugin in self.names():
            own: list[tuple[str, Any]] = []

            def register(*offered: Any, own: list[tuple[str, Any]] = own) -> None:
                own.append(named(*offered))

            try:
                self._only(hook, plugin)(register=register, **given)
            except Exception as error:  # a stranger's code may fail in any way; ours should not
                if plugin in CORE:
                    raise
                self._skip(plugin, error, f"{hook}: ")
                continue
            offers += [(plugin, name, value) for name, value in own]
        return offers

    def _only(self, hook: str, plugin_name: str) -> Callable[..., Any]:
        """The hook of one plugin."""
        others = [plugin for name, plugin in self._pluggy.list_name_plugin() if name != plugin_name]
        return self._pluggy.subset_hook_caller(hook, [other for other in others if other is not None])

    def _skip(self, name: str, error: Exception, where: str = "") -> None:
        self.failed[name] = f"{where}{type(error).__name__}: {error}"
        log.error("a plugin is left out", plugin=name, reason=self.failed[name])
        if (plugin := self._pluggy.get_plugin(name)) is not None:
            self._pluggy.unregister(plugin)


def _unique(hook: str, offers: Sequence[Offer], taken: Sequence[Offer] = ()) -> dict[str, Any]:
    """What is offered, by name.

    Raises:
        NameTaken: two plugins offer the same name, or one that is `taken`.
    """
    owners: dict[str, str] = {}
    for plugin, name, _ in (*taken, *offers):
        if name in owners:
            raise NameTaken(
                f"{hook}: plugins {owners[name]!r} and {plugin!r} both register {name!r}; "
                "uninstall one of them"
            )
        owners[name] = plugin
    return {name: value for _, name, value in offers}


def _by_command(tools: Sequence[Offer]) -> list[Offer]:
    return [(plugin, tool.command, tool) for plugin, _, tool in tools]


def _named_factory(name: str, factory: BackendFactory) -> tuple[str, BackendFactory]:
    for method in ("models", "card", "identify", "load"):
        if not callable(getattr(factory, method, None)):
            raise TypeError(f"{factory!r:.100} is no BackendFactory: it has no method {method}")
    return _checked(str, name), factory


def _named_opener(scheme: str, opener: StoreOpener) -> tuple[str, StoreOpener]:
    if not callable(opener):
        raise TypeError(f"a function that opens a store is expected, not {opener!r:.100}")
    return _checked(str, scheme), opener


def _named_tool(tool: AnyTool) -> tuple[str, AnyTool]:
    for name in (_checked(Tool, tool).name, tool.command):
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a name: letters, digits, dots, hyphens and underscores can")
    if not (issubclass(tool.request, ToolRequest) and issubclass(tool.result, Result)):
        raise TypeError(f"{tool.name}: its request must be a Request, and its result a Result")
    return tool.name, tool


def _named_command(command: "Command") -> tuple[str, "Command"]:
    from cyclopts import App as Command

    return _checked(Command, command).name[0], command


def _named_prompt(prompt: Prompt) -> tuple[str, Prompt]:
    return _checked(Prompt, prompt).name, prompt


def _named_resource(resource: Resource) -> tuple[str, Resource]:
    from mcp.shared.uri_template import UriTemplate

    if _checked(Resource, resource).uri.startswith(SCHEME):
        raise ValueError(f"{resource.uri}: {SCHEME} is for the images of the store")
    return str(UriTemplate.parse(resource.uri)), resource


def _named_route(route: "Route") -> tuple[str, "Route"]:
    from starlette.routing import Route

    return _checked(Route, route).path, route


def _checked(kind: type[T], value: T) -> T:
    """`value`, which a plugin registered as one of this kind. Raises TypeError if it is not."""
    if not isinstance(value, kind):
        raise TypeError(f"a {kind.__name__} is expected, not {value!r:.100}")
    return value
