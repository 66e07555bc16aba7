"""Every file and folder of a store, broken in every way: what it is needed for is refused in words.

Everything else works. Run as another user than root, who may read everything.
"""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.store_crash import noise
from server.journal import Journal
from storage import Digest, ImageStore
from storage.errors import StoreError
from tests.storage.test_maintenance import without_empty_folders
from tests.storage.test_no_room import NOBODY


@dataclass
class Filled:
    """A store, and what is in it."""

    folder: Path
    first: Digest
    second: Digest
    record: Digest

    def place(self, name: str) -> Path:
        """A file or folder of the store by its name in the table."""
        files = {
            "an image": f"blobs/{self._path(self.second)}",
            "a record": f"records/{self._path(self.record)}",
            "images of two digits": f"blobs/{self._path(self.second)}/..",
        }
        return Path(os.path.normpath(self.folder / files.get(name, name)))

    @staticmethod
    def _path(digest: Digest) -> str:
        return f"sha256/{digest.hex[:2]}/{digest.hex[2:]}"


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def replaced_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        remove(path)
        make(path)

    return replace


def truncate(path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, path.stat().st_size // 2)


FAULTS: dict[str, Callable[[Path], None]] = {
    "garbage": replaced_by(lambda path: path.write_bytes(b"\xee" * 5000)),
    "empty": replaced_by(lambda path: path.write_bytes(b"")),
    "truncated": truncate,
    "missing": remove,
    "unreadable": lambda path: path.chmod(0),
    "a directory": replaced_by(lambda path: path.mkdir()),
    "a pipe": replaced_by(os.mkfifo),
    "a dangling link": replaced_by(lambda path: path.symlink_to("nowhere/at/all")),
}
CACHES = ("index.sqlite", "index.sqlite-wal", "index.sqlite-shm", "jobs/jobs.sqlite", "jobs/jobs.sqlite-wal",
          "tmp/left", "locks/writers/left", "locks/leases/left")  # fmt: skip
"""Whatever these are, everything works; but nothing is collected while it is not known what jobs need."""
TRUTH = ("an image", "a record")
"""If one of these is broken, everything but itself works, and `verify` takes it away."""
LOCKS = ("locks/write.lock", "locks/care.lock", "locks/quota.lock", "locks/index.lock")
FOLDERS = ("locks", "locks/writers", "locks/leases", "tmp", "quarantine", "jobs", "images of two digits")


@pytest.fixture(scope="module")
def template() -> Iterator[Filled]:
    """Made once, before root's rights are given up: Python itself may lie where only root can read."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o777)
    with ImageStore(top / "store", quota_bytes=10**7) as store:
        first = store.put(noise(1, (8, 8)), label="first").id
        second = store.put(noise(2, (8, 8))).id
        record = store.record(
            tool="edit_image", parameters={"instruction": "a cat"}, inputs=[first], outputs=[second]
        )
        store.verify()
        store.rebuild_index()
        store.collect()
    Journal(top / "store").close()
    without_empty_folders(top / "store")
    if os.geteuid() == 0:
        for path in (top / "store", *(top / "store").rglob("*")):
            os.chown(path, NOBODY, NOBODY)
    yield Filled(top / "store", first, second, record)
    shutil.rmtree(top)


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.fixture
def filled(template: Filled) -> Iterator[Filled]:
    """A copy to break."""
    top = Path(tempfile.mkdtemp())
    top.chmod(0o777)
    signal.alarm(120)  # nothing is waited for
    with as_nobody():
        shutil.copytree(template.folder, top / "store")
        (top / "store" / "quarantine").mkdir(exist_ok=True)
        for name in CACHES:
            (top / "store" / name).parent.mkdir(exist_ok=True)
            (top / "store" / name).touch()
        yield Filled(top / "store", template.first, template.second, template.record)
    signal.alarm(0)
    for path in (top, *top.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
    shutil.rmtree(top)


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Work that may be refused, if the refusal says where, or what to do."""
    try:
        yield
    except StoreError as error:
        assert error.advice, repr(error)
        assert name in str(error) or "make the folder writable" in error.advice, str(error)
        assert str(error.place) not in error.message


def cases(names: tuple[str, ...], *without: str) -> pytest.MarkDecorator:
    faults = [fault for fault in FAULTS if fault not in without]
    return pytest.mark.parametrize(("name", "fault"), [(name, fault) for name in names for fault in faults])


@cases(CACHES)
def test_a_cache_that_is_broken_stops_nothing(filled: Filled, name: str, fault: str):
    FAULTS[fault](filled.place(name))
    with ImageStore(filled.folder, quota_bytes=10**7) as store:
        assert [image.id for image in store.list().images] == [filled.second, filled.first]
        assert store.get(filled.first).label == "first" and store.open(filled.second).size == (8, 8)
        assert store.put(noise(3, (8, 8)), label="third").label == "third"
        assert store.verify().clean
        with named(name):
            assert store.collect().images == () and (name, fault) != ("locks/leases/left", "unreadable")
        store.rebuild_index()
        assert len(store.lineage(filled.second)) == 2 and store.usage().images == 3
    journal = Journal(filled.folder)
    journal.begin("1", "ann", "edit_image")
    assert journal.find("1", "ann")
    journal.close()


@cases(TRUTH)
def test_an_image_or_record_that_is_broken_costs_only_itself(filled: Filled, name: str, fault: str):
    FAULTS[fault](filled.place(name))
    with ImageStore(filled.folder, quota_bytes=10**7) as store:
        assert store.open(filled.first).size == (8, 8) and store.get(filled.first).label == "first"
        assert len(store.list().images) == 2
        with contextlib.suppress(StoreError):
            store.read(filled.second) if name == "an image" else store.get_record(filled.record)
        assert store.put(noise(3, (8, 8)), label="third").label == "third"
        found = store.verify()
        assert not found.clean and not found.left
        assert bool(found.quarantined) == (fault != "missing") and len(found.missing) == 1
        assert not store.verify().quarantined and store.verify().images == (2 if name == "an image" else 3)
        store.rebuild_index()
        store.collect()
        assert store.put(noise(2, (8, 8))).id == filled.second


@cases(LOCKS)
def test_a_lock_that_is_broken_is_named_and_nothing_else_is_refused(filled: Filled, name: str, fault: str):
    filled.place(name).touch()
    FAULTS[fault](filled.place(name))
    with named(name), ImageStore(filled.folder, quota_bytes=10**7) as store:
        assert [image.id for image in store.list().images] == [filled.second, filled.first]
        assert store.open(filled.second).size == (8, 8) and len(store.lineage(filled.second)) == 2
        for work in (lambda: store.put(noise(3, (8, 8))), store.verify, store.collect, store.rebuild_index):
            with named(name):
                work()


@cases(FOLDERS, "truncated", "a directory")
def test_a_folder_that_is_broken_is_named_or_made_again(filled: Filled, name: str, fault: str):
    FAULTS[fault](filled.place(name))
    with named(str(filled.place(name).relative_to(filled.folder))):
        with ImageStore(filled.folder, quota_bytes=10**7) as store:
            assert len(store.list().images) == 2 and store.open(filled.first).size == (8, 8)
            for work in (lambda: store.put(noise(3, (8, 8))), store.verify, store.collect, store.list):
                with named(str(filled.place(name).relative_to(filled.folder))):
                    work()
    with named("jobs"):
        Journal(filled.folder).close()
