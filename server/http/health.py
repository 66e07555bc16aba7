"""/healthz: whether the server lives, and whether its models make progress."""

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.app import App
from server.http.openapi import JSON, Paths, answer, operation

log = structlog.get_logger()

HEALTH = "/healthz"
STALLED_S = 3600.0
"""Seconds without progress after which a model counts as hanging; a step of a large one may take minutes."""


def routes(app: App) -> list[Route]:
    """The route of the server's health."""

    async def health(_: Request) -> Response:
        """The health of the server, and the seconds since the last progress of its models."""
        try:
            seconds = app.manager.stalled_s()
        except Exception as error:  # a plugin's backend may fail in any way
            log.warning("the state of a model is unknown", reason=repr(error)[:200])
            seconds = 0.0
        stalled = seconds > STALLED_S
        body = {"status": "stalled" if stalled else "ok", "stalled_s": round(seconds, 1)}
        return JSONResponse(body, 503 if stalled else 200)

    return [Route(HEALTH, health)]


def described(_: App) -> Paths:
    """The path of the server's health."""
    state = {
        "type": "object",
        "properties": {"status": {"enum": ["ok", "stalled"]}, "stalled_s": {"type": "number"}},
        "required": ["status", "stalled_s"],
    }
    answers = {
        200: answer("It lives.", {JSON: state}),
        503: answer(
            f"A model has made no progress for {STALLED_S:.0f} seconds, or the server stops.", {JSON: {}}
        ),
    }
    return {HEALTH: {"get": operation("health", "Whether the server lives", answers, is_open=True)}}
