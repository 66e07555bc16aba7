"""The process ends quietly, with its status, also while a model loads on a thread that nothing can stop."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.cli import main as cli

PLUGIN = """
import sys
from omnigen2.checkpoints.card import published_card
from omnigen2.factory import OneModel
from server.hookspecs import hookimpl

def load(device, dtype):
    import torch
    print("model loads", file=sys.stderr, flush=True)
    picture, weights = torch.ones(1, 8, 32, 32), torch.ones(8, 8, 3, 3)
    while True:
        torch.nn.functional.conv2d(picture, weights)

@hookimpl
def register_backends(register):
    register("endless", OneModel("endless", published_card("endless"), load))
"""
HELLO = [
    {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-06-18",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    },
    {"jsonrpc": "2.0", "method": "notifications/initialized"},
    {"jsonrpc": "2.0", "id": 2, "method": "tools/list"},
]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command in a process of its own, where a plugin brings a model that never ends loading."""
    (tmp_path / "endless.py").write_text(PLUGIN)
    about = tmp_path / "endless-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: endless\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[omnigen2_mcp]\nendless = endless\n")
    environment = {
        "PYTHONPATH": str(tmp_path),
        "OMNIGEN2_MODEL": "endless",
        "OMNIGEN2_STORE": str(tmp_path / "store"),
    }
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        # As on a terminal: the shell of a job in the background has it ignore Ctrl-C.
        heeding = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        command = [sys.executable, "-c", f"{heeding}; from server.cli.main import main; main()", *words]
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=os.environ | environment
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def wait_for_loading(process: "subprocess.Popen[str]") -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if "model loads" in line:
            return
    raise AssertionError("the process ended before the model was loaded")


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """The exit status, and what else was printed on stderr beside the log."""
    _, printed = process.communicate(timeout=60)
    return process.returncode, "".join(
        line for line in printed.splitlines(keepends=True) if not line.startswith("{")
    )


@pytest.mark.parametrize("how", ["stdin", "SIGTERM"])
def test_a_server_ends_while_its_model_loads(start: Start, how: str) -> None:
    process = start("serve")
    assert process.stdin is not None
    process.stdin.write("".join(json.dumps(message) + "\n" for message in HELLO))
    process.stdin.flush()
    wait_for_loading(process)
    if how == "stdin":
        process.stdin.close()
        process.stdin = None
    else:
        process.send_signal(signal.SIGTERM)
    assert ended(process) == (0, "")


def test_a_server_over_http_ends_while_its_model_loads(start: Start) -> None:
    process = start("serve", "--transport", "http", "--port", "0")
    wait_for_loading(process)
    process.send_signal(signal.SIGTERM)
    status, printed = ended(process)
    assert status in (0, -signal.SIGTERM) and printed == ""


def test_a_command_is_interrupted_while_its_model_loads(start: Start) -> None:
    process = start("generate", "a red circle")
    wait_for_loading(process)
    process.send_signal(signal.SIGINT)
    assert ended(process) == (cli.INTERRUPTED, "")


def test_exit_handlers_run_and_all_that_was_printed_arrives() -> None:
    code = (
        "import atexit, sys\n"
        "from server.ending import leave\n"
        "atexit.register(print, 'put away', file=sys.stderr)\n"
        "print('x' * 100_000)\n"
        "leave(3)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr, len(done.stdout)) == (3, "put away\n", 100_001)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_what_cannot_be_printed_is_a_failure() -> None:
    code = "from server.ending import leave; print('x'); leave(0)"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, env=buffered)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(("given", "status"), [(None, 0), (3, 3), ("it is broken", cli.FAILED)])
def test_a_command_may_end_the_process_itself(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: object, status: int
) -> None:
    def command_line(words: object) -> Callable[..., None]:
        def leave(words: object) -> None:
            raise SystemExit(given)

        return leave

    monkeypatch.setattr(cli, "command_line", command_line)
    assert cli.run(["leave"]) == status
    assert capsys.readouterr().err == ("it is broken\n" if isinstance(given, str) else "")
