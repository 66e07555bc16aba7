"""Clients of a soak: some use the server as it is meant, some do what harms servers, on purpose or not.

Each behaviour is a method of `Client`; `FRIENDLY` and `HOSTILE` say how often it is chosen. What a behaviour
gets back is judged where the documentation says what it must be.
"""

import base64
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
from anyio.abc import SocketStream
from PIL import Image

from benchmarks.answers import judge_answer
from benchmarks.bombs import BOMBS, saved, small_png

TOKENS = {f"caller{number}": f"token-of-caller-{number:08}" for number in range(6)}
TOOLS = "/v1/tools/"
PATIENCE_S = 300.0
"""Seconds after which a request that was not answered is a fault."""
STEPS = 3
KEPT = 40
"""Ids of images that the clients remember together."""
Arguments = dict[str, Any]


@dataclass
class Tally:
    """What all clients saw."""

    asked: int = 0
    """Requests and broken attempts."""
    answers: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    routes: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """Answers of tools by principal, path and status."""
    images: dict[str, list[str]] = field(default_factory=dict)
    """Ids of images, by the name of the token, or for all."""


class Client:
    """One client: friendly or hostile, with a token, some of which are shared."""

    def __init__(
        self,
        url: str,
        number: int,
        kinds: "dict[Behaviour, float]",
        seed: int,
        tally: Tally,
        tokens: dict[str, str],
        own: bool,
    ) -> None:
        """If `own`, it names only images that were made with its token."""
        self._url, self._tally, self._chance = url, tally, random.Random(f"{seed} {number}")
        self._kinds = kinds
        host, _, port = url.removeprefix("http://").partition(":")
        self._address = (host, int(port))
        self._name, token = list(tokens.items())[number % len(tokens)]
        self._headers = {"Authorization": f"Bearer {token}"}
        self._images = tally.images.setdefault(self._name if own else "", [])

    async def work(self, end: float) -> None:
        """Do one thing after another until the time is over."""
        limits = httpx.Limits(max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=self._url, headers=self._headers, limits=limits, timeout=PATIENCE_S, trust_env=False
        ) as self._http:
            while time.monotonic() < end:
                kind = self._chance.choices(list(self._kinds), list(self._kinds.values()))[0]
                try:
                    await kind(self)
                except Exception as error:
                    self._tally.faults[f"{kind.__name__}: {type(error).__name__}: {str(error)[:600]}"] += 1
                    await anyio.sleep(0.5)
                await anyio.sleep(self._chance.random() * 0.2)

    # -- asking ---------------------------------------------------------------------------------------

    async def _post(self, tool: str, arguments: Arguments | bytes, **headers: str) -> httpx.Response:
        """The answer of a tool, judged and counted."""
        self._tally.asked += 1
        body = arguments if isinstance(arguments, bytes) else json.dumps(arguments).encode()
        answer = await self._http.post(
            f"{TOOLS}{tool}", content=body, headers={"Content-Type": "application/json", **headers}
        )
        self._tally.routes[self._name, f"{TOOLS}{tool}", answer.status_code] += 1
        self._judge(tool, answer)
        return answer

    async def _get(self, path: str) -> httpx.Response:
        self._tally.asked += 1
        answer = await self._http.get(path)
        self._judge(path.split("/")[1], answer)
        return answer

    def _judge(self, what: str, answer: httpx.Response) -> None:
        word = judge_answer(answer.status_code, answer.headers, answer.content, what)
        self._tally.answers[f"{what}: {word}"] += 1
        if answer.status_code == 200 and answer.headers["content-type"] == "application/json":
            made = [image["id"] for image in answer.json().get("images", ())]
            self._images[:] = [*self._images, *made][-KEPT:]

    def _image(self) -> str:
        return self._chance.choice(self._images or [data_uri(small_png())])

    def _wanted(self) -> Arguments:
        side = self._chance.choice((64, 80, 96))
        return {"width": side, "height": side, "steps": STEPS, "seed": self._chance.randrange(2**31)}

    # -- as it is meant -------------------------------------------------------------------------------

    async def generate(self) -> None:
        await self._post("generate_image", self._wanted() | {"prompt": "a red circle"})

    async def edit(self) -> None:
        asked = {"image": self._image(), "instruction": "make it blue", "steps": STEPS}
        await self._post("edit_image", asked)

    async def compose(self) -> None:
        images = [self._image() for _ in range(self._chance.randint(2, 4))]
        await self._post(
            "compose_from_references", self._wanted() | {"images": images, "instruction": "both"}
        )

    async def describe(self) -> None:
        await self._post("describe_image", {"images": [self._image()], "question": "What is it?"})

    async def look(self) -> None:
        """List, search, view, history, and the picture itself."""
        await self._post("list_images", {"limit": 10})
        await self._post("list_images", {"query": self._chance.choice(("circle", "blue", "nothing"))})
        image = self._image()
        if image.startswith("sha256:"):
            await self._post("view_image", {"image": image})
            await self._post("image_history", {"image": image})
            await self._get(f"/images/{image[7:]}")
            await self._get(f"/images/{image[7:]}/preview")

    async def import_picture(self) -> None:
        await self._post("import_image", {"image": data_uri(noise_png(self._chance.randrange(2**20)))})

    async def in_the_background(self) -> None:
        asked = self._wanted() | {"prompt": "a green square", "background": True}
        answer = await self._post("generate_image", asked)
        if answer.status_code == 200:
            job = answer.json()["job_id"]
            status = await self._post("get_job", {"job_id": job, "wait_seconds": 20})
            assert status.status_code == 200, status.text

    async def equal_at_once(self) -> None:
        """Three equal requests at the same time: whoever gets a picture gets the same one."""
        asked = self._wanted() | {"prompt": "a blue triangle"}
        ids: set[str] = set()

        async def one() -> None:
            answer = await self._post("generate_image", asked)
            if answer.status_code == 200:
                ids.update(image["id"] for image in answer.json()["images"])

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(one)
        assert len(ids) <= 1, f"equal requests gave {ids}"

    async def over_mcp(self) -> None:
        """One call of a tool over MCP."""
        self._tally.asked += 1
        asked = {"name": "list_images", "arguments": {"limit": 3}}
        answer = await self._http.post("/mcp", json=message("tools/call", asked), headers=MCP)
        assert answer.status_code == 200, (answer.status_code, answer.text[:300])
        self._tally.answers["mcp: 200"] += 1

    # -- what harms -----------------------------------------------------------------------------------

    async def _connect(self) -> SocketStream:
        self._tally.asked += 1
        return await anyio.connect_tcp(*self._address)

    def _head(self, path: str, length: int) -> bytes:
        lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
        lines += [f"{name}: {value}" for name, value in self._headers.items()]
        return "\r\n".join([*lines, f"Content-Length: {length}", "", ""]).encode()

    async def half_request(self) -> None:
        """Begin a request, several at once, and stay."""
        head = self._head("/v1/tools/generate_image", 1000)
        begun = self._chance.choice((b"", head[:20], head[:-2], head, head + b'{"prompt": "'))
        self._tally.answers["half requests"] += 1
        with anyio.move_on_after(self._chance.choice((2, 10, 40))):
            async with anyio.create_task_group() as group:
                for _ in range(self._chance.choice((1, 5, 20))):
                    group.start_soon(self._stay, begun)

    async def _stay(self, begun: bytes) -> None:
        async with await self._connect() as stream:
            try:
                if begun:
                    await stream.send(begun)
                while True:
                    await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                pass

    async def hang_up(self) -> None:
        """Ask for a picture and go away before it is there."""
        body = json.dumps(self._wanted() | {"prompt": "a circle", "num_images": 4}).encode()
        async with await self._connect() as stream:
            await stream.send(self._head("/v1/tools/generate_image", len(body)) + body)
            await anyio.sleep(self._chance.random() * 0.5)
        self._tally.answers["hung up"] += 1

    async def slow_reader(self) -> None:
        """Read an answer a few bytes at a time."""
        request = (
            b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            + "".join(f"{name}: {value}\r\n" for name, value in self._headers.items()).encode()
        )
        async with await self._connect() as stream:
            await stream.send(request + b"\r\n")
            with anyio.move_on_after(10):
                while await stream.receive(16):
                    await anyio.sleep(0.1)
        self._tally.answers["read slowly"] += 1

    async def bomb(self) -> None:
        """A small file that is a huge picture, or takes long to read."""
        picture = data_uri(self._chance.choice(BOMBS)())
        if self._chance.random() < 0.5:
            await self._post("import_image", {"image": picture})
        else:
            await self._post("edit_image", {"image": picture, "instruction": "blue", "steps": STEPS})

    async def bombs_and_gone(self) -> None:
        """Send one and go away."""
        body = json.dumps({"image": data_uri(self._chance.choice(BOMBS)())}).encode()
        async with await self._connect() as stream:
            await stream.send(self._head("/v1/tools/import_image", len(body)) + body)
            await anyio.sleep(self._chance.random())
        self._tally.answers["hung up on a bomb"] += 1

    async def unknown_keys(self) -> None:
        body = json.dumps({f"key {number}": number for number in range(self._chance.choice((10, 100_000)))})
        answer = await self._post("generate_image", body.encode())
        assert answer.status_code in (400, 429), answer.status_code

    async def wrong_token(self) -> None:
        token = self._chance.choice(("Bearer nothing-that-is-known", "Basic YTpi", "Bearer"))
        answer = await self._post("list_images", {}, Authorization=token)
        assert answer.status_code == 401, answer.status_code

    async def cancel_storm(self) -> None:
        """Many background jobs, all cancelled at once."""
        jobs: list[str] = []
        for _ in range(self._chance.choice((3, 12))):
            asked = self._wanted() | {"prompt": "a circle", "background": True}
            answer = await self._post("generate_image", asked)
            if answer.status_code == 200:
                jobs.append(answer.json()["job_id"])
        async with anyio.create_task_group() as group:
            for job in jobs * 2:
                group.start_soon(self._post, "cancel_job", {"job_id": job})

    async def escaped_uri(self) -> None:
        """A data URI of escapes, a few megabytes of them."""
        uri = "data:image/png;base64," + "%41" * self._chance.choice((1000, 1_000_000))
        answer = await self._post("import_image", {"image": uri})
        assert answer.status_code in (400, 422, 429), answer.status_code

    async def damaged_json(self) -> None:
        choice = self._chance.choice
        body = choice(
            (b"{", b'{"prompt": "x"', b"[" * 100_000, b"\xff\xfe", b"null", b'{"a":NaN,}', b"1" * 10_000)
        )
        answer = await self._post(choice(("generate_image", "list_images")), body)
        assert answer.status_code == 400, answer.status_code

    async def no_http(self) -> None:
        """Bytes that are not HTTP."""
        async with await self._connect() as stream:
            await stream.send(self._chance.choice((b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\0" * 1000)))
            with anyio.move_on_after(5):
                try:
                    while await stream.receive():
                        pass
                except (anyio.EndOfStream, anyio.BrokenResourceError):
                    pass
        self._tally.answers["no HTTP"] += 1

    async def drop_mcp(self) -> None:
        """Begin something over MCP and go away."""
        asked = {"name": "generate_image", "arguments": self._wanted() | {"prompt": "a circle"}}
        body = json.dumps(message("tools/call", asked)).encode()
        head = self._head("/mcp", len(body)).replace(
            b"Host:", b"Accept: application/json, text/event-stream\r\nHost:"
        )
        async with await self._connect() as stream:
            await stream.send(head + body[: self._chance.choice((len(body), len(body) // 2))])
            await anyio.sleep(self._chance.random())
        self._tally.answers["left MCP"] += 1

    async def leave_events(self) -> None:
        """Listen to the progress of a call, and leave after the first event."""
        asked = self._wanted() | {"prompt": "a circle", "steps": 20}
        self._tally.asked += 1
        headers = {"Accept": "text/event-stream"}
        async with self._http.stream(
            "POST", "/v1/tools/generate_image", json=asked, headers=headers
        ) as answer:
            async for line in answer.aiter_lines():
                assert line.startswith(("event: progress", "event: result", "event: error")), line
                break
        self._tally.answers["left events"] += 1

    async def flood(self) -> None:
        """Many requests of one caller at once: what is too much is refused with `busy`."""
        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(self._post, "generate_image", self._wanted() | {"prompt": "a circle"})


MCP = {
    "Accept": "application/json, text/event-stream",
    "MCP-Protocol-Version": "2025-06-18",
}
Behaviour = Callable[[Client], Awaitable[None]]
FRIENDLY: dict[Behaviour, float] = {
    Client.generate: 6, Client.edit: 4, Client.compose: 2, Client.describe: 3, Client.look: 4,
    Client.import_picture: 2, Client.in_the_background: 2, Client.equal_at_once: 1, Client.over_mcp: 2,
}  # fmt: skip
HOSTILE: dict[Behaviour, float] = {
    Client.half_request: 3, Client.hang_up: 3, Client.slow_reader: 2, Client.bomb: 2,
    Client.bombs_and_gone: 1,
    Client.unknown_keys: 1, Client.wrong_token: 2, Client.cancel_storm: 1, Client.escaped_uri: 1,
    Client.damaged_json: 2, Client.no_http: 2, Client.drop_mcp: 2, Client.leave_events: 2, Client.flood: 0.5,
}  # fmt: skip


def message(method: str, params: dict[str, Any]) -> dict[str, Any]:
    """A request of MCP."""
    return {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}


def data_uri(data: bytes) -> str:
    """A picture inside a request."""
    return f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"


def noise_png(seed: int) -> bytes:
    """A picture that nobody sent before."""
    return saved(Image.frombytes("RGB", (48, 48), random.Random(seed).randbytes(48 * 48 * 3)), "PNG")
