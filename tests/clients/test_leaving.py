"""Clients of all kinds give up on a call and stay connected: the job ends. Or they wait, and get a job id."""

import json
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import anyio
import fastmcp
import pytest
from anyio import to_thread
from fastmcp.client.transports import StdioTransport
from mcp import Client, StdioServerParameters

from tests.clients.conftest import COMMAND, HERE, listening, log_of, settings
from tests.clients.conversation import SMALL
from tests.clients.test_node import SDKS
from tests.plugins import with_plugins

pytestmark = pytest.mark.anyio
GIVE_UP_S = 0.7
ENDED_S = 5.0
"""Seconds after which the job must have ended. A step takes milliseconds, but the machine may be busy."""
LONG = SMALL | {"steps": 1000}
WAITED_FOR = SMALL | {"steps": 100}
PYTHON = ("python, older handshake", "fastmcp", "python, sessionless")
TYPESCRIPT = {"typescript 1": "legacy", "typescript 2": "legacy", "typescript 2, sessionless": "auto"}
"""The mode of negotiation, by client. Over stdio, which needs a server for each, the last one is left out."""
Server = str | list[str]
"""Where a server is: a URL, or the command that starts it."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    environment = settings(tmp_path_factory.mktemp("http"))
    with listening(environment) as url:
        yield f"{url}/mcp", log_of(environment)


@pytest.fixture
def stdio(environment: dict[str, str]) -> tuple[Server, Path]:
    log = log_of(environment)
    given = [f"{name}={environment[name]}" for name in ("OMNIGEN2_STORE", "OMNIGEN2_MODEL")]
    return ["env", *given, "sh", "-c", f'exec "$@" 2>"{log}"', "sh", *COMMAND], log


@pytest.fixture
def served(request: pytest.FixtureRequest, transport: str) -> tuple[Server, Path]:
    """A server over a transport, and its log."""
    return request.getfixturevalue(transport)


def over_both(kinds: Sequence[str]) -> pytest.MarkDecorator:
    pairs = [("http", kind) for kind in kinds] + [("stdio", kind) for kind in kinds[:2]]
    return pytest.mark.parametrize(("transport", "kind"), pairs)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that hands work over to a job after a tenth of a second."""
    folder = tmp_path_factory.mktemp("impatient")
    with listening(with_plugins(settings(folder), folder / "site", "tests.clients.impatient")) as url:
        yield f"{url}/mcp"


def ended(log: Path) -> list[dict[str, Any]]:
    """The lines of a log on jobs that have ended."""
    lines = log.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if '"job ended"' in line]


def ends(log: Path, before: int, given_up: float) -> None:
    """Wait until another job than those `before` has ended; it must have done so soon after `given_up`."""
    while len(found := ended(log)) <= before:
        assert time.time() < given_up + ENDED_S, "the job goes on"
        time.sleep(0.02)
    late = datetime.fromisoformat(found[-1]["timestamp"]).timestamp() - given_up
    print(f"ended {1000 * late:.0f} ms after the client gave up")
    assert found[-1]["state"] == "cancelled" and found[-1]["queued_s"] < GIVE_UP_S
    assert late < ENDED_S


@asynccontextmanager
async def connected(kind: str, server: Server) -> AsyncIterator[Any]:
    """A client in Python; the two kinds have nearly the same methods."""
    if kind == "fastmcp":
        target: Any = server if isinstance(server, str) else StdioTransport(server[0], server[1:])
        async with fastmcp.Client(target) as client:
            yield client
        return
    where = server if isinstance(server, str) else StdioServerParameters(command=server[0], args=server[1:])
    mode = "legacy" if "older" in kind else "auto"
    async with Client(where, mode=mode) as client:  # type: ignore[arg-type]
        yield client


@over_both(PYTHON)
async def test_a_client_in_python_gives_up_and_stays(kind: str, served: tuple[Server, Path]) -> None:
    server, log = served
    timeout = "timeout" if kind == "fastmcp" else "read_timeout_seconds"
    async with connected(kind, server) as client:
        await client.call_tool("generate_image", {"prompt": "warm", **SMALL})
        before = len(ended(log))
        with anyio.move_on_after(GIVE_UP_S) as gave_up:
            await client.call_tool("generate_image", {"prompt": "abort", **LONG})
        assert gave_up.cancelled_caught
        await to_thread.run_sync(ends, log, before, time.time())
        with pytest.raises(Exception, match=r"(?i)timed out"):
            await client.call_tool("generate_image", {"prompt": "time out", **LONG}, **{timeout: GIVE_UP_S})
        await to_thread.run_sync(ends, log, before + 1, time.time())
        await client.call_tool("list_images", {})


def plan(node_modules: Path, kind: str, server: Server, **more: Any) -> str:
    """What a client in TypeScript is to do."""
    version = {"typescript 1": "first"}.get(kind, "second")
    client, stdio = SDKS[version]
    transport = stdio if isinstance(server, list) else client.replace("index.js", "streamableHttp.js")
    modules = [str(node_modules / "@modelcontextprotocol" / path) for path in (client, transport)]
    return json.dumps(
        {"modules": modules, "mode": TYPESCRIPT[kind], "server": server, "small": SMALL, **more}
    )


@over_both(list(TYPESCRIPT))
def test_a_client_in_typescript_gives_up_and_stays(
    node_modules: Path, kind: str, served: tuple[Server, Path]
) -> None:
    server, log = served
    todo = plan(node_modules, kind, server, action="give up", long=LONG)
    command = ["node", str(HERE / "leaving.cjs"), todo]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdin is not None and client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        for before in (len(ended(log)), len(ended(log)) + 1):
            given_up = client.stdout.readline()
            ends(log, before, float(given_up))
            assert client.poll() is None, "the client has left"
            client.stdin.write("\n")
            client.stdin.flush()
    assert client.returncode == 0


def check_handed_over(answer: dict[str, Any], job: dict[str, Any]) -> None:
    assert answer["status"] == "queued" and answer["images"] == []
    assert any("goes on in the background" in note for note in answer["notes"])
    assert job["status"] == "done" and len(job["result"]["images"]) == 1


@pytest.mark.parametrize("kind", [kind for kind in PYTHON if kind != "fastmcp"])  # it asks for progress
async def test_a_client_in_python_that_asks_for_no_progress_gets_a_job(kind: str, impatient: str) -> None:
    async with connected(kind, impatient) as client:
        answer = await client.call_tool("generate_image", {"prompt": kind, **WAITED_FOR})
        given = {"job_id": answer.structured_content["job_id"], "wait_seconds": 50}
        job = await client.call_tool("get_job", given)
    check_handed_over(answer.structured_content, job.structured_content)


@pytest.mark.parametrize("kind", TYPESCRIPT)
def test_a_client_in_typescript_that_asks_for_no_progress_gets_a_job(
    node_modules: Path, kind: str, impatient: str
) -> None:
    todo = plan(node_modules, kind, impatient, action="wait", long={"prompt": kind, **WAITED_FOR})
    command = ["node", str(HERE / "leaving.cjs"), todo]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100).stdout
    check_handed_over(*json.loads(printed))
