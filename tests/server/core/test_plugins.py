"""Plugins: what they bring appears, what is wrong with them is said, and the server lives on."""

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from server import plugins as module
from server.app import build_app
from server.caller import Caller
from server.hookspecs import AnyTool, hookimpl
from server.plugins import NameTaken, Plugins, core_plugins
from server.settings import Settings
from storage import ImageStore
from tools.base import Context, Request, Result, Tool


class Greeting(Request):
    """Whom to greet."""

    name: str


class Greeted(Result):
    """A greeting."""

    words: str

    def line(self) -> str:
        return self.words


async def greet(request: Greeting, context: Context) -> Greeted:
    return Greeted(words=f"Hello {request.name}, from {context.principal}")


def tool(name: str) -> AnyTool:
    return Tool(name, name, "Greet", "Says hello.", Greeting, Greeted, greet, read_only=True)


class Greeter:
    """A plugin with one tool."""

    def __init__(self, name: str, tool_name: str = "greet") -> None:
        self.__name__, self.tool_name = name, tool_name

    @hookimpl
    def register_tools(self, register: Callable[[AnyTool], None]) -> None:
        register(tool(self.tool_name))


class Broken(Greeter):
    """A plugin that registers one tool and then fails."""

    @hookimpl
    def register_tools(self, register: Callable[[AnyTool], None]) -> None:
        register(tool("half"))
        raise RuntimeError("no such device")


@pytest.mark.anyio
async def test_a_tool_of_a_plugin_can_be_called(tmp_path: Path) -> None:
    app = build_app(Settings(store=str(tmp_path)), [*core_plugins(), Greeter("friendly")])
    async with app:
        result = await app.call(app.tools["greet"], {"name": "Eve"}, Caller("ann", "x"))
    assert result == Greeted(words="Hello Eve, from ann")
    assert "generate_image" in app.tools


def test_a_name_taken_twice_is_an_error_that_names_both_plugins() -> None:
    with pytest.raises(NameTaken, match=r"'one' and 'two' both register 'greet'"):
        Plugins([Greeter("one"), Greeter("two")]).tools()


def test_a_plugin_cannot_replace_a_tool_of_the_core() -> None:
    with pytest.raises(NameTaken, match=r"'tools\.core' and 'sly' both register 'generate_image'"):
        Plugins([*core_plugins(), Greeter("sly", "generate_image")]).tools()


def test_a_plugin_whose_hook_fails_is_skipped_whole_and_reported() -> None:
    plugins = Plugins([Broken("broken"), Greeter("friendly")])
    assert list(plugins.tools()) == ["greet"]
    assert plugins.failed == {"broken": "RuntimeError: no such device"}
    assert plugins.names() == ["friendly"]


def test_entry_points_are_found_and_one_that_cannot_be_imported_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entries = [
        EntryPoint("good", "tests.server.core.test_plugins:FRIENDLY", module.PROJECT),
        EntryPoint("bad", "no_such_module", module.PROJECT),
    ]
    monkeypatch.setattr(module, "entry_points", lambda group: entries)
    plugins = Plugins()
    assert "greet" in plugins.tools() and "generate_image" in plugins.tools()
    assert plugins.names() == [*module.CORE, "good"]
    assert "no_such_module" in plugins.failed["bad"]


def test_a_store_of_a_plugin_is_opened_by_its_scheme(tmp_path: Path) -> None:
    opened: list[Any] = []

    def opener(url: str, quota: int | None) -> ImageStore:
        opened.append((url, quota))
        return ImageStore(tmp_path)

    plugin = ModuleType("vault")
    vars(plugin)["register_stores"] = hookimpl(lambda register: register("vault", opener))
    app = build_app(Settings(store="vault://here", quota="1GB"), [*core_plugins(), plugin])
    assert opened == [("vault://here", 10**9)]
    app.store.close()


def test_a_scheme_that_nobody_opens_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"tape://x is not a folder.*file://, memory://"):
        build_app(Settings(store="tape://x"))


def test_commands_of_the_core_come_through_the_hook() -> None:
    assert {"models", "bench"} <= Plugins().commands().keys()


FRIENDLY = Greeter("friendly")
