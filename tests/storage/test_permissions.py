"""Who may use the files of a store, and what a store in memory leaves on disk: nothing."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from server.journal import Journal
from storage import Digest, ImageStore
from storage.errors import StoreBusy
from storage.objects import open_store


@pytest.fixture(params=[0o000, 0o022, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def fill(folder: Path) -> ImageStore:
    """A store with everything that a store can make: left open, so that all its files are there."""
    store = ImageStore(folder, quota_bytes=10**6)
    image = store.put(Image.new("RGB", (4, 4)), label="secret")
    damaged = store.put(Image.new("RGB", (5, 5)), label="damaged")
    path = folder / "blobs" / "sha256" / damaged.id.hex[:2] / damaged.id.hex[2:]
    path.unlink()
    path.write_bytes(b"damage")
    (folder / "blobs" / "stray").write_bytes(b"stray")
    store.verify()
    with store.hold([image.id]):
        store.collect(dry_run=True)
    store.rebuild_index()
    Journal(folder).begin("1", "ann", "generate_image")
    return store


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in folder.rglob("*")}


def test_everything_a_store_makes_is_its_owners_whatever_the_umask(tmp_path: Path, umask: int):
    with fill(tmp_path / "data" / "store") as store:
        assert store.path is not None
        found = modes(store.path)
        open_to_others = {name: oct(mode) for name, mode in found.items() if mode & 0o077}
        assert open_to_others.keys() <= {"quarantine/stray-stray"}, open_to_others  # moved there as it was
        blobs = [name for name in found if name.startswith(("blobs/", "records/")) and len(name) > 60]
        assert len(blobs) >= 3 and all(found[name] == 0o400 for name in blobs)
        assert {
            "index.sqlite",
            "index.sqlite-wal",
            "jobs/jobs.sqlite",
            "jobs/jobs.sqlite-wal",
        } <= found.keys()
        for folder in (store.path, store.path.parent):
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_store_in_a_folder_that_is_open_is_not(tmp_path: Path, umask: int):
    (tmp_path / "store").mkdir(0o755)
    (tmp_path / "store").chmod(0o755)
    with ImageStore(tmp_path / "store") as store:
        store.put(Image.new("RGB", (4, 4)))
        assert not [name for name, mode in modes(tmp_path / "store").items() if mode & 0o077]


def test_what_the_host_opens_stays_open_for_what_is_made_later(tmp_path: Path):
    folder = tmp_path / "store"
    with ImageStore(folder) as store:
        store.put(Image.new("RGB", (4, 4)))
        for path in (folder, *folder.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            path.chmod(mode | (mode & 0o500) >> 3)
    (folder / "index.sqlite").unlink()
    with ImageStore(folder) as store:
        for number in range(5, 12):
            store.put(Image.new("RGB", (number, 4)), label="new")
    closed = {name: oct(mode) for name, mode in modes(folder).items() if not mode & 0o040}
    assert not closed, closed
    assert not {name for name, mode in modes(folder).items() if mode & 0o037 & ~0o010}


def test_a_store_of_an_earlier_version_is_closed_when_it_is_first_opened(tmp_path: Path):
    folder = tmp_path / "store"
    with ImageStore(folder) as store:
        image = store.put(Image.new("RGB", (4, 4)), label="mine")
    with sqlite3.connect(folder / "index.sqlite") as db:
        db.execute("PRAGMA user_version = 2")
    db.close()
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (folder / "mine").mkdir()
    (folder / "mine").chmod(0o755)
    with ImageStore(folder) as store:
        assert store.get(image.id) == image
        store.put(Image.new("RGB", (5, 4)))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE((folder / part).stat().st_mode) for part in ("blobs", "records", "locks")} == {0o700}
    assert stat.S_IMODE((folder / "index.sqlite").stat().st_mode) == 0o600
    assert stat.S_IMODE((folder / "mine").stat().st_mode) == 0o755


SERVING = """
import os, sys, time
from PIL import Image
from server.journal import Journal
from storage.objects import open_store
store = open_store(sys.argv[1])
image = store.put(Image.new("RGB", (4, 4)), label="a very secret prompt")
store.record(tool="generate_image", parameters={"prompt": "a very secret prompt"}, outputs=[image.id])
journal = Journal(store.path)
journal.begin("1", "ann", "generate_image")
journal.end("1", "done", "a very secret prompt", None)
store.verify(), store.rebuild_index()
assert store.list(query="secret").images and journal.find("1", "ann").state == "done"
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("url", "number"),
    [
        ("memory://", signal.SIGTERM),
        ("memory:///", signal.SIGKILL),
        ("memory://studio", signal.SIGKILL),
        ("memory://a/b/", signal.SIGTERM),
    ],
)
def test_a_store_in_memory_leaves_nothing_however_it_ends(tmp_path: Path, url: str, number: signal.Signals):
    place = {"TMPDIR": str(tmp_path), "HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path)}
    command = [sys.executable, "-c", SERVING, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | place, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        assert not list(tmp_path.iterdir())
        process.send_signal(number)
        process.wait(30)
    assert not list(tmp_path.iterdir())


def test_a_store_in_memory_is_used_by_many_threads_and_again_after_it_was_closed():
    with open_store("memory://threads", quota_bytes=10**6) as store:
        failed: list[Exception] = []

        def work(number: int) -> None:
            try:
                for step in range(8):
                    image = store.put(Image.new("RGB", (number + 1, step + 1)), label=f"of {number}")
                    assert store.open(image.id).size == (number + 1, step + 1)
                    with store.hold([image.id]):
                        assert store.collect().kept and len(store.lineage(image.id)) == 1
            except StoreBusy:
                pass  # another one collects
            except Exception as error:
                failed.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failed and store.verify().clean
        before = store.list()
    assert store.list() == before and store.usage().images >= 6


def test_a_held_image_of_a_store_in_memory_is_not_collected():
    with open_store("memory://held") as store:
        image = store.put(Image.new("RGB", (3, 3)))
        nothing: dict[str, Any] = {"grace": timedelta(0), "keep_accessed": timedelta(0)}
        with store.hold([image.id]):
            assert store.collect(**nothing).images == ()
        assert store.collect(**nothing).images == (image.id,)
        assert store.find_equal(tool="x", parameters={}) is None and Digest.of(b"") != image.id
