"""A store that fails: every surface answers with a documented error, never with a path of this machine."""

import base64
import io
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import mcp_types as types
import pytest
from mcp import Client
from mcp.shared.exceptions import MCPError
from PIL import Image

from server.app import App
from server.http.refusals import STATUS
from storage import Digest
from tests.server.core.conftest import HeldEngine
from tests.server.surfaces.conftest import SMALL, Connect, succeeded
from tests.server.surfaces.test_http import rest

pytestmark = pytest.mark.anyio
ASKED = {"prompt": "a red circle", "seed": 7, **SMALL}


def blob(app: App, image: str) -> Path:
    digest = Digest.parse(image)
    return app.store.path / "blobs" / "sha256" / digest.hex[:2] / digest.hex[2:]


def damage(path: Path) -> None:
    size = path.stat().st_size
    path.unlink()
    path.write_bytes(b"x" * size)


def remove(path: Path) -> None:
    path.unlink()


def bar(path: Path) -> None:
    """As unreadable for root as for everybody."""
    path.unlink()
    path.symlink_to(path)


BLOB_FAILURES = [(damage, "internal"), (remove, "image_not_found"), (bar, "internal")]


def data_uri(colour: str = "red") -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


async def codes(client: Client, app: App, calls: list[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """The error code of each tool call, none of which tells where the store is."""
    found: dict[str, str] = {}
    for tool, arguments in calls:
        result = await client.call_tool(tool, arguments)
        assert result.is_error, tool
        said = result.model_dump_json()
        assert str(app.store.path.parent) not in said and "Traceback" not in said, said
        found[tool] = result.structured_content["error"]["code"]
    return found


async def protocol_codes(app: App, *asked: Callable[[], Awaitable[Any]]) -> set[tuple[int, str]]:
    """Number and code of each protocol error, none of which tells where the store is."""
    found: set[tuple[int, str]] = set()
    for ask in asked:
        with pytest.raises(MCPError) as failed:
            await ask()
        error = failed.value.error
        assert str(app.store.path.parent) not in error.model_dump_json(), error
        found.add((error.code, error.data["code"]))
    return found


@pytest.mark.parametrize(("spoil", "code"), BLOB_FAILURES)
async def test_a_blob_that_cannot_be_read_is_a_documented_error_over_mcp_and_a_repeat_restores_it(
    app: App, connect: Connect, spoil: Callable[[Path], None], code: str
) -> None:
    async with connect(app) as client:
        job = (await succeeded(client, "generate_image", **ASKED, background=True))["job_id"]
        done = await succeeded(client, "get_job", job_id=job, wait_seconds=50)
        image = done["result"]["images"][0]
        path, name = blob(app, image["id"]), image["id"]
        uri = Digest.parse(name).uri
        spoil(path)
        calls = [
            ("view_image", {"image": name}),
            ("import_image", {"image": name}),
            ("edit_image", {"image": name, "instruction": "blue", **SMALL}),
            ("describe_image", {"images": [name], "question": "What?"}),
            ("get_job", {"job_id": job}),
            ("cancel_job", {"job_id": job}),
        ]
        assert set((await codes(client, app, calls)).values()) == {code}
        number = types.INTERNAL_ERROR if code == "internal" else types.INVALID_PARAMS
        read = [lambda: client.read_resource(uri), lambda: client.read_resource(uri + "/preview")]
        assert await protocol_codes(app, *read) == {(number, code)}
        again = await succeeded(client, "generate_image", **ASKED)
        assert not again["cached"] and again["images"][0]["id"] == name
        assert Digest.of(path.read_bytes()) == Digest.parse(name)
        assert (await succeeded(client, "generate_image", **ASKED))["cached"]
        await succeeded(client, "get_job", job_id=job)


@pytest.mark.parametrize(("spoil", "code"), BLOB_FAILURES)
async def test_a_blob_that_cannot_be_read_is_a_documented_error_over_rest_and_a_repeat_restores_it(
    app: App, spoil: Callable[[Path], None], code: str
) -> None:
    async with rest(app) as client:
        made = (await client.post("/v1/tools/generate_image", json=ASKED)).json()
        name = made["images"][0]["id"]
        spoil(blob(app, name))
        tools = {"view_image": {"image": name}, "import_image": {"image": name}}
        answers = [await client.post(f"/v1/tools/{tool}", json=given) for tool, given in tools.items()]
        answers += [await client.get(f"/images/{name[7:]}{end}") for end in ("", "/preview")]
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (STATUS[code], code)  # type: ignore[index]
            assert str(app.store.path.parent) not in answer.text
        again = (await client.post("/v1/tools/generate_image", json=ASKED)).json()
        assert not again["cached"] and again["images"][0]["id"] == name
        assert (await client.get(f"/images/{name[7:]}")).status_code == 200


async def test_a_record_that_is_damaged_is_not_given_out_again(app: App, connect: Connect) -> None:
    async with connect(app) as client:
        made = (await succeeded(client, "generate_image", **ASKED))["images"][0]["id"]
        record = app.store.origin(Digest.parse(made)).record_id
        assert record is not None
        damage(app.store.path / "records" / "sha256" / record.hex[:2] / record.hex[2:])
        again = await succeeded(client, "generate_image", **ASKED)
        restored = app.store.origin(Digest.parse(again["images"][0]["id"])).record
        assert not again["cached"] and restored is not None and restored.seed == 7


async def test_a_full_store_says_so_on_every_surface_that_writes(
    make_app: Callable[..., App], engine: HeldEngine, connect: Connect
) -> None:
    app = make_app(lambda: engine, quota=100)
    async with connect(app) as client:
        calls = [("import_image", {"image": data_uri()}), ("view_image", {"image": data_uri()})]
        calls += [("generate_image", ASKED)]
        assert set((await codes(client, app, calls)).values()) == {"busy"}
    async with rest(make_app(lambda: engine, quota=100)) as client:
        answer = await client.post("/v1/tools/import_image", json={"image": data_uri("blue")})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "busy")


@pytest.fixture(params=["damaged", "unforeseen"])
def broken(request: pytest.FixtureRequest, app: App, monkeypatch: pytest.MonkeyPatch) -> App:
    """An app whose index is garbage and cannot be set aside, or whose store fails as nobody foresaw."""
    if request.param == "damaged":
        app.store.close()
        for suffix in ("-wal", "-shm"):
            (app.store.path / f"index.sqlite{suffix}").unlink(missing_ok=True)
        (app.store.path / "index.sqlite").write_bytes(b"garbage" * 2000)
        (app.store.path / "quarantine").write_text("a file")
    else:

        def fail() -> None:
            raise RuntimeError(f"broken: {app.store.path}")

        monkeypatch.setattr(app.store._repository.index, "reading", fail)
    return app


async def test_a_store_without_an_index_is_an_internal_error_on_every_surface(
    broken: App, connect: Connect
) -> None:
    digest = "ab" * 32
    calls: list[tuple[str, dict[str, Any]]] = [
        ("list_images", {}),
        ("view_image", {"image": digest}),
        ("image_history", {"image": digest}),
        ("import_image", {"image": data_uri()}),
        ("generate_image", ASKED),
    ]
    reference = types.ResourceTemplateReference(type="ref/resource", uri="image://sha256/{digest}")
    async with connect(broken) as client:
        assert set((await codes(client, broken, calls)).values()) == {"internal"}
        assert await protocol_codes(
            broken,
            client.list_resources,
            lambda: client.read_resource(f"image://sha256/{digest}"),
            lambda: client.read_resource(f"image://sha256/{digest}/preview"),
            lambda: client.complete(reference, {"name": "digest", "value": "ab"}),
        ) == {(types.INTERNAL_ERROR, "internal")}


async def test_a_store_without_an_index_is_an_internal_error_over_rest(broken: App) -> None:
    async with rest(broken) as client:
        answers = [await client.post("/v1/tools/list_images", json={})]
        answers += [await client.get(f"/images/{'ab' * 32}{end}") for end in ("", "/preview")]
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal")
            assert str(broken.store.path.parent) not in answer.text
        accept = {"Accept": "text/event-stream"}
        streamed = await client.post("/v1/tools/list_images", json={}, headers=accept)
        kind, data = streamed.text.strip().split("\n")
        assert kind == "event: error" and json.loads(data[6:])["error"]["code"] == "internal"
        assert str(broken.store.path.parent) not in streamed.text


async def test_what_is_asked_of_prompts_and_resources_in_vain_is_an_invalid_argument(
    app: App, connect: Connect
) -> None:
    async with connect(app) as client:
        assert await protocol_codes(
            app,
            lambda: client.get_prompt("n" * 1000),
            lambda: client.get_prompt("before_after", {}),
            lambda: client.list_resources(cursor="nonsense"),
            lambda: client.read_resource("image://sha256/zz"),
        ) == {(types.INVALID_PARAMS, "invalid_argument")}
