"""Plugins: what they bring appears, what is wrong with them is said, and the server lives on."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cyclopts import App as Command
from starlette.responses import Response
from starlette.routing import Route

from omnigen2.factory import Checkpoints
from server import plugins as module
from server.app import build_app
from server.caller import Caller
from server.hookspecs import AnyTool, hookimpl
from server.offers import Prompt, Resource
from server.plugins import NameTaken, Plugins, core_plugins
from server.prompts import PROMPTS
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


def greet_prompt(name: str) -> Prompt:
    return Prompt(name, "Greet", "How to greet.", (), "Say hello.")


async def no_content(values: Mapping[str, str]) -> str:
    return ""


def greeting(uri: str) -> Resource:
    return Resource(uri, "greeting", "Greeting", "A greeting.", "text/plain", no_content)


def greet_route(path: str) -> Route:
    return Route(path, lambda request: Response())


def command(name: str) -> Command:
    return Command(name=name)


def plugin(name: str, hook: str, *offered: Any) -> ModuleType:
    """A plugin that registers one thing with one hook."""
    made = ModuleType(name)
    vars(made)[hook] = hookimpl(lambda register: register(*offered))
    return made


def ask(plugins: Plugins, hook: str) -> Any:
    """What the plugins register with a hook."""
    if hook == "register_routes":
        return plugins.routes(None, None, [greet_route("/healthz")])  # type: ignore[arg-type]
    return getattr(plugins, hook.removeprefix("register_"))()


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
    with pytest.raises(NameTaken, match=r"'one' and 'two' both register '/?greet'"):
        Plugins([Greeter("one"), Greeter("two")]).tools()


def test_a_plugin_cannot_replace_a_tool_of_the_core() -> None:
    with pytest.raises(NameTaken, match=r"'tools\.core' and 'sly' both register 'generate_image'"):
        Plugins([*core_plugins(), Greeter("sly", "generate_image")]).tools()


@pytest.mark.parametrize(
    ("hook", "offered"),
    [
        ("register_tools", (tool("greet"),)),
        ("register_backends", ("greet", Checkpoints())),
        ("register_stores", ("greet", print)),
        ("register_commands", (command("greet"),)),
        ("register_prompts", (greet_prompt("greet"),)),
        ("register_resources", (greeting("greet"),)),
        ("register_routes", (greet_route("/greet"),)),
    ],
)
def test_no_two_plugins_register_the_same_name_with_any_hook(hook: str, offered: tuple[Any, ...]) -> None:
    once = Plugins([plugin("one", hook, *offered)])
    assert len(ask(once, hook)) == 1 and once.failed == {}
    with pytest.raises(NameTaken, match=f"{hook}: plugins 'one' and 'two' both register '/?greet'"):
        ask(Plugins([plugin("one", hook, *offered), plugin("two", hook, *offered)]), hook)


@pytest.mark.parametrize(
    ("hook", "offered", "owner", "name"),
    [
        ("register_prompts", greet_prompt("storyboard"), r"server\.core", "storyboard"),
        ("register_routes", greet_route("/healthz"), r"server\.http", "/healthz"),
        ("register_commands", command("doctor"), r"server\.cli\.commands", "doctor"),
        ("register_commands", command("generate"), r"tools\.core", "generate"),
        ("register_tools", replace(tool("draw"), command="generate"), r"tools\.core", "generate"),
    ],
)
def test_a_plugin_cannot_take_a_name_of_the_core(hook: str, offered: Any, owner: str, name: str) -> None:
    with pytest.raises(NameTaken, match=f"'{owner}' and 'sly' both register '{name}'"):
        ask(Plugins([*core_plugins(), plugin("sly", hook, offered)]), hook)


@pytest.mark.parametrize(
    ("hook", "offered", "reason"),
    [
        ("register_tools", ("greet",), "TypeError: a Tool is expected, not 'greet'"),
        ("register_tools", (replace(tool("greet"), request=dict),), "TypeError: greet: its request must be"),
        ("register_tools", (tool("greet"), tool("greet")), "TypeError: .* positional argument"),
        (
            "register_backends",
            ("greet", greet),
            "TypeError: .* is no BackendFactory: it has no method models",
        ),
        ("register_tools", (tool("a/b"),), "ValueError: 'a/b' cannot be a name"),
        (
            "register_resources",
            (greeting("image://sha256/{digest}"),),
            "ValueError: image://sha256/.* images",
        ),
        ("register_backends", (1, Checkpoints()), "TypeError: a str is expected, not 1"),
        ("register_stores", ("greet", "s3"), "TypeError: a function that opens a store is expected"),
        ("register_commands", (tool("greet"),), "TypeError: a App is expected"),
        ("register_prompts", (PROMPTS,), "TypeError: a Prompt is expected"),
        ("register_resources", (greet_prompt("greet"),), "TypeError: a Resource is expected"),
        ("register_resources", (greeting("greet://{a}{b}"),), "InvalidUriTemplate: "),
        ("register_routes", ("/greet",), "TypeError: a Route is expected"),
    ],
)
def test_what_is_of_the_wrong_kind_is_left_out_and_reported(
    hook: str, offered: tuple[Any, ...], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    plugins = Plugins([plugin("wrong", hook, *offered), Greeter("friendly")])
    found = ask(plugins, hook)
    assert list(found) == (["greet"] if hook == "register_tools" else [])
    assert re.match(f"{hook}: {reason}", plugins.failed["wrong"])
    assert plugins.names() == ["friendly"]
    (line,) = caplog.records
    assert line.levelname == "ERROR" and "'plugin': 'wrong'" in str(line.msg)


def test_a_plugin_whose_hook_fails_is_skipped_whole_and_reported() -> None:
    plugins = Plugins([Broken("broken"), Greeter("friendly")])
    assert list(plugins.tools()) == ["greet"]
    assert plugins.failed == {"broken": "register_tools: RuntimeError: no such device"}
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
