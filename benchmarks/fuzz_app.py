"""The whole HTTP application in process: no sockets, and a model that answers at once.

Everything but the model is real: guard, routes, MCP, tools, queue, jobs and store.
"""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio.from_thread import start_blocking_portal
from PIL import Image
from starlette.types import ASGIApp, Message

from benchmarks.answers import LONGEST_REFUSAL, judge_answer, judge_refusal
from omnigen2.checkpoints.card import ModelCard, read_card
from omnigen2.checkpoints.locate import NANO, resolve
from omnigen2.factory import OneModel
from omnigen2.task import ImageTask, Outcome, Progress, Task, Ticket
from server.app import build_app
from server.hookspecs import hookimpl
from server.http.app import http_app
from server.plugins import core_plugins
from server.schema import input_schema
from server.settings import Settings
from storage import Digest, codec
from storage.errors import ImageNotFound

PATIENCE_S = 60.0


class Instant:
    """A model that makes a grey picture, or four words, before it is asked for more."""

    def __init__(self, card: ModelCard) -> None:
        self.card = card

    def submit(self, task: Task, on_progress: Any) -> Ticket:
        ticket = Ticket(task, on_progress)
        on_progress(Progress("encode"))
        if isinstance(task, ImageTask):
            wanted = task.sampling
            size = (min(wanted.width or 16, 64), min(wanted.height or 16, 64))
            picture = Image.new("RGB", size, (wanted.seed or 0) % 256)
            ticket.future.set_result(Outcome((picture,) * (wanted.num_images or 1)))
        else:
            ticket.future.set_result(Outcome(text="It is a picture."))
        return ticket

    def has_room(self, task: Task) -> bool:
        return True

    def busy(self) -> bool:
        return False

    def memory_bytes(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing runs."""


class InstantPlugin:
    """Offers the model under its own name."""

    def __init__(self) -> None:
        self.card = read_card(resolve(NANO), "instant")

    @hookimpl
    def register_backends(self, register: Any) -> None:
        register("instant", OneModel("instant", self.card, lambda device, dtype: Instant(self.card)))


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


class FuzzedApp:
    """The application, with some pictures in its store, one it may read and one it must never read."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        allowed = folder / "allowed"
        allowed.mkdir()
        Image.new("RGB", (8, 8), (1, 2, 3)).save(allowed / "mine.png")
        Image.new("RGB", (8, 8), (9, 8, 7)).save(folder / "secret.png")
        (allowed / "link.png").symlink_to(folder / "secret.png")
        settings = Settings(store=str(folder / "store"), model="instant", allow_dir=(allowed,))
        self._app = build_app(settings, [*core_plugins(), InstantPlugin()])
        self.store = self._app.store
        self.tools = tuple(self._app.tools)
        self.schemas = {name: input_schema(tool, self._app.card()) for name, tool in self._app.tools.items()}
        self.image = self.store.put(Image.new("RGBA", (9, 9), (1, 2, 3, 4))).id.hex
        self.references = (
            f"sha256:{self.image}", self.image[:8], f"image://sha256/{self.image}", "mine.png", "link.png",
            "../secret.png", str(folder / "secret.png"), f"file://{allowed}/../secret.png", "https://127.0.0.1/x",
            "data:image/png;base64,QUJD", "deadbeef",
            "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=",
        )  # fmt: skip
        self._asgi = http_app(self._app)
        self._portal = stack.enter_context(start_blocking_portal())
        lifespan = self._asgi.router.lifespan_context(self._asgi)
        stack.enter_context(self._portal.wrap_async_context_manager(lifespan))

    def rest(self, method: str, path: str, headers: dict[str, str], body: bytes) -> str:
        """Send a request; judge the answer."""
        answer = self._ask(method, path, headers, body)
        where = (method, path, answer.status, answer.body[:300])
        if method == "HEAD":
            return str(answer.status)
        if answer.status >= 400:
            return judge_answer(answer.status, answer.headers, answer.body, where)
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            return self._judge_events(answer.body.decode())
        if answer.headers.get("content-type") == "application/json":
            assert isinstance(json.loads(answer.body), dict), where
        return str(answer.status)

    def call(self, tool: str, arguments: dict[str, Any]) -> Answer:
        """Call a tool over REST."""
        headers = {"content-type": "application/json", "host": "127.0.0.1"}
        return self._ask("POST", f"/v1/tools/{tool}", headers, json.dumps(arguments).encode())

    def judged(self, tool: str, arguments: dict[str, Any]) -> None:
        """Call a tool over REST; what is asked is right, so the answer must be a result."""
        answer = self.call(tool, arguments)
        assert answer.status == 200, (tool, arguments, answer.status, answer.body[:400])

    def _ask(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
        answer = self._portal.call(ask, self._asgi, method, path, headers, body)
        self._check_leaks(answer.body)
        return answer

    def mcp(self, body: bytes) -> str:
        """Send a message of MCP; judge the answer."""
        headers = {
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "host": "127.0.0.1",
        }
        answer = self._ask("POST", "/mcp", headers, body)
        where = (answer.status, answer.body[:400], body[:400])
        assert answer.status in (200, 202, 400, 404), where
        if answer.status == 202:
            return "202"
        text = answer.body.decode()
        if answer.headers["content-type"].startswith("text/event-stream"):
            found = [line[6:] for line in text.splitlines() if line.startswith("data: ") and line[6:].strip()]
            message = json.loads(found[-1])
        else:
            message = json.loads(text)
        assert message["jsonrpc"] == "2.0", where
        if "error" in message:
            code = message["error"]["code"]
            assert -32768 <= code <= -32000 and code != -32603, where  # -32603 is "internal error"
            assert 0 < len(message["error"]["message"]) < LONGEST_REFUSAL, where
            return f"error {code}"
        if message["result"].get("isError"):
            return judge_refusal(message["result"]["structuredContent"], where)["code"]
        return "result"

    def settle(self) -> None:
        """The store is sound, and holds nothing that nobody might read."""
        assert self.store.verify().clean, self.store.verify()
        with Image.open(self._folder / "secret.png") as secret:
            digest = Digest.of(codec.encode(codec.normal(secret)))
        try:
            self.store.get(digest)
        except ImageNotFound:
            return
        raise AssertionError("a picture outside the allowed folder was read")

    def _judge_events(self, text: str) -> str:
        *_, last = text.strip().split("\n\n")
        kind, data = (line.partition(": ")[2] for line in last.splitlines())
        assert kind in ("result", "error"), text[-300:]
        if kind == "error":
            return f"event {judge_refusal(json.loads(data), text[-300:])['code']}"
        return "event result"

    def _check_leaks(self, body: bytes) -> None:
        assert str(self.store.path).encode() not in body, ("the store's folder is told", body[:500])
        assert b"Traceback" not in body, body[:500]


async def ask(app: ASGIApp, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer:
    """One request to an ASGI application, by a client that stays until it is answered."""
    done = anyio.Event()
    sent: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    answer: dict[str, Any] = {"status": 0, "headers": {}, "body": bytearray()}

    async def receive() -> Message:
        if sent:
            return sent.pop()
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer["status"] = message["status"]
            answer["headers"] = {key.decode(): value.decode("latin-1") for key, value in message["headers"]}
        else:
            answer["body"] += message.get("body", b"")
            if not message.get("more_body"):
                done.set()

    raw = path.encode("utf-8", "surrogateescape")
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": raw.decode("utf-8", "replace"), "raw_path": raw, "query_string": b"", "root_path": "",
        "headers": [
            (name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in headers.items()
        ],
        "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8765), "state": {},
    }  # fmt: skip
    with anyio.fail_after(PATIENCE_S):
        await app(scope, receive, send)
    return Answer(answer["status"], answer["headers"], bytes(answer["body"]))
