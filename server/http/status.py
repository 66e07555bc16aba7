"""/status: which models are loaded, and each of their replicas, for an operator."""

from dataclasses import asdict
from typing import Any

from anyio import to_thread
from pydantic import TypeAdapter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from omnigen2.memory.choice import MemoryChoice
from omnigen2.task import Accounting, Placed, Replicated
from server import schema
from server.app import App
from server.errors import without_folders
from server.http.openapi import JSON, Paths, answer, operation

STATUS = "/status"


def status(app: App) -> dict[str, Any]:
    """The models that load, and the loaded ones: memory, precision, whether they work, their replicas if any.

    `memory` is a `MemoryChoice`; None of a backend that makes none. A model with replicas has one in each.
    """
    return {
        "loading": [without_folders(name) for name in app.manager.loading()],
        "models": [
            {
                "model": without_folders(name),
                "busy": backend.busy(),
                "memory_bytes": backend.memory_bytes(),
                "quantize": backend.card.quantize,
                "memory": asdict(backend.memory_choice()) if isinstance(backend, Placed) else None,
                "device_seconds": backend.device_seconds() if isinstance(backend, Accounting) else {},
                "replicas": backend.replicas() if isinstance(backend, Replicated) else [],
            }
            for name, backend in app.manager.loaded().items()
        ],
    }


def routes(app: App, _: object) -> list[Route]:
    """The route of the state of the models."""

    async def answered(_: Request) -> Response:
        """The state of the models."""
        return JSONResponse(await to_thread.run_sync(status, app))

    return [Route(STATUS, answered)]


def described(_: App) -> Paths:
    """The path of the state of the models."""
    replica = _object(
        replica="string", state="string", reason="string", node="string", pid=["integer", "null"],
        device="string", memory_bytes="integer", tasks="integer", tokens_outstanding="integer",
    )  # fmt: skip
    memory = schema.plain(TypeAdapter(MemoryChoice | None).json_schema(mode="serialization"))
    memory["type"] = ["object", "null"]
    replica["properties"]["memory"] = memory
    model = _object(model="string", busy="boolean", memory_bytes="integer", quantize="string")
    used = _object(pictures="number", texts="number")
    model["properties"] |= {
        "memory": memory,
        "device_seconds": used,
        "replicas": {"type": "array", "items": replica},
    }
    models = _object()
    models["properties"] |= {
        "loading": {"type": "array", "items": {"type": "string"}},
        "models": {"type": "array", "items": model},
    }
    words = "Which models are loading, and each loaded one, with its replicas if it has some."
    said = answer(words, {JSON: models})
    about = "Where tokens are needed, it needs one that may read."
    return {STATUS: {"get": operation("status", "Loaded models and replicas", {200: said}, about=about)}}


def _object(**kinds: str | list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": {name: {"type": kind} for name, kind in kinds.items()}}
