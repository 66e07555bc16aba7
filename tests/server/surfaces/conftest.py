"""The surfaces over real apps: the fixtures of the core, and a client in process."""

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client

from server.app import App
from server.caller import Caller
from server.mcp import Studio
from tests.server.core.conftest import SMALL, anyio_backend, app, engine, make_app, omnigen, replicas

__all__ = [
    "SMALL", "anyio_backend", "app", "connect", "engine", "make_app", "omnigen", "replicas", "succeeded",
]  # fmt: skip

Connect = Callable[..., AbstractAsyncContextManager[Client]]


@pytest.fixture
def connect(tmp_path: Path) -> Connect:
    """Enter an app and connect a client to it in process."""

    @asynccontextmanager
    async def connected(app: App, mode: str = "auto", **more: Any) -> AsyncGenerator[Client]:
        server = Studio(app, lambda _: Caller("ann", "test", (tmp_path,))).server()
        with anyio.fail_after(120):
            async with app, Client(server, mode=mode, **more) as client:  # type: ignore[arg-type]
                yield client

    return connected


async def succeeded(client: Client, tool: str, **arguments: Any) -> dict[str, Any]:
    """The structured content of a call that must not fail. The client holds it to the output schema."""
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content
    return result.structured_content
