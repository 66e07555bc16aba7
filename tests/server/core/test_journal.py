"""The journal: what a killed server had in hand is interrupted, what others have in hand is not."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from omnigen2.model import OmniGen2
from server import journal as module
from server.app import App
from server.journal import Journal
from tests.server.core.conftest import HeldEngine, call
from tools.base import ToolError

KILLED = """
import sys, time
from pathlib import Path
from server.journal import Journal
journal = Journal(Path(sys.argv[1]))
journal.begin("job_1", "ann", "generate_image")
print("begun", flush=True)
sys.stdin.read()
"""


def start_another(store: Path) -> "subprocess.Popen[str]":
    """A server in another process that has begun a job of ann's."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def kill(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate(timeout=30)


@pytest.mark.anyio
async def test_after_a_kill_and_a_restart_get_job_says_interrupted_and_what_to_do(
    make_app: Callable[..., App], omnigen: OmniGen2, tmp_path: Path
) -> None:
    kill(start_another(tmp_path / "store"))
    async with make_app(lambda: HeldEngine(omnigen)) as app:
        status = await call(app, "get_job", job_id="job_1")
        assert status.status == "interrupted"
        assert "with the same seed it gives the same result" in status.line()
        assert (await call(app, "cancel_job", job_id="job_1")).status == "interrupted"


def test_a_job_of_another_living_server_is_running_until_that_one_is_gone(tmp_path: Path) -> None:
    other = start_another(tmp_path)
    mine = Journal(tmp_path)
    try:
        entry = mine.find("job_1", "ann")
        assert entry is not None and entry.state == "running"
        assert mine.find("job_1", "bob") is None
        kill(other)
        entry = mine.find("job_1", "ann")
        assert entry is not None and entry.state == "interrupted"
    finally:
        mine.close()
    assert list((tmp_path / "jobs").glob("*.alive")) == []


def test_how_a_job_ended_outlives_the_server(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    for job in ("done", "failed", "open"):
        first.begin(job, "ann", "generate_image")
    first.end("done", "done", '{"a": 1}', None)
    first.end("failed", "failed", None, ToolError("out_of_memory", "Too large.", "Ask for less."))
    first.close()
    second = Journal(tmp_path)
    try:
        done, failed, left = (second.find(job, "ann") for job in ("done", "failed", "open"))
        assert done is not None and (done.state, done.result) == ("done", '{"a": 1}')
        assert failed is not None and failed.error is not None
        assert (failed.error.code, failed.error.advice) == ("out_of_memory", "Ask for less.")
        assert left is not None and left.state == "interrupted"
    finally:
        second.close()


def test_only_the_newest_jobs_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT", 2)
    journal = Journal(tmp_path)
    for number in range(5):
        journal.begin(str(number), "ann", "x")
    kept = [number for number in range(5) if journal.find(str(number), "ann")]
    journal.close()
    assert kept == [3, 4]
