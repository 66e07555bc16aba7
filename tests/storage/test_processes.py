"""Eight processes at once: the same and different images, one of them collecting, all opening a new store."""

import multiprocessing
import os
import sqlite3
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

from benchmarks.store_crash import check_names, inspect, noise
from storage import Digest, ImageStore
from storage.errors import StoreBusy

PROCESSES = 8
SHARED, OWN = range(12), range(12)


def work(folder: str, number: int, together: Barrier, answers: "Queue[object]") -> None:
    """Open the store with the others, put what all put and what nobody else does; the ids, or the error."""
    try:
        together.wait(60)
        with ImageStore(folder) as store:
            shared = [store.put(noise(shared, (40, 40))).id for shared in SHARED]
            own = [store.put(noise(1000 * (number + 1) + each, (8, 8)), label=f"of {number}") for each in OWN]
            store.record(tool="edit_image", parameters={}, inputs=shared, outputs=[image.id for image in own])
            if number % 4 == 0:
                try:
                    store.collect()
                except StoreBusy:
                    pass  # another one is at it: the one refusal that is meant
            assert len(store.list(query=f"of {number}", limit=100).images) >= len(OWN)
            answers.put([str(digest) for digest in (*shared, *(image.id for image in own))])
    except BaseException:
        answers.put(traceback.format_exc())


def test_eight_processes_store_the_same_and_different_images(tmp_path: Path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    together, answers = context.Barrier(PROCESSES), context.Queue()
    processes = [
        context.Process(target=work, args=(str(tmp_path), number, together, answers))
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    said = [answers.get(timeout=120) for _ in processes]
    for process in processes:
        process.join()
    errors = [answer for answer in said if isinstance(answer, str)]
    assert not errors, errors[0]
    ids = {Digest.parse(text) for answer in said for text in answer}
    assert len(ids) == len(SHARED) + PROCESSES * len(OWN)
    with ImageStore(tmp_path) as store:
        assert store.usage().images == len(ids)
        assert all(store.get(digest).label for digest in ids if store.get(digest).width == 8)
    # images, a record and labels per process
    assert check_names(tmp_path, set()) == len(ids) + PROCESSES * (1 + len(OWN))
    inspect(tmp_path)


def test_threads_share_one_store(tmp_path: Path):
    with ImageStore(tmp_path) as store:

        def put(number: int) -> Digest:
            image = store.put(noise(number % 20, (8, 8)), label=f"label {number}")
            assert store.open(image.id).size == (8, 8)
            return image.id

        with ThreadPoolExecutor(8) as pool:
            ids = set(pool.map(put, range(80)))
        assert len(ids) == store.usage().images == 20
    inspect(tmp_path)


def test_a_quota_holds_for_processes_together(tmp_path: Path):
    context = multiprocessing.get_context("forkserver")
    with ImageStore(tmp_path, quota_bytes=40_000) as store:
        processes = [context.Process(target=_fill, args=(str(tmp_path), number)) for number in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert {process.exitcode for process in processes} == {0}
        assert 30_000 < store.usage().bytes <= 40_000
        stored = sum(path.stat().st_size for path in (tmp_path / "blobs").rglob("*") if path.is_file())
        assert stored == store.usage().bytes and store.verify().clean


def _fill(folder: str, number: int) -> None:
    with ImageStore(folder, quota_bytes=40_000) as store:
        for each in range(100):
            try:
                store.put(noise(1000 * number + each, (30, 30)))
            except Exception as error:
                os._exit(0 if type(error).__name__ == "StoreFull" else 1)
    os._exit(2)


def test_opening_waits_for_whoever_else_opens_a_new_index(tmp_path: Path):
    other = sqlite3.connect(tmp_path / "index.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE anything (x)")
    other.execute("BEGIN IMMEDIATE")  # as one does who makes it a WAL
    release = threading.Timer(0.3, other.close)
    release.start()
    with ImageStore(tmp_path) as store:
        assert store.get(store.put(noise(1, (8, 8))).id)
    release.join()
