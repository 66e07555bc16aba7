"""The journal: what a killed server had in hand is interrupted, what others have in hand is not."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from omnigen2.model import OmniGen2
from server import journal as module
from server.app import App
from server.journal import Journal
from tests.server.core.conftest import SMALL, HeldEngine, call
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


def _write(data: bytes) -> Callable[[Path], object]:
    return lambda file: file.write_bytes(data)


def _as_database(*statements: str) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        file.unlink()
        database = sqlite3.connect(file)
        for statement in statements:
            database.execute(statement)
        database.commit()
        database.close()

    return make


def _as_folder(file: Path) -> None:
    file.unlink()
    (file / "inside").mkdir(parents=True)


def _damaged_inside(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)  # the header page alone is right
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "garbage": _write(b"garbage " * 2000),
    "a text": _write(b"SQLite format 3\0 but no more than that"),
    "truncated": lambda file: os.truncate(file, 5000),
    "damaged inside": _damaged_inside,
    "a folder": _as_folder,
    "other columns": _as_database("CREATE TABLE jobs (a, b)"),
    "a view": _as_database("CREATE VIEW jobs AS SELECT 1 AS id"),
    "a column too many": _as_database(
        "CREATE TABLE jobs (number INTEGER PRIMARY KEY, id TEXT, principal TEXT, tool TEXT, owner TEXT,"
        " state TEXT, result TEXT, code TEXT, message TEXT, advice TEXT, more TEXT NOT NULL)"
    ),
    "a log that is a folder": lambda file: file.with_name("jobs.sqlite-wal").mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_journal_that_cannot_be_used_is_kept_aside_and_begun_anew(
    damage: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = Journal(tmp_path)
    for number in range(200):
        old.begin(f"old{number}", "ann", "generate_image")
    old.close()
    damage(tmp_path / "jobs" / "jobs.sqlite")
    journal = Journal(tmp_path)
    try:
        journal.begin("new", "ann", "generate_image")
        assert journal.find("new", "ann") is not None and journal.find("old1", "ann") is None
    finally:
        journal.close()
    [kept] = [file.name for file in (tmp_path / "jobs").glob("jobs.sqlite.damaged-*") if file.name[-4] != "-"]
    assert any(kept in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("content", [b"", None], ids=["empty", "missing"])
def test_a_journal_that_is_empty_or_missing_is_simply_begun(content: bytes | None, tmp_path: Path) -> None:
    Journal(tmp_path).close()
    file = tmp_path / "jobs" / "jobs.sqlite"
    file.unlink()
    if content is not None:
        file.write_bytes(content)
    journal = Journal(tmp_path)
    journal.begin("new", "ann", "generate_image")
    assert journal.find("new", "ann") is not None
    journal.close()


def test_files_of_the_journals_folder_may_be_anything(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file where the folder should be")
    journal = Journal(tmp_path)
    (tmp_path / "jobs" / "other.alive").mkdir()
    journal.close()
    (tmp_path / "jobs" / "none.alive").symlink_to("nowhere")
    Journal(tmp_path).close()


def test_a_journal_of_the_version_before_is_read(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    database = sqlite3.connect(tmp_path / "jobs" / "jobs.sqlite")
    database.executescript("""
        CREATE TABLE jobs (
            number INTEGER PRIMARY KEY, id TEXT UNIQUE NOT NULL, principal TEXT NOT NULL, tool TEXT NOT NULL,
            owner TEXT NOT NULL, state TEXT NOT NULL, result TEXT, code TEXT, message TEXT, advice TEXT
        ) STRICT;
        INSERT INTO jobs VALUES (7, 'job_1', 'ann', 'generate_image', 'x', 'done', '{}', NULL, NULL, NULL);
        INSERT INTO jobs VALUES (8, 'job_2', 'ann', 'generate_image', 'x', 'odd', NULL, NULL, NULL, NULL);
        INSERT INTO jobs VALUES (9, 'job_3', 'ann', 'generate_image', 'x', 'failed', NULL, 'odd', 'm', 'a');
    """)
    database.close()
    journal = Journal(tmp_path)
    try:
        entry = journal.find("job_1", "ann")
        assert entry is not None and (entry.state, entry.result) == ("done", "{}")
        assert journal.find("job_2", "ann") is None
        odd = journal.find("job_3", "ann")
        assert odd is not None and odd.error is not None and odd.error.code == "internal"
    finally:
        journal.close()


def test_a_journal_that_breaks_while_it_is_used_is_begun_anew(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    other = sqlite3.connect(tmp_path / "jobs" / "jobs.sqlite")
    other.execute("DROP TABLE jobs")
    other.commit()
    other.close()
    journal.begin("new", "ann", "generate_image")
    assert journal.find("new", "ann") is not None
    journal.close()


@pytest.mark.anyio
async def test_the_result_of_another_version_is_refused_by_name(
    make_app: Callable[..., App], omnigen: OmniGen2
) -> None:
    async with make_app(lambda: HeldEngine(omnigen)) as app:
        app.dispatcher.journal.begin("job_1", "ann", "generate_image")
        app.dispatcher.journal.end("job_1", "done", '{"other": 1}', None)
        with pytest.raises(ToolError) as error:
            await call(app, "get_job", job_id="job_1")
        assert error.value.code == "invalid_argument" and "another version" in str(error.value)


@pytest.mark.anyio
async def test_a_result_is_made_again_from_its_record(
    make_app: Callable[..., App], engine: HeldEngine
) -> None:
    async with make_app(lambda: engine) as app:
        made = await call(app, "generate_image", prompt="circle " * 1100, **SMALL)
        journal = app.dispatcher.journal
        kept = made.to_journal()
        assert made.notes and "images" not in kept
        before = {**made.model_dump(mode="json"), "a field since renamed": 1}  # as older versions wrote it
        gone = {"record": "sha256:" + "0" * 64, "notes": []}
        for job_id, text in (("new", kept), ("old", json.dumps(before)), ("gone", json.dumps(gone))):
            journal.begin(job_id, "ann", "generate_image")
            journal.end(job_id, "done", text, None)
        for job_id in ("new", "old"):
            status = await call(app, "get_job", job_id=job_id)
            assert status.result == made.model_copy(update={"job_id": job_id})
        with pytest.raises(ToolError) as error:
            await call(app, "get_job", job_id="gone")
        assert error.value.code == "image_not_found" and "no longer stored" in str(error.value)
