"""A full disk and a read-only folder: a clear error, nothing half stored, and the next put works."""

import contextlib
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from benchmarks.store_crash import check_names, inspect, noise
from storage import Digest, ImageStore
from storage.errors import StoreFull, StoreReadOnly

NOBODY = 65534


@pytest.fixture
def little_disk() -> Iterator[Path]:
    """A disk of 2 MB."""
    folder = Path(tempfile.mkdtemp())
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        folder.rmdir()
        pytest.skip("mounting a small disk needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


@contextlib.contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes, in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_refuses_and_goes_on_when_there_is_room(little_disk: Path):
    ballast = little_disk / "ballast"
    ballast.write_bytes(bytes(600_000))
    with ImageStore(little_disk / "store") as store:
        stored: list[Digest] = []
        with pytest.raises(StoreFull, match=r"no room to write.*Ask the host to free disk space"):
            stored.extend(store.put(noise(number, (150, 150))).id for number in range(100))
        assert stored and not list((store.path / "tmp").iterdir())
        with contextlib.suppress(StoreFull):  # to the last block, the index's too
            stored.extend(store.put(noise(1000 + number, (4, 4)), label="x").id for number in range(1000))
        assert all(store.read(digest) for digest in stored)
        check_names(store.path, set())
        ballast.unlink()
        assert store.verify().clean
        assert store.put(noise(5000, (150, 150))).width == 150
        assert all(store.read(digest) for digest in stored)
    inspect(little_disk / "store")


def test_a_collection_makes_room_on_a_full_disk(little_disk: Path):
    with ImageStore(little_disk / "store") as store:
        with pytest.raises(StoreFull):
            for number in range(100):
                store.put(noise(number, (150, 150)))
        assert store.collect(grace=timedelta(0), keep_accessed=timedelta(0)).bytes > 1_000_000
        assert store.put(noise(100, (150, 150))).width == 150


def test_a_limit_on_file_sizes_refuses_what_is_larger(tmp_path: Path):
    with ImageStore(tmp_path) as store:
        first = store.put(noise(1, (8, 8)))
        with files_at_most(200_000):
            with pytest.raises(StoreFull):
                store.put(noise(2, (400, 400)))
            assert not list((store.path / "tmp").iterdir())
            assert store.put(noise(3, (8, 8))).width == 8
            with pytest.raises(StoreFull):  # the index's log reaches the limit in the end
                for number in range(10, 1000):
                    store.put(noise(number, (8, 8)))
            assert store.read(first.id)
        assert store.verify().clean
        assert store.put(noise(2, (400, 400))).width == 400
    inspect(tmp_path)


def test_a_read_only_folder_refuses_to_store_and_still_shows():
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        with ImageStore(folder / "store") as store:
            image = store.put(noise(1, (8, 8)), label="kept")
            with not_writable(folder / "store"):
                for change in (
                    lambda: store.put(noise(2, (8, 8))),
                    lambda: store.label(image.id, "other"),
                    lambda: store.collect(),
                    lambda: store.rebuild_index(),
                ):
                    with pytest.raises(StoreReadOnly, match=r"cannot be written.*make the folder writable"):
                        change()
                assert store.open(image.id).size == (8, 8)
                assert [found.id for found in store.list(query="kept").images] == [image.id]
                with ImageStore(folder / "store") as other:
                    assert other.get(image.id) == image
                with pytest.raises(StoreReadOnly):
                    ImageStore(folder / "new")
            assert store.verify().clean and store.usage().images == 1
            assert store.put(noise(2, (8, 8))).width == 8
        inspect(folder / "store")
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def not_writable(folder: Path) -> Iterator[None]:
    """Take the right to write away, from root too: it ignores modes, so become nobody meanwhile."""
    modes = {path: path.stat().st_mode for path in (folder, *folder.rglob("*"))}
    for path in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path, mode in modes.items():
            if path.exists():
                path.chmod(mode)
