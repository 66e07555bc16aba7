"""What a plugin can add, by hooks. The core adds what it has through the same ones.

A plugin is a module or object with functions of these names, marked with `hookimpl`. It is found by the entry
point group `omnigen2_mcp`. A name that two plugins register is an error that names both.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pluggy

from omnigen2.factory import BackendFactory
from server.caller import Caller
from server.offers import Prompt, Resource
from storage import ImageStore
from tools.base import Tool

if TYPE_CHECKING:
    from cyclopts import App as Command
    from starlette.requests import Request
    from starlette.routing import Route

    from server.app import App

PROJECT = "omnigen2_mcp"
"""Name of the pluggy project and of the entry point group."""

hookimpl = pluggy.HookimplMarker(PROJECT)
_hookspec = pluggy.HookspecMarker(PROJECT)

AnyTool = Tool[Any, Any]
StoreOpener = Callable[[str, int | None], ImageStore]
"""Opens the store that a URL means, with a quota in bytes."""


@_hookspec
def register_tools(register: Callable[[AnyTool], None]) -> None:
    """Offer tools: each appears on every surface."""


@_hookspec
def register_backends(register: Callable[[str, BackendFactory], None]) -> None:
    """Offer kinds of models, by a name of the kind: which there are, their cards, how they are loaded.

    A model that two kinds offer is the one of the kind that registered first; the core's checkpoints do.
    """


@_hookspec
def register_stores(register: Callable[[str, StoreOpener], None]) -> None:
    """Offer places for images: a URL scheme, and how a store there is opened."""


@_hookspec
def register_commands(register: Callable[["Command"], None]) -> None:
    """Offer commands: each is called as `omnigen2-mcp NAME`."""


@_hookspec
def register_prompts(register: Callable[[Prompt], None]) -> None:
    """Offer prompts: an MCP client lists them and fills them in."""


@_hookspec
def register_resources(register: Callable[[Resource], None]) -> None:
    """Offer resources: an MCP client lists and reads them beside the images."""


@_hookspec
def register_routes(
    register: Callable[["Route"], None], app: "App", caller: Callable[["Request"], Caller]
) -> None:
    """Offer HTTP routes of Starlette. An implementation takes those arguments that it needs.

    Each request passes the same checks as every other; `caller` says on whose behalf it is made, for calls of
    tools by `app.call`. What a route raises is answered as everywhere: `ToolError` with its words.
    """
