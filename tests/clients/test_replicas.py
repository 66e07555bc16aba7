"""The main job over HTTP from a server with nano in two replicas gives the results of the local engine."""

from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client

from server.app import build_app
from server.caller import LOCAL, Caller
from server.mcp import Studio
from server.settings import Settings
from tests.clients.conftest import listening, settings
from tests.clients.conversation import check, talk

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_two_replicas_give_the_results_of_the_local_engine(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install 'omnigen2-mcp[ray]'")
    environment = settings(tmp_path) | {"OMNIGEN2_MODEL": "nano"}
    with listening(environment, "--replicas", "2") as url:
        async with Client(f"{url}/mcp") as client:
            there = await talk(client)
        async with httpx.AsyncClient(base_url=url) as operator:
            told = (await operator.get("/status")).json()
    check(there)
    [model] = told["models"]
    ready = [own for own in model["replicas"] if own["state"] == "ready"]
    assert told["loading"] == [] and model["model"] == "nano" and ready
    assert all(own["node"] and own["device"] == "cpu" and own["memory_bytes"] for own in ready)
    assert all(own["tasks"] == own["tokens_outstanding"] == 0 for own in ready)
    app = build_app(Settings(store=str(tmp_path / "local"), model="nano"))
    async with app, Client(Studio(app, lambda _: Caller(LOCAL, "test")).server()) as client:
        here = await talk(client)
    assert facts(there) == facts(here)


def facts(answers: dict[str, Any]) -> dict[str, Any]:
    """What was made: the ids, which are digests of the pixels, and the texts."""
    images = {
        name: [own["id"] for own in said["images"]] for name, said in answers.items() if "images" in said
    }
    steps = [(step["image"]["id"], step["inputs"]) for step in answers["history"]["steps"]]
    return {"images": images, "text": answers["described"]["text"], "steps": steps}
