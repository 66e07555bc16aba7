"""/healthz: whether the server lives; /readyz: whether it can do work now. Neither needs a token."""

import tempfile
import time
from typing import Literal

import structlog
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from server.app import App
from server.http.openapi import JSON, Paths, answer, operation
from storage import ImageStore
from storage.errors import StoreBusy

log = structlog.get_logger()

HEALTH = "/healthz"
READY = "/readyz"
STALLED_S = 3600.0
"""Seconds without progress after which a model counts as hanging; a step of a large one may take minutes."""
PROBE_S = 1.0
"""Seconds for which it is remembered whether the store can be written to: anybody may ask."""
PROBE_BYTES = 65_536


def routes(app: App, _: object) -> list[Route]:
    """The routes of the server's health."""
    store = _Probe(app.store)

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

    async def ready(_: Request) -> Response:
        """Whether the server can do work now, and what it lacks for that."""
        states = {
            "server": "stopping" if app.dispatcher.closing else "ok",
            "model": "ok" if app.manager.has_loaded() else "not loaded",
            "store": await store.state(),
            "queue": "full" if app.dispatcher.full else "ok",
        }
        is_ready = set(states.values()) == {"ok"}
        return JSONResponse({"ready": is_ready} | states, 200 if is_ready else 503)

    return [Route(HEALTH, health), Route(READY, ready)]


def described(_: App) -> Paths:
    """The paths of the server's health."""
    health = _state(status=["ok", "stalled"], stalled_s="number")
    ready = _state(
        ready="boolean",
        server=["ok", "stopping"],
        model=["ok", "not loaded"],
        store=["ok", "read-only", "standing by", "full", "not writable"],
        queue=["ok", "full"],
    )
    stalled = f"A model has made no progress for {STALLED_S:.0f} seconds."
    return {
        HEALTH: {"get": _described("health", "Whether the server lives", "It lives.", stalled, health)},
        READY: {"get": _described("ready", "Whether it can do work", "It can.", "What it lacks.", ready)},
    }


def _described(name: str, summary: str, well: str, ill: str, state: dict[str, object]) -> dict[str, object]:
    answers = {200: answer(well, {JSON: state}), 503: answer(ill, {JSON: state})}
    return operation(name, summary, answers, is_open=True)


def _state(**fields: str | list[str]) -> dict[str, object]:
    """The schema of an object with these fields, each a type or the texts that it may be."""
    kinds = {
        name: {"type": kind} if isinstance(kind, str) else {"enum": kind} for name, kind in fields.items()
    }
    return {"type": "object", "properties": kinds, "required": list(kinds)}


class _Probe:
    """Whether a store can be written to."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._until = 0.0
        self._state = "ok"

    async def state(self) -> str:
        """`ok`, or why not."""
        if time.monotonic() > self._until:
            self._until = time.monotonic() + PROBE_S
            self._state = await to_thread.run_sync(self._try)
        return self._state

    def _try(self) -> Literal["ok", "read-only", "standing by", "full", "not writable"]:
        if self._store.read_only:
            return "read-only"
        try:
            self._store.refuse_if_read_only()
            usage = self._store.usage()
            if usage.quota_bytes is not None and usage.bytes >= usage.quota_bytes:
                return "full"
            if self._store.path is not None:
                with tempfile.TemporaryFile(dir=self._store.path) as file:
                    file.write(bytes(PROBE_BYTES))
        except StoreBusy:  # of a bucket: another machine writes to it
            return "standing by"
        except Exception as error:  # a plugin's store may fail in any way
            log.warning("the store cannot be written to", reason=repr(error)[:200])
            return "not writable"
        return "ok"
