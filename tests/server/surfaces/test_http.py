"""The HTTP server: MCP, REST and images on a real socket; who may come in; who goes away."""

import base64
import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx
import pytest
import uvicorn
from jsonschema import Draft202012Validator
from mcp import Client
from PIL import Image
from starlette.routing import Route

from server import log
from server.app import App
from server.http.app import http_app
from server.http.auth import Tokens
from server.http.serve import serve_http, uvicorn_config
from tests.server.core.conftest import HeldEngine
from tests.server.surfaces.conftest import SMALL, Connect, succeeded

pytestmark = pytest.mark.anyio
TOKENS = Tokens("ann: a-token-of-some-length\n# a comment\n\nbob:another-long-token")
ANN = {"Authorization": "Bearer a-token-of-some-length"}
BOB = {"Authorization": "Bearer another-long-token"}
GENERATE = "/v1/tools/generate_image"


@asynccontextmanager
async def served(app: App, tokens: Tokens | None = None, loopback: bool = True) -> AsyncGenerator[str]:
    """Serve an app on a free port of this machine; its address."""
    config = uvicorn_config(http_app(app, tokens, loopback=loopback))
    config.port = 0
    server = uvicorn.Server(config)
    with anyio.fail_after(120):
        async with anyio.create_task_group() as group:
            group.start_soon(server._serve)  # `serve` would take over the signals of the test run
            while not server.started:
                await anyio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            try:
                yield f"http://127.0.0.1:{port}"
            finally:
                server.should_exit = True


@asynccontextmanager
async def rest(app: App, **more: Any) -> AsyncGenerator[httpx.AsyncClient]:
    headers = more.pop("headers", None)
    async with (
        served(app, **more) as url,
        httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client,
    ):
        yield client


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_mcp_over_http_makes_and_reads_images_with_progress(app: App, mode: str) -> None:
    heard: list[str | None] = []

    async def listen(done: float, total: float | None, message: str | None) -> None:
        heard.append(message)

    async with served(app) as url, Client(f"{url}/mcp", mode=mode) as client:  # type: ignore[arg-type]
        arguments = {"prompt": "x", **SMALL}
        made = await client.call_tool("generate_image", arguments, progress_callback=listen)
        image = made.structured_content["images"][0]
        await client.read_resource(made.content[-1].uri)
        edited = await succeeded(client, "edit_image", image=image["id"], instruction="y", **SMALL)
    assert edited["images"]
    assert any(message and message.startswith("denoise") for message in heard)


async def test_rest_answers_with_the_result_and_serves_the_image(app: App) -> None:
    async with rest(app) as client:
        answer = await client.post(GENERATE, json={"prompt": "x", **SMALL})
        assert answer.status_code == 200
        image = answer.json()["images"][0]
        full = await client.get(f"/images/{image['id'].removeprefix('sha256:')}")
        assert full.headers["content-type"] == "image/png" and len(full.content) == image["bytes"]
        again = await client.get(full.request.url.path, headers={"If-None-Match": full.headers["etag"]})
        assert again.status_code == 304 and not again.content
        small = await client.get(f"{full.request.url.path}/preview")
        assert small.headers["content-type"] == "image/jpeg"
        assert (await client.get("/healthz")).json() == {"status": "ok", "stalled_s": 0.0}


async def test_rest_streams_progress_and_ends_with_the_result_or_the_error(app: App) -> None:
    async def events(client: httpx.AsyncClient, arguments: dict[str, Any]) -> list[tuple[str, Any]]:
        accept = {"Accept": "text/event-stream"}
        answer = await client.post(GENERATE, json=arguments, headers=accept)
        assert answer.headers["content-type"] == "text/event-stream"
        blocks = [block.split("\n") for block in answer.text.strip().split("\n\n")]
        return [
            (kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in blocks
        ]

    async with rest(app) as client:
        *progress, (last, result) = await events(client, {"prompt": "x", **SMALL})
        assert {kind for kind, _ in progress} == {"progress"}
        assert [status["step"] for _, status in progress] == sorted(status["step"] for _, status in progress)
        assert last == "result" and result["images"]
        ((kind, failed),) = await events(client, {"prompt": "x", "steps": 0})
        assert kind == "error" and failed["error"]["code"] == "invalid_argument"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_argument"),
        (b"[]", 400, "invalid_argument"),
        (b"{" * 100_000, 400, "invalid_argument"),
        (b'{"prompt": "\\ud800"}', 400, "invalid_argument"),
        (b'{"prompt": "x", "seed": NaN}', 400, "invalid_argument"),
        (b'{"prompt": "x", "text_guidance_scale": NaN}', 400, "invalid_argument"),
        (b'{"prompt": "x", "steps": 1e999}', 400, "invalid_argument"),
        (b'{"prompt": "x", "model": "/etc"}', 400, "invalid_argument"),
    ],
)
async def test_rest_refuses_what_is_no_request(app: App, body: bytes, status: int, code: str) -> None:
    async with rest(app, headers={"Content-Type": "application/json"}) as client:
        answer = await client.post(GENERATE, content=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert (await client.get("/images/" + "0" * 64)).status_code == 404
        assert (await client.get("/images/12345678")).status_code == 404
        assert (await client.get("/images/1234567")).status_code == 400
        assert (await client.post("/v1/tools/paint", json={})).status_code == 404


async def test_openapi_describes_every_tool(app: App) -> None:
    async with rest(app) as client:
        document = (await client.get("/openapi.json")).json()
    assert {f"/v1/tools/{name}" for name in app.tools} < document["paths"].keys()
    for operation in operations(document):
        for content in operation.get("requestBody", {}).get("content", {}).values():
            Draft202012Validator.check_schema(content["schema"])


async def test_openapi_describes_every_route_and_no_other(app: App) -> None:
    asgi = http_app(app)
    async with rest(app) as client:
        document = (await client.get("/openapi.json")).json()
        described = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
        routed = {
            (route.path_format, method)
            for route in asgi.routes
            if isinstance(route, Route)
            for method in route.methods or ()
        }
        assert described <= routed
        assert {pair for pair in routed - described if pair[1] != "HEAD"} == set()
        for path, item in document["paths"].items():
            if taken := item.get("post", {}).get("requestBody"):
                answer = await client.post(path, content=b"x", headers={"Content-Type": "text/x-other"})
                assert answer.status_code == 415
                assert set(answer.headers["accept"].split(", ")) == taken["content"].keys()
                assert all(kind in answer.json()["error"]["advice"] for kind in taken["content"])


def operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for item in document["paths"].values() for operation in item.values()]


async def test_full_queue_is_answered_with_when_to_come_back(
    make_app: Callable[..., App], engine: HeldEngine
) -> None:
    engine.hold_at = 1
    app = make_app(lambda: engine, queue_size=1)
    async with rest(app) as client:
        waiting = {"prompt": "x", "background": True, **SMALL}
        assert (await client.post(GENERATE, json=waiting)).status_code == 200
        await engine.is_held()
        answers = [await client.post(GENERATE, json=waiting | {"seed": seed}) for seed in range(12)]
        engine.released.set()
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused and int(refused[0].headers["retry-after"]) > 0
    assert refused[0].json()["error"]["code"] == "busy"


async def test_health_tells_for_how_long_the_model_stands_still(app: App, engine: HeldEngine) -> None:
    engine.hold_at = 1
    async with rest(app) as client:
        await client.post(GENERATE, json={"prompt": "x", "background": True, **SMALL})
        await engine.is_held()
        with anyio.fail_after(30):
            while not (await client.get("/healthz")).json()["stalled_s"]:
                pass
        engine.released.set()


async def test_only_a_known_token_comes_in_and_names_its_principal(app: App, engine: HeldEngine) -> None:
    async with rest(app, tokens=TOKENS) as client:
        for headers in ({}, {"Authorization": "Bearer wrong-token-of-length"}, {"Authorization": "Basic x"}):
            for url in (GENERATE, "/mcp", "/openapi.json"):
                answer = await client.post(url, json={}, headers=headers)
                challenge = 'Bearer error="invalid_token"' if headers else "Bearer"
                assert (answer.status_code, answer.headers["www-authenticate"]) == (401, challenge)
        assert (await client.get("/healthz")).status_code == 200
        body = {"prompt": "x", "background": True, **SMALL}
        job = (await client.post(GENERATE, json=body, headers=ANN)).json()["job_id"]
        asked = {"job_id": job, "wait_seconds": 50}
        assert (await client.post("/v1/tools/get_job", json=asked, headers=ANN)).json()["status"] == "done"
        assert (await client.post("/v1/tools/get_job", json=asked, headers=BOB)).status_code == 400


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:80"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "https://evil.example", "Content-Type": "text/plain"}, 403),
        ({"Origin": "https://evil.example", "Content-Type": "multipart/form-data; boundary=x"}, 403),
        ({"Origin": "https://evil.example", "Content-Type": ""}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/jsonp"}, 415),
        ({"Content-Type": ""}, 415),
    ],
)
async def test_requests_of_foreign_web_pages_are_refused(
    app: App, headers: dict[str, str], status: int
) -> None:
    async with rest(app) as client:
        for url in (GENERATE, "/mcp"):
            given = {"Content-Type": "application/json"} | headers
            answer = await client.post(url, content=b"{}", headers=given)
            assert answer.status_code == status
            assert set(answer.json()["error"]) == {"code", "message", "advice"}


async def test_refusals_of_routes_and_methods_have_the_form_of_all_others(app: App) -> None:
    async with rest(app) as client:
        for method, url, status in (
            ("GET", "/nothing", 404),
            ("GET", GENERATE, 405),
            ("DELETE", "/healthz", 405),
        ):
            answer = await client.request(method, url)
            assert answer.status_code == status
            assert all(answer.json()["error"][part] for part in ("code", "message", "advice"))
            assert (status == 405) == ("allow" in answer.headers)


async def test_pages_of_allowed_origins_may_ask_and_read(
    make_app: Callable[..., App], engine: HeldEngine
) -> None:
    page, evil = {"Origin": "https://studio.example"}, {"Origin": "https://evil.example"}
    wanted = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    app = make_app(lambda: engine, allow_origin="https://studio.example,http://localhost:5173")
    async with rest(app, tokens=TOKENS) as client:
        asked = await client.options(GENERATE, headers=page | wanted)
        assert (asked.status_code, asked.headers["access-control-allow-origin"]) == (200, page["Origin"])
        assert "authorization" in asked.headers["access-control-allow-headers"]
        for url, status in (("/openapi.json", 200), ("/nothing", 404)):
            answer = await client.get(url, headers=ANN | page)
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
                status,
                page["Origin"],
            )
            assert "Retry-After" in answer.headers["access-control-expose-headers"]
        refused = await client.options(GENERATE, headers=evil | wanted)
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "invalid_argument"
        answer = await client.get("/openapi.json", headers=ANN | evil)
        assert answer.status_code == 403 and "access-control-allow-origin" not in answer.headers


async def test_a_token_to_read_sees_everything_and_changes_nothing(app: App) -> None:
    reader = {"Authorization": "Bearer a-token-that-reads"}
    async with served(app, Tokens("ann:a-token-that-reads studio:read")) as url:
        async with httpx.AsyncClient(base_url=url, headers=reader) as client:
            assert (await client.post("/v1/tools/list_images", json={})).status_code == 200
            answer = await client.post(GENERATE, json={"prompt": "x", **SMALL})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden")
            assert answer.headers["www-authenticate"] == (
                'Bearer error="insufficient_scope", scope="studio:write"'
            )
            headers = reader | {"Accept": "application/json, text/event-stream"}
            params = {"name": "generate_image", "arguments": {"prompt": "x", **SMALL}}
            call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            told = (await client.post("/mcp", json=call, headers=headers)).text
            assert "This needs the scope studio:write" in told


async def test_beyond_this_machine_any_host_name_leads_here_but_no_foreign_page(app: App) -> None:
    async with rest(app, tokens=TOKENS, loopback=False, headers=ANN) as client:
        named = {"Host": "gpu.example", "Origin": "https://gpu.example"}
        assert (await client.get("/openapi.json", headers=named)).status_code == 200
        foreign = named | {"Origin": "https://evil.example"}
        assert (await client.get("/openapi.json", headers=foreign)).status_code == 403


async def test_behind_tokens_any_name_of_a_proxy_leads_here_also_on_this_machine(app: App) -> None:
    async with rest(app, tokens=TOKENS) as client:
        for url in ("/openapi.json", "/healthz"):
            for named in ({}, {"Origin": "https://gpu.example"}):
                answer = await client.get(url, headers=ANN | {"Host": "gpu.example"} | named)
                assert answer.status_code == 200
        assert (await client.get("/openapi.json", headers={"Host": "gpu.example"})).status_code == 401
        foreign = ANN | {"Host": "gpu.example", "Origin": "https://evil.example"}
        assert (await client.get("/openapi.json", headers=foreign)).status_code == 403
        page = ANN | {"Origin": "http://localhost:5173"}
        assert (await client.get("/openapi.json", headers=page)).status_code == 200


async def test_every_name_of_this_machine_leads_here_without_tokens(app: App) -> None:
    async with rest(app) as client:
        for host in ("127.0.0.2:8765", "localhost", "[::1]:9"):
            assert (await client.get("/openapi.json", headers={"Host": host})).status_code == 200


async def test_no_level_of_logging_shows_prompts_pictures_or_tokens(
    app: App, connect: Connect, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log.configure("debug")
    data = f"data:image/png;base64,{base64.b64encode(b'CANARY' * 9).decode()}"
    calls: list[tuple[str, dict[str, Any]]] = [
        ("generate_image", {"prompt": "CANARY words", **SMALL}),
        ("generate_image", {"prompt": "CANARY words", "steps": "CANARY"}),
        ("generate_image", {"prompt": ["CANARY"], "CANARY": 1}),
        ("edit_image", {"image": data, "instruction": "CANARY", **SMALL}),
        ("import_image", {"image": "/CANARY/x.png", "label": "CANARY"}),
        ("list_images", {"query": "CANARY", "cursor": "CANARY"}),
    ]
    token = {"Authorization": "Bearer CANARY-of-some-length"}
    async with rest(app, tokens=Tokens("ann:CANARY-of-some-length"), headers=token) as client:
        for tool, arguments in calls:
            await client.post(f"/v1/tools/{tool}", json=arguments)
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
            params = {"name": tool, "arguments": arguments}
            accept = {"Accept": "application/json, text/event-stream"}
            await client.post("/mcp", json=body | {"params": params}, headers=accept)
        await client.post("/mcp", content=b'{"CANARY', headers={"Content-Type": "application/json"})
        await client.post(GENERATE, content=b'{"CANARY', headers={"Content-Type": "application/json"})
        await client.get("/images/CANARY")
    shown = capsys.readouterr()
    assert "answered" in shown.err
    for secret in ("CANARY", base64.b64encode(b"CANARY" * 9).decode()[:40]):
        assert secret not in shown.err + shown.out


async def test_large_body_is_refused_before_it_is_read(app: App) -> None:
    async with served(app) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            head = f"POST {GENERATE} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
            await stream.send(f"{head}Content-Length: 10000000000\r\n\r\n".encode())
            answer = await stream.receive()
            assert answer.startswith(b"HTTP/1.1 413 ") and b"application/json" in answer


async def test_open_address_without_tokens_is_not_served(
    make_app: Callable[..., App], engine: HeldEngine
) -> None:
    app = make_app(lambda: engine, transport="http", host="0.0.0.0")
    with pytest.raises(ValueError, match="token file"):
        await serve_http(app)
    engine.close()
    app.store.close()


async def test_image_of_a_store_is_not_read_by_another_name(app: App) -> None:
    app.store.put(Image.new("RGB", (8, 8)))
    async with rest(app) as client:
        assert (await client.get("/images/..%2Findex.sqlite")).status_code in (400, 404)


@pytest.mark.parametrize(
    "sent", [b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"\x16\x03\x01\r\n\r\n"]
)
async def test_what_is_no_request_is_refused_in_the_same_form(app: App, sent: bytes) -> None:
    async with served(app) as url:
        host, _, port = url.removeprefix("http://").partition(":")
        async with await anyio.connect_tcp(host, int(port)) as stream:
            await stream.send(sent)
            head, _, body = (await stream.receive()).partition(b"\r\n\r\n")
            if not body:
                body = await stream.receive()
    assert head.startswith(b"HTTP/1.1 400 ")
    assert set(json.loads(body)["error"]) == {"code", "message", "advice"}
