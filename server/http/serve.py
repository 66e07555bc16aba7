"""The HTTP server as a process: its address, its signals, its end."""

import socket
from types import FrameType

import structlog
import uvicorn
from starlette.types import ASGIApp

from server.app import App
from server.ending import leave_soon
from server.http.app import http_app
from server.http.auth import Tokens, is_loopback
from server.http.connections import Connection

log = structlog.get_logger()

BACKLOG = 128
"""Listen backlog: connections that wait in the kernel until they are accepted."""
SHUTDOWN_S = 2
"""Seconds for answers to be read once all jobs have ended; a request that is not done by then is refused."""


async def serve_http(app: App) -> None:
    """Serve until the process is asked to stop.

    Raises:
        ValueError: anybody could connect, or the token file is not as it should.
        OSError: the address cannot be had.
    """
    settings = app.settings
    tokens = Tokens.read(settings.token_file) if settings.token_file else None
    loopback = is_loopback(settings.host)
    if tokens is None and settings.oauth_issuer is None and not loopback:
        raise ValueError(f"{settings.host} is open to others; give a token file, or listen on 127.0.0.1")
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG) as listener:
        name = f"[{settings.host}]" if ":" in settings.host else settings.host
        log.info("listening", url=f"http://{name}:{listener.getsockname()[1]}")
        await Server(uvicorn_config(http_app(app, tokens, loopback=loopback)), app).serve([listener])


class Server(uvicorn.Server):
    """A uvicorn server that answers every waiting caller before it shuts down."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._app = app

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop soon; at once when asked again."""
        leave_soon(128 + sig)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End jobs and calls, so that what waits for them is answered; only then close the connections.

        Until then the server listens, says at /readyz that it stops, and refuses new jobs.
        """
        await self._app.stop()
        await super().shutdown(sockets)


def uvicorn_config(asgi: ASGIApp) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        asgi,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_S,
        backlog=BACKLOG,
    )
