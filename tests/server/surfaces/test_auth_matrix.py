"""Every route, tool and method of MCP with every kind of credential, where images are shared and where not.

What is asked is made from the routes and tools that there are. A route with a parameter or body, or a tool
with an argument, that this file does not know fails the test: say here what to ask of it.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.routing import Route

from server.app import App
from server.http.app import http_app
from server.http.auth import Tokens
from tests.server.core.conftest import HeldEngine
from tests.server.core.test_references import png
from tests.server.surfaces.conftest import SMALL
from tests.server.surfaces.issuer import AUDIENCE, Issuer, issuing
from tests.server.surfaces.test_http import served

pytestmark = pytest.mark.anyio
TOKENS = Tokens("bob: another-long-token")
WORD, LABEL = "wyvern", "kraken"
OPEN = {"/healthz", "/readyz"}
MCP = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-06-18"}
STRANGERS = ("none", "wrong", "basic", "expired", "other audience", "other issuer", "no scope")


@dataclass(frozen=True)
class Things:
    """What somebody has: an image, and a job that made it."""

    image: str
    """64 hex digits."""
    job: str

    def hidden(self, text: str) -> str:
        """`text` without the ids."""
        for digits in range(64, 5, -1):
            text = text.replace(self.image[:digits], "IMAGE")
        return text.replace(self.job, "JOB")


NEVER = Things("0123456789abcdef" * 4, "job_fedcba9876543210")


@dataclass(frozen=True)
class Ask:
    """A request."""

    method: str
    path: str
    body: dict[str, Any] | bytes | None = None
    headers: tuple[tuple[str, str], ...] = ()
    writes: bool = False
    """Whether it needs the scope to write."""
    what: str = ""
    """The method and tool of MCP."""

    async def sent(self, client: httpx.AsyncClient, credential: str | None) -> httpx.Response:
        headers = dict(self.headers) | ({"Authorization": credential} if credential else {})
        more: dict[str, Any] = {"json": self.body} if isinstance(self.body, dict) else {"content": self.body}
        return await client.request(self.method, self.path, headers=headers, **more)


def arguments(tool: Any, things: Things) -> dict[str, Any]:
    """What a tool is asked about the things."""
    known = {
        "image": things.image, "images": [things.image], "job_id": things.job, "query": WORD,
        "prompt": "x", "instruction": "x", "question": "x", "max_tokens": 2, "path": "out.png",
        "overwrite": True, **SMALL,
    }  # fmt: skip
    fields = tool.request.model_fields
    unknown = {name for name, field in fields.items() if field.is_required()} - known.keys()
    assert not unknown, f"{tool.name}: say what to give as {unknown}"
    return {name: value for name, value in known.items() if name in fields}


def bodies(app: App, things: Things) -> dict[str, list[Ask]]:
    """What is posted, by path."""
    words = {"prompt": "x", "size": "32x32", "steps": 2}
    edit = words | {"images": [{"image_url": things.image}]}
    mcp = [
        ("tools/list", {}), ("prompts/list", {}), ("resources/list", {}), ("resources/templates/list", {}),
        ("resources/read", {"uri": f"image://sha256/{things.image}"}),
        ("resources/read", {"uri": f"image://sha256/{things.image[:10]}/preview"}),
        ("completion/complete", {
            "ref": {"type": "ref/resource", "uri": "image://sha256/{digest}"},
            "argument": {"name": "digest", "value": things.image[:6]},
        }),
    ]  # fmt: skip
    calls = [
        ("tools/call", {"name": tool.name, "arguments": arguments(tool, things)}, not tool.read_only)
        for tool in app.tools.values()
    ]
    messages = [
        Ask(
            "POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": method, "params": params},
            tuple(MCP.items()), any(writes), f"{method} {params.get('name', '')}",
        )
        for method, params, *writes in (*mcp, *calls)
    ]  # fmt: skip
    tools = {
        f"/v1/tools/{tool.name}": [
            Ask("POST", f"/v1/tools/{tool.name}", arguments(tool, things), writes=not tool.read_only)
        ]
        for tool in app.tools.values()
    }
    return tools | {
        "/mcp": messages,
        "/v1/images": [Ask("POST", "/v1/images", png("blue"), (("Content-Type", "image/png"),), writes=True)],
        "/v1/images/generations": [Ask("POST", "/v1/images/generations", words, writes=True)],
        "/v1/images/edits": [Ask("POST", "/v1/images/edits", edit, writes=True)],
    }


def asks(app: App, routes: list[Route], things: Things) -> list[Ask]:
    """Everything that can be asked about the things."""
    values = {"digest": things.image, "job": things.job, "model": app.card().id}
    posted = bodies(app, things)
    found: list[Ask] = []
    for route in routes:
        unknown = set(route.param_convertors) - values.keys()
        assert not unknown, f"{route.path}: say what to give as {unknown}"
        path = route.url_path_for(route.name, **{name: values[name] for name in route.param_convertors})
        for method in sorted(route.methods or ()):
            if method == "POST":
                assert route.path in posted, f"{route.path}: say what to post"
                found += posted[route.path]
            else:
                found.append(Ask(method, str(path), writes=method == "DELETE" and route.path != "/mcp"))
                if "digest" in route.param_convertors:
                    found.append(Ask(method, str(path).replace(things.image, things.image[:8]) + "?w=8"))
    return found


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing() as issuer:
        yield issuer


def credentials(issuer: Issuer) -> dict[str, str | None]:
    ann = {
        "right": {}, "read-only": {"scope": "studio:read"}, "expired": {"exp": time.time() - 100},
        "other audience": {"aud": "https://other.example/mcp"}, "no scope": {"scope": "openid"},
        "other issuer": {"iss": "https://evil.example"},
    }  # fmt: skip
    return {
        "none": None,
        "wrong": "Bearer wrong-and-long-enough-token",
        "basic": "Basic YW5uOnNlY3JldA==",
        "other principal": "Bearer another-long-token",
        **{name: f"Bearer {issuer.token(**claims)}" for name, claims in ann.items()},
    }


async def something(client: httpx.AsyncClient, right: str | None) -> Things:
    """Let Ann make an image in a job of its own, and label it."""
    said = {"Authorization": right or ""}
    asked = {"prompt": WORD, "seed": 7, "background": True, **SMALL}
    job = (await client.post("/v1/tools/generate_image", json=asked, headers=said)).json()["job_id"]
    waiting = {"job_id": job, "wait_seconds": 30}
    done = (await client.post("/v1/tools/get_job", json=waiting, headers=said)).json()
    image = done["result"]["images"][0]["id"]
    named = {"image": image, "label": LABEL}
    assert (await client.post("/v1/tools/import_image", json=named, headers=said)).status_code == 200
    return Things(image.removeprefix("sha256:"), job)


def failed(answer: httpx.Response) -> bool:
    """Whether an answer is an error, of HTTP or of MCP."""
    return answer.status_code >= 400 or '"isError":true' in answer.text or '"id":1,"error":' in answer.text


def same(one: httpx.Response, other: httpx.Response, things: Things) -> bool:
    """Whether an answer about the things tells no more than one about what never was."""
    mine = (one.status_code, sorted(one.headers), things.hidden(one.text))
    return mine == (other.status_code, sorted(other.headers), NEVER.hidden(other.text))


@pytest.mark.parametrize("sharing", ["shared", "own"])
async def test_nobody_learns_or_does_more_than_the_credential_allows(
    make_app: Callable[..., App], engine: HeldEngine, issuer: Issuer, sharing: str, tmp_path: Path
) -> None:
    folders = (tmp_path / "files",)
    folders[0].mkdir()
    oauth = {"oauth_issuer": issuer.url, "oauth_audience": AUDIENCE}
    # Over stdio the working directory would be a folder to write to, too.
    app = make_app(lambda: engine, sharing=sharing, transport="http", allow_dir=folders, **oauth)
    routes = [route for route in http_app(app, TOKENS).routes if isinstance(route, Route)]
    open_paths = OPEN | {route.path for route in routes if route.path.startswith("/.well-known/")}
    known = credentials(issuer)
    async with served(app, TOKENS) as url, httpx.AsyncClient(base_url=url, timeout=60) as client:
        ann = await something(client, known["right"])
        told = asks(app, routes, ann)
        never = asks(app, routes, NEVER)
        before = app.store.usage()
        for name in STRANGERS:
            for ask in told:
                answer = await ask.sent(client, known[name])
                if ask.path not in open_paths:
                    assert answer.status_code == (403 if name == "no scope" else 401), (name, ask)
                    assert "www-authenticate" in answer.headers, (name, ask)
                assert not revealed(answer, ann), (name, ask)
        for ask in told:
            answer = await ask.sent(client, known["read-only"])
            assert failed(answer) == ask.writes, (ask, answer.text)
            assert not ask.writes or "studio:write" in answer.text, (ask, answer.text)
        assert app.store.usage() == before
        for ask, absent in zip(told, never, strict=True):
            answer = await ask.sent(client, known["other principal"])
            about_job, about_image = ann.job in repr(ask), ann.image[:6] in repr(ask)
            if about_job or (about_image and sharing == "own"):
                assert same(answer, await absent.sent(client, known["other principal"]), ann), (
                    ask,
                    answer.text,
                )
            elif about_image:
                assert not failed(answer), (ask, answer.text)
            if sharing == "own":
                assert not revealed(answer, ann), (ask, answer.text)
        for ask in told:
            answer = await ask.sent(client, known["right"])
            assert not failed(answer), (ask, answer.text)


def revealed(answer: httpx.Response, things: Things) -> bool:
    """Whether an answer holds something of Ann's that was not in the question."""
    text = things.hidden(answer.text).replace(f'"query":"{WORD}"', "")
    return WORD in text or LABEL in text or answer.headers.get("content-type", "").startswith("image/")


async def test_a_route_or_tool_that_is_not_known_here_fails(app: App) -> None:
    route = Route("/v1/{secret}", lambda _: None, methods=["GET"])
    with pytest.raises(AssertionError, match="say what to give"):
        asks(app, [route], NEVER)
    with pytest.raises(AssertionError, match="say what to post"):
        asks(app, [Route("/v1/new", lambda _: None, methods=["POST"])], NEVER)
    tool = replace(next(iter(app.tools.values())), name="new")
    assert json.dumps(arguments(tool, NEVER))
