"""Maintenance: invalid files are quarantined, kept images stay, a rebuilt index is the same."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import time
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from benchmarks.store_crash import inspect, noise
from storage import Digest, ImageStore
from storage.errors import Corrupt, ImageNotFound, StoreBusy, Unreadable
from storage.locks import Locks
from storage.records import make_record

NOTHING = {"grace": timedelta(0), "keep_accessed": timedelta(0)}
"""Keep nothing for its age."""


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def place(store: ImageStore, digest: Digest, kind: str = "blobs") -> Path:
    """The file of a blob or record, made writable so that a test can damage it."""
    path = store.path / kind / "sha256" / digest.hex[:2] / digest.hex[2:]
    path.chmod(0o644)
    return path


def without_empty_folders(store: Path) -> None:
    """A store is quicker to copy without the folders that it makes for images to come."""
    for folder in store.glob("*/sha256/*"):
        with contextlib.suppress(OSError):
            folder.rmdir()


def chain(store: ImageStore, length: int) -> list[Digest]:
    """Images, each made from the one before."""
    images = [store.put(noise(0, (8, 8))).id]
    for number in range(1, length):
        images.append(store.put(noise(number, (8, 8))).id)
        store.record(tool="edit_image", parameters={}, inputs=[images[-2]], outputs=[images[-1]])
    return images


def age(store: ImageStore, digest: Digest, days: float) -> None:
    """As if an image had been stored, and last asked for, that long ago."""
    past = time.time() - days * 86_400
    os.utime(place(store, digest), (past, past))
    store.rebuild_index()
    with store._repository.index.writing() as db:
        db.execute("UPDATE accesses SET time = ? WHERE image = ?", (int(past * 1e9), digest.raw))


@pytest.mark.parametrize("damage", [b"", b"short", b"\x89PNG"])
def test_damage_is_set_aside_not_deleted(store: ImageStore, damage: bytes):
    good, bad = store.put(noise(1, (8, 8))).id, store.put(noise(2, (8, 8))).id
    place(store, bad).write_bytes(damage)
    found = store.verify()
    assert (found.images, found.clean, found.missing) == (1, False, (bad,))
    (moved,) = found.quarantined
    assert moved.read_bytes() == damage and moved.parent == store.path / "quarantine"
    with pytest.raises(ImageNotFound):
        store.get(bad)
    assert store.read(good) and store.verify().clean
    assert store.put(noise(2, (8, 8))).id == bad and store.verify().clean


def test_a_damaged_record_is_set_aside_and_the_image_stays(store: ImageStore):
    image = store.put(noise(1, (8, 8))).id
    record = store.record(tool="x", parameters={"prompt": "a cat"}, outputs=[image])
    place(store, record, "records").write_bytes(b"{}")
    with pytest.raises(Corrupt):
        store.get_record(record)
    found = store.verify()
    assert len(found.quarantined) == 1 and found.images == 1
    assert store.list(query="cat").images == () and store.lineage(image)[0].record is None


def test_what_others_put_among_the_blobs_is_set_aside(store: ImageStore):
    image = store.put(noise(1, (8, 8))).id
    folder = place(store, image).parent
    (folder / "notes.txt").write_text("mine")
    (store.path / "blobs" / "link").symlink_to("/etc/passwd")
    found = store.verify()
    assert {path.name for path in found.quarantined} == {"stray-notes.txt", "stray-link"}
    assert store.verify().clean


def test_what_is_gone_is_reported_once(store: ImageStore):
    first, second = chain(store, 2)
    place(store, first).unlink()
    found = store.verify()
    assert found.missing == (first,) and len(found.dangling) == 1
    assert store.verify().missing == ()
    assert [step.image.id for step in store.lineage(second)] == [second]


def test_progress_counts_every_file(store: ImageStore):
    chain(store, 3)
    for work in (store.verify, store.rebuild_index):
        seen: list[tuple[int, int]] = []
        work(lambda done, total, seen=seen: seen.append((done, total)))
        assert seen == [(number, 5) for number in range(1, 6)]


@pytest.mark.parametrize("at", [0, 5000])
def test_a_damaged_index_is_built_again(store: ImageStore, at: int):
    images = chain(store, 30)
    before = store.list(limit=100)
    store.close()
    with (store.path / "index.sqlite").open("r+b") as file:
        file.seek(at)
        file.write(b"\xee" * 20_000)
    with ImageStore(store.path) as other:
        other.rebuild_index()
        assert other.list(limit=100) == before
        assert len(other.lineage(images[-1])) == 30
    inspect(store.path)


def test_collect_keeps_what_is_labelled_pinned_young_or_asked_for(store: ImageStore):
    labelled, pinned, young, asked, old = (store.put(noise(number, (8, 8))).id for number in range(5))
    for digest in (labelled, pinned, asked, old):
        age(store, digest, days=100)
    store.label(labelled, "kept")
    store.pin(pinned)
    store.read(asked)
    with store._repository.index.writing() as db:  # the labels and the pin are themselves accesses
        db.execute("DELETE FROM accesses WHERE image != ?", (asked.raw,))
    dry = store.collect(dry_run=True)
    assert dry.images == (old,) and store.usage().images == 5
    assert store.collect().images == (old,) and store.usage().images == 4
    store.label(labelled, None)
    store.pin(pinned, False)
    assert set(store.collect(**NOTHING).images) == {labelled, pinned, young, asked}
    inspect(store.path)


def test_collect_keeps_the_lineage_of_what_it_keeps(store: ImageStore):
    images = chain(store, 5)
    store.pin(images[3])
    assert store.collect(**NOTHING).images == (images[4],)
    assert [step.image.id for step in store.lineage(images[3])] == images[:4]
    assert store.verify().clean


def test_an_access_is_kept_for_although_accesses_are_noted_only_hourly(store: ImageStore):
    image = store.put(noise(1, (8, 8))).id
    age(store, image, days=0.04)  # 58 minutes: a read now is not noted
    store.read(image)
    assert store.collect(grace=timedelta(0), keep_accessed=timedelta(minutes=5)).images == ()


def test_what_is_held_is_not_collected(store: ImageStore):
    first, second = chain(store, 2)
    with store.hold([second]) as held:
        assert [image.id for image in held] == [second]
        assert ImageStore(store.path).collect(**NOTHING).images == ()
        assert store.read(first)
    assert set(store.collect(**NOTHING).images) == {first, second}
    with pytest.raises(ImageNotFound), store.hold([first]):
        pass


def _hold(folder: str, digest: Digest, said: Connection) -> None:
    with ImageStore(folder) as store, store.hold([digest]):
        said.send("held")
        time.sleep(60)


def test_a_hold_of_another_process_ends_with_it(store: ImageStore):
    image = store.put(noise(1, (8, 8))).id
    processes = multiprocessing.get_context("forkserver")
    hears, said = processes.Pipe(duplex=False)
    with hears, said:
        process = processes.Process(target=_hold, args=(str(store.path), image, said))
        process.start()
        assert hears.recv() == "held"
        assert store.collect(**NOTHING).images == ()
        process.kill()
        process.join()
        assert store.collect(**NOTHING).images == (image,)
        process.close()


def test_two_may_not_collect_at_once(store: ImageStore):
    with Locks(store.path).maintenance("collect"):
        for work in (store.collect, store.rebuild_index):
            with pytest.raises(StoreBusy, match="another process is collecting or rebuilding"):
                work()


def test_what_a_dead_writer_left_is_swept_up(store: ImageStore):
    image = store.put(noise(1, (8, 8))).id
    (store.path / "tmp" / "0123456789abcdef").write_bytes(b"half")
    (store.path / "tmp" / "fedcba9876543210" / "00").mkdir(parents=True)  # the folders of a new store
    store.close()
    (store.path / "locks" / "writers" / "0123456789abcdef").touch()  # nobody holds it
    with ImageStore(store.path) as other:
        assert other.get(image).id == image
        assert not list((store.path / "tmp").iterdir())


@pytest.mark.parametrize("kind", ["blobs", "records"])
def test_what_is_put_right_while_verify_reads_stays(store: ImageStore, kind: str):
    picture = noise(1, (8, 8))
    image = store.put(picture).id
    made = make_record(tool="x", parameters={"prompt": "a cat"}, outputs=[image])
    record = store._repository.put_record(made)
    damaged = image if kind == "blobs" else record
    place(store, damaged, kind).write_bytes(b"damage")

    def put_again(done: int, total: int) -> None:
        if done == total:  # everything was read, nothing was taken away yet
            store.put(picture)
            store._repository.put_record(made)

    found = store.verify(put_again)
    assert found.clean and (found.images, found.records) == (1, 1)
    assert store.read(image) and store.get_record(record).parameters["prompt"] == "a cat"
    assert not (store.path / "quarantine").exists()


def test_what_cannot_even_be_read_is_set_aside(store: ImageStore):
    pictures = [noise(number, (8, 8)) for number in range(5)]
    images = [store.put(picture).id for picture in pictures]
    folder, pipe, link, huge, fine = (place(store, image) for image in images)
    for path in (folder, pipe, link):
        path.unlink()
    folder.mkdir()
    os.mkfifo(pipe)
    link.symlink_to(fine)
    os.truncate(huge, 1 << 40)  # a hole: no room is used
    found = store.verify()
    assert len(found.quarantined) == 4 and found.images == 1 and len(found.missing) == 4
    assert store.verify().clean
    assert [store.put(picture).id for picture in pictures] == images and store.verify().clean


def test_strays_of_every_name_are_set_aside(store: ImageStore):
    store.put(noise(1, (8, 8)))
    blobs = store.path / "blobs"
    names = ["x" * 255, os.fsdecode(b"\xff\xfe"), "a\nb", "-rf", "same", "SHA256"]
    for name in names:
        (blobs / name).write_text("mine")
    (blobs / "sha256" / "same").write_text("in the middle")
    (blobs / "sha256" / "00" / "same").mkdir()
    (blobs / "folder" / "deep").mkdir(parents=True)
    assert len(store.verify().quarantined) == len(names) + 3
    assert store.verify().clean


def test_what_others_left_among_the_locks_stops_nothing(store: ImageStore):
    image = store.put(noise(1, (8, 8))).id
    for folder in (store.path / "locks" / "writers", store.path / "locks" / "leases"):
        (folder / "folder").mkdir()
        os.mkfifo(folder / "pipe")
        (folder / "link").symlink_to("nowhere")
        (folder / "text").write_bytes(b"no digest at all, of no length that one has")
    held = os.open(store.path / "locks" / "leases" / "text", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_SH)
    store.close()
    with ImageStore(store.path) as other:
        assert other.collect(dry_run=True).images == () and other.verify().clean
        other.rebuild_index()
        assert other.get(image).id == image
    os.close(held)


def test_what_is_left_half_written_and_cannot_be_removed_stops_nothing(store: ImageStore):
    store.put(noise(1, (8, 8)))
    (store.path / "tmp" / "link").symlink_to(store.path / "locks")
    os.mkfifo(store.path / "tmp" / "pipe")
    assert store.verify().clean and not list((store.path / "tmp").iterdir())
    assert (store.path / "locks" / "leases").is_dir()


def test_an_io_error_costs_only_the_image_that_it_affects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with ImageStore(tmp_path / "store") as store:
        good, bad = (store.put(noise(number, (8, 8))).id for number in (1, 2))
        damaged = place(store, bad)

        def failing_open(path: Path, *arguments: Any, **options: Any) -> Any:
            if Path(path) == damaged:
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
            return open(path, *arguments, **options)

        monkeypatch.setattr("storage.blobs.open", failing_open, raising=False)
        with pytest.raises(Unreadable, match="Input/output error"):
            store.read(bad)
        assert store.open(good).size == (8, 8)
        found = store.verify()
        assert found.images == 1 and found.missing == (bad,)
        assert [path.name for path in found.quarantined] == [f"image-{bad.hex}"]
        assert store.verify().clean


def test_verify_moves_many_foreign_files_in_linear_time(tmp_path: Path):
    with ImageStore(tmp_path / "store") as store:
        store.put(noise(1, (8, 8)))
        for number in range(20_000):
            (store.path / "blobs" / f"{number}.origin.json").touch()
        started = time.process_time()
        found = store.verify()
        assert len(found.quarantined) == 20_000 and found.images == 1
        assert time.process_time() - started < 20
        assert store.verify().clean
