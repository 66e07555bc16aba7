"""The index is a cache: whatever lies in its place, the store opens, answers right, and goes on."""

import itertools
import os
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.store_crash import inspect, noise
from storage import Digest, ImageStore
from storage.errors import IndexDamaged, StoreError
from storage.index.database import Index
from storage.index.tables import SCHEMA_VERSION
from tests.storage.test_maintenance import without_empty_folders

FILES = ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Digest]:
    """A store with a history, made once; and its last image."""
    folder = tmp_path_factory.mktemp("template") / "store"
    with ImageStore(folder) as store:
        images = [store.put(noise(number, (8, 8)), label=f"number {number}").id for number in range(8)]
        for before, after in itertools.pairwise(images):
            words = {"instruction": "a cat " * 200}
            store.record(tool="edit_image", parameters=words, inputs=[before], outputs=[after])
    without_empty_folders(folder)
    return folder, images[-1]


@pytest.fixture
def last(tmp_path: Path, template: tuple[Path, Digest]) -> Digest:
    """The last image of a store in `tmp_path`."""
    shutil.copytree(template[0], tmp_path / "store")
    return template[1]


def foreign(path: Path, script: str) -> None:
    for file in FILES:
        path.with_name(file).unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)


def changed(path: Path, script: str) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)


def written(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def directory(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()
    (path / "mine").write_text("mine")


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def link(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere/at/all")


def middle(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xee" * (path.stat().st_size - 2 * 4096))


def bodies(path: Path) -> None:
    """Damage that SQLite cannot see."""
    changed(path, "UPDATE records SET body = '{' || substr(body, 1, 40)")


def beside(name: str, do: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda path: do(path.with_name(name))


VERSION = f"PRAGMA user_version = {SCHEMA_VERSION};"
DAMAGE: dict[str, Callable[[Path], None]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: written(path, b""),
    "garbage": lambda path: written(path, b"\xee" * 20_000),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2 + 100),
    "cut to its header": lambda path: os.truncate(path, 100),
    "damaged in its middle": middle,
    "records that are none": bodies,
    "digests that are none": lambda path: changed(path, "UPDATE images SET digest = x'00' || key"),
    "texts that are none": lambda path: changed(path, "UPDATE notes SET value = CAST(x'ff' AS TEXT)"),
    "another table": lambda path: changed(path, "DROP TABLE notes"),
    "another column": lambda path: changed(path, "ALTER TABLE notes RENAME COLUMN value TO worth"),
    "a trigger": lambda path: changed(
        path, "CREATE TRIGGER no BEFORE INSERT ON images BEGIN SELECT raise(ABORT, 'no'); END"
    ),
    "a view": lambda path: changed(path, "DROP TABLE totals; CREATE VIEW totals AS SELECT 1 images, 2 bytes"),
    "views, old": lambda path: foreign(
        path, "CREATE VIEW images AS SELECT 1; CREATE VIEW accesses AS SELECT 2; PRAGMA user_version = 1"
    ),
    "foreign": lambda path: foreign(path, "CREATE TABLE images (mine); INSERT INTO images VALUES (1)"),
    "foreign, same version": lambda path: foreign(path, "CREATE TABLE images (mine);" + VERSION),
    "empty, same version": lambda path: foreign(path, VERSION),
    "foreign, large pages": lambda path: foreign(
        path, "PRAGMA page_size = 65536; CREATE TABLE records (mine); PRAGMA user_version = 99"
    ),
    "a newer version": lambda path: changed(path, f"PRAGMA user_version = {SCHEMA_VERSION + 1}"),
    "a directory": directory,
    "a pipe": pipe,
    "a dangling link": link,
    "a log of garbage": beside("index.sqlite-wal", lambda path: written(path, b"\xee" * 9000)),
    "a log that is a directory": beside("index.sqlite-wal", directory),
    "a log that is a pipe": beside("index.sqlite-wal", pipe),
    "shared memory that is a directory": beside("index.sqlite-shm", directory),
    "shared memory of garbage": beside("index.sqlite-shm", lambda path: written(path, b"\xee" * 40_000)),
}


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """A pipe must not be waited for: the alarm ends the test run, whatever it is in."""
    signal.alarm(120)
    yield
    signal.alarm(0)


def answers(folder: Path, last: Digest) -> tuple[object, ...]:
    """What a store says, which must be the same after any damage."""
    with ImageStore(folder) as store:
        return (
            store.list(limit=100),
            store.list(query="cat").images,
            [step.record_id for step in store.lineage(last)],
            store.get(last).label,
            store.usage(),
            store.collect(dry_run=True).images,
        )


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_store_opens_whatever_lies_in_place_of_its_index(tmp_path: Path, last: Digest, damage: str):
    before = answers(tmp_path / "store", last)
    DAMAGE[damage](tmp_path / "store" / "index.sqlite")
    assert answers(tmp_path / "store", last) == before
    with ImageStore(tmp_path / "store") as store:
        assert store.put(noise(99, (8, 8)), label="new").label == "new"
        assert store.verify().clean
    inspect(tmp_path / "store")


@pytest.mark.parametrize("damage", DAMAGE)
def test_an_index_that_breaks_in_use_is_built_again_at_once(tmp_path: Path, last: Digest, damage: str):
    before = answers(tmp_path / "store", last)
    with ImageStore(tmp_path / "store") as store:
        store.list()
        store._repository.index.close()  # as the server does between two busy times: no page is remembered
        DAMAGE[damage](tmp_path / "store" / "index.sqlite")
        assert store.list(limit=100) == before[0]
        assert store.list(query="cat").images == before[1]
        assert [step.record_id for step in store.lineage(last)] == before[2]
        with store.hold([last]):
            assert store.put(noise(99, (8, 8)), label="new").label == "new"
        store.rebuild_index()
        assert store.verify().clean
    inspect(tmp_path / "store")


@pytest.mark.parametrize("damage", ["foreign", "views, old", "a newer version", "garbage", "a directory"])
def test_what_lay_in_place_of_the_index_is_kept(
    tmp_path: Path, last: Digest, damage: str, caplog: pytest.LogCaptureFixture
):
    path = tmp_path / "store" / "index.sqlite"
    DAMAGE[damage](path)
    content = path.read_bytes() if path.is_file() else (path / "mine").read_bytes()
    answers(tmp_path / "store", last)
    (folder,) = (tmp_path / "store" / "quarantine").iterdir()
    kept = folder / "index.sqlite"
    assert (kept.read_bytes() if kept.is_file() else (kept / "mine").read_bytes()) == content
    (line,) = [record.getMessage() for record in caplog.records if "index" in record.getMessage()]
    assert folder.name in line and str(tmp_path) not in line


def test_two_stores_that_see_the_damage_build_one_index(tmp_path: Path, last: Digest):
    first, second = ImageStore(tmp_path / "store"), ImageStore(tmp_path / "store")
    before = first.list(), second.list()
    for store in (first, second):
        store._repository.index.close()
    DAMAGE["garbage"](tmp_path / "store" / "index.sqlite")
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda store: store.list(), (first, second) * 4)) == [before[0]] * 8
    assert len(list((tmp_path / "store" / "quarantine").iterdir())) == 1
    image = first.put(noise(99, (8, 8)))
    assert second.list(limit=1).images == (image,) and second.lineage(last)
    first.close()
    second.close()


def test_a_statement_that_is_wrong_does_not_cost_the_index(tmp_path: Path, last: Digest):
    with ImageStore(tmp_path / "store") as store:
        before = store._repository.index.identity()
        for _ in range(2):
            with pytest.raises(StoreError):
                store._repository.query(
                    lambda db: db.execute("SELECT * FROM words WHERE words MATCH '\"'").fetchall()
                )
        assert (
            store._repository.index.identity() == before and not (tmp_path / "store" / "quarantine").exists()
        )


def test_an_index_that_cannot_be_built_again_is_an_error_not_a_loop(tmp_path: Path, last: Digest):
    with ImageStore(tmp_path / "store") as store:
        asked: list[int] = []

        def question(db: sqlite3.Connection) -> None:
            asked.append(1)
            raise IndexDamaged("damaged")

        with pytest.raises(IndexDamaged):
            store._repository.query(question)
        assert len(asked) == 2 and store.verify().clean


def test_an_index_of_this_version_is_ready_and_one_of_an_earlier_one_is_old(tmp_path: Path):
    index = Index(tmp_path / "index.sqlite")
    assert index.state() == "old"
    index.rebuild(lambda db: None)
    assert index.state() == "ready"
    changed(tmp_path / "index.sqlite", f"PRAGMA user_version = {SCHEMA_VERSION - 1}")
    assert index.state() == "old"


@pytest.mark.parametrize("how", ["verify", "open", "name"])
def test_an_index_whose_rows_contradict_each_other_is_built_again(tmp_path: Path, last: Digest, how: str):
    before = answers(tmp_path / "store", last)
    changed(tmp_path / "store" / "index.sqlite", "DELETE FROM images")
    if how == "open":  # after a crash
        (tmp_path / "store" / "locks" / "writers" / "0123456789abcdef").touch()
    with ImageStore(tmp_path / "store") as store:
        if how == "verify":
            assert store.verify().clean
        elif how == "name":
            assert store.get(last).id == last
    assert answers(tmp_path / "store", last) == before
