"""A store that may only be read, such as a backup or another user's: all is shown, and nothing is changed."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest

from benchmarks.store_crash import noise
from server.app import build_app
from server.cli import store as commands
from server.settings import Settings
from storage import Digest, ImageStore
from storage.errors import Corrupt, StoreReadOnly
from tests.storage.test_maintenance import without_empty_folders
from tests.storage.test_no_room import not_writable

Protect = Callable[[Path], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def mounted_read_only(folder: Path) -> Iterator[None]:
    if os.geteuid() != 0 or subprocess.run(["mount", "--bind", folder, folder], check=False).returncode:
        pytest.skip("a read-only mount needs root")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(params=[not_writable, mounted_read_only], ids=["of another user", "on a read-only disk"])
def protect(request: pytest.FixtureRequest) -> Protect:
    return request.param


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that anybody may enter, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def fill(folder: Path) -> tuple[Digest, Digest]:
    with ImageStore(folder) as store:
        first = store.put(noise(1, (8, 8)), label="first").id
        second = store.put(noise(2, (8, 8))).id
        store.record(tool="edit_image", parameters={"instruction": "a cat"}, inputs=[first], outputs=[second])
        store.pin(second)
    without_empty_folders(folder)
    return first, second


def damage(path: Path) -> None:
    path.write_bytes(b"\xee" * 9000)


def outdated(path: Path) -> None:
    """As a backup that was made while the index was behind: a row is missing, another is too many."""
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM images WHERE key = (SELECT max(key) FROM images)")
        db.execute("INSERT INTO images VALUES (1, zeroblob(32), 1, 1, 1, 1)")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


INDEXES: dict[str, Callable[[Path], object]] = {
    "whole": lambda path: None,
    "missing": lambda path: path.unlink(),
    "empty": emptied,
    "damaged": damage,
    "outdated": outdated,
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "unreadable": lambda path: path.chmod(0),
}


@pytest.mark.parametrize("index", INDEXES)
def test_a_store_that_may_only_be_read_shows_everything(folder: Path, protect: Protect, index: str):
    first, second = fill(folder / "store")
    INDEXES[index](folder / "store" / "index.sqlite")
    with protect(folder / "store"):
        before = {path: path.lstat().st_mtime_ns for path in (folder / "store").rglob("*")}
        with ImageStore(folder / "store") as store:
            assert store.read_only
            assert [image.id for image in store.list().images] == [second, first]
            assert [image.id for image in store.list(query="cat").images] == [second]
            assert store.get(first.hex[:8]).label == "first" and store.get(second).pinned
            assert store.open(first).size == (8, 8) and store.preview(second)[1] == "image/jpeg"
            assert [step.image.id for step in store.lineage(second)] == [first, second]
            found = store.find_equal(tool="edit_image", parameters={"instruction": "a cat"}, inputs=[first])
            assert found is not None and found.outputs == (second,)
            with store.hold([first]) as (held,):
                assert held.id == first
            paths = store.export([second], folder / "out")
            assert store.verify().clean and store.usage().images == 2
            assert store.collect(dry_run=True, grace=timedelta(0)).images == ()
        assert {path: path.lstat().st_mtime_ns for path in (folder / "store").rglob("*")} == before
    with ImageStore(folder / "other") as other:
        assert len(other.import_(paths[0].parent).images) == 2


def test_a_store_that_may_only_be_read_refuses_every_change_in_words(folder: Path, protect: Protect):
    first, second = fill(folder / "store")
    with protect(folder / "store"), ImageStore(folder / "store", quota_bytes=10**6) as store:
        for change in (
            lambda: store.put(noise(3, (8, 8))),
            lambda: store.label(first, "other"),
            lambda: store.pin(first),
            lambda: store.record(tool="x", parameters={}, outputs=[first]),
            lambda: store.put_made([noise(4, (8, 8))], tool="x", parameters={}),
            lambda: store.rebuild_index(),
            lambda: store.collect(),
            lambda: store.refuse_if_read_only(),
        ):
            with pytest.raises(StoreReadOnly, match=r"cannot be written.*make the folder writable"):
                change()
        assert store.get(first).label == "first" and store.usage().images == 2
        assert store.list(limit=1).images[0].id == second


def test_what_is_damaged_in_a_store_that_may_only_be_read_is_named(folder: Path, protect: Protect):
    first, second = fill(folder / "store")
    name = f"blobs/sha256/{second.hex[:2]}/{second.hex[2:]}"
    path = folder / "store" / name
    path.chmod(0o600)
    path.write_bytes(b"damage")
    (folder / "store" / "blobs" / "stray").write_text("mine")
    with protect(folder / "store"), ImageStore(folder / "store") as store:
        for _ in range(2):
            found = store.verify()
            assert not found.clean and set(found.left) == {name, "blobs/stray"} and not found.quarantined
        with pytest.raises(Corrupt):
            store.read(second)
        assert store.open(first).size == (8, 8)


def test_an_empty_folder_that_cannot_be_written_is_not_a_store(folder: Path, protect: Protect):
    (folder / "store").mkdir()
    with protect(folder / "store"), pytest.raises(StoreReadOnly):
        ImageStore(folder / "store")
    with protect(folder / "store"), pytest.raises(StoreReadOnly):
        ImageStore(folder / "store" / "below")


def test_a_store_becomes_writable_when_it_is_opened_again(folder: Path, protect: Protect):
    fill(folder / "store")
    with protect(folder / "store"), ImageStore(folder / "store") as store:
        assert store.read_only
    with ImageStore(folder / "store") as store:
        assert not store.read_only and store.put(noise(3, (8, 8))).width == 8


def test_the_commands_that_look_work_on_a_store_that_may_only_be_read(
    folder: Path, protect: Protect, capsys: pytest.CaptureFixture[str]
):
    _, second = fill(folder / "store")
    with protect(folder / "store"):
        store: dict[str, Any] = {"store": str(folder / "store")}
        commands.list_images(**store)
        commands.show_image(second.hex[:12], **store)
        commands.export(second.hex[:12], to=folder / "out", **store)
        commands.verify(**store)
        with pytest.raises(StoreReadOnly):
            commands.label(second.hex, "other", **store)
    printed = capsys.readouterr().out
    assert second.hex[:12] in printed and "a cat" in printed and "2 images" in printed


def test_a_server_starts_with_a_store_that_may_only_be_read(folder: Path, protect: Protect):
    first, _ = fill(folder / "store")

    async def serve() -> None:
        async with build_app(Settings(store=str(folder / "store"), model="nano")) as app:
            assert app.store.read_only and app.store.get(first).label == "first"

    with protect(folder / "store"):
        anyio.run(serve)
