"""Kill a process that is storing images, again and again, and see what it costs: nothing.

    python -m benchmarks.store_crash --kills 1000

A victim puts images of all sizes, records and labels in a loop and says every id once it was given out.
It dies by SIGKILL at a random moment. After each death every file under `blobs/` and `records/` must hash to
its own name (checked with hashlib alone, without the store) and every id that was said must be readable; now
and then, and at the end, the store must verify clean and a rebuilt index must equal the old one.
"""

import argparse
import hashlib
import io
import multiprocessing
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
from PIL import Image

from storage import LOCAL, Digest, ImageStore
from storage.errors import StoreError

MOST_WORDS = 14
"""Ids that a victim may say before it is sentenced."""
LONGEST_LEFT_S = 0.015
"""Time between sentence and death, about that of one round of its loop."""
LARGE = (240, 240)
"""Enough noise for a blob that is written in more than one piece."""
_TABLES = {
    "images": "key, digest, width, height, bytes, created",
    "records": "key, digest, memo, principal, bytes, body",
    "edges": "record, output, place, image",
    "notes": "image, tool, viewer, record, value",
    "words": "rowid, text, tools",
    "totals": "images, bytes",
    "owners": "key, principal, image, record",
    "owned_words": "rowid, text, tools, owner",
    "owned_totals": "principal, images, bytes",
}


@dataclass
class Seen:
    """What came of it."""

    kills: int = 0
    ids: set[str] = field(default_factory=set)
    """Of images and records that were given out."""
    files: int = 0
    left_over: int = 0
    """Files that victims left in the staging folder, over all deaths."""


def noise(number: int, size: tuple[int, int]) -> Image.Image:
    """A picture that no other number has; `size` in pixels."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def victim(folder: str, seed: int, said: int) -> None:
    """Put until killed; write each id, 64 hex digits and a kind, to the descriptor `said`."""
    chance = random.Random(seed)
    with ImageStore(folder) as whole:
        last: Digest | None = None
        while True:
            number = chance.getrandbits(40)
            store = whole.for_principal(chance.choice(("ann", "bob", LOCAL)), own=False)
            # The same images come again in other lives, some of them at the moment of a death.
            if chance.random() < 0.2:
                number = chance.randrange(20)
            picture = noise(number, LARGE if chance.random() < 0.2 else (8, 8))
            inputs = [last] if last else []
            asked = {"tool": "edit_image", "parameters": {"instruction": f"number {number}"}, "seed": number}
            if chance.random() < 0.5:
                last = store.put(picture).id
                os.write(said, f"i{last.hex}\n".encode())
                record = store.record(**asked, inputs=inputs, outputs=[last])
                os.write(said, f"r{record.hex}\n".encode())
            else:
                made = store.put_made([picture], **asked, inputs=inputs)
                last = made.outputs[0]
                os.write(said, f"i{last.hex}\nr{made.id.hex}\n".encode())
            if chance.random() < 0.3:
                store.label(last, f"label {number}")
            if chance.random() < 0.05:
                whole.collect()


def crash(
    folder: Path, kills: int, seed: int = 0, *, inspect_every: int = 50, progress: bool = False
) -> Seen:
    """Kill `kills` victims in the store at `folder`, inspecting it after each.

    Raises:
        AssertionError: the store broke a promise; the message says which.
    """
    processes = _forkserver()
    chance = random.Random(seed)
    seen = Seen()
    checked: set[Path] = set()
    for seen.kills in range(1, kills + 1):
        said = _one_life(processes, folder, chance)
        seen.left_over += len(list(folder.glob("tmp/*")))  # the next one to open the store sweeps them
        seen.files += check_names(folder, checked)
        seen.ids |= said
        check_readable(folder, said)
        if seen.kills % inspect_every == 0 or seen.kills == kills:
            inspect(folder)
            if progress:
                print(f"{seen.kills} kills, {len(seen.ids)} ids, {seen.files} files", flush=True)
    check_readable(folder, seen.ids)
    assert check_names(folder, set()) == seen.files
    return seen


def check_names(folder: Path, checked: set[Path]) -> int:
    """Hash every file under `blobs/` and `records/` that is not yet in `checked`; how many those were."""
    fresh = 0
    for kind in ("blobs", "records"):
        for path in (folder / kind).rglob("*"):
            if path in checked or path.is_dir():
                continue
            named = "".join(path.relative_to(folder / kind / "sha256").parts)
            assert hashlib.sha256(path.read_bytes()).hexdigest() == named, f"{path} is not what its name says"
            checked.add(path)
            fresh += 1
    return fresh


def check_readable(folder: Path, said: set[str]) -> None:
    """Every id that was given out can be read, and is right."""
    with ImageStore(folder) as store:
        for word in said:
            digest = Digest.parse(word[1:])
            if word[0] == "i":
                data = store.read(digest)
                assert hashlib.sha256(data).hexdigest() == word[1:]
                Image.open(io.BytesIO(data)).load()
            else:
                assert store.get_record(digest).id == digest


def inspect(folder: Path) -> None:
    """The store verifies clean, and an index built anew equals the one that lived through the crashes."""
    with ImageStore(folder) as store:
        found = store.verify()
        assert found.clean and found.indexed == 0, found
        before = tables(folder)
        store.rebuild_index()
        after = tables(folder)
    for name in before:
        assert before[name] == after[name], f"the rebuilt table {name} differs"


def tables(folder: Path) -> dict[str, list[tuple[object, ...]]]:
    """All that the index has derived from blobs and records."""
    db = sqlite3.connect(folder / "index.sqlite")
    try:
        return {
            name: db.execute(f"SELECT {columns} FROM {name} ORDER BY {columns}").fetchall()
            for name, columns in _TABLES.items()
        }
    finally:
        db.close()


def crash_in_collection(folder: Path, kills: int, seed: int = 0) -> int:
    """Kill processes that delete; what is kept must stay and what is named must be there. Images deleted."""
    processes = _forkserver()
    chance = random.Random(seed)
    deleted = 0
    with ImageStore(folder) as store:
        kept = {store.put(noise(number, (8, 8)), label="kept").id for number in range(5)}
        for life in range(kills):
            for number in range(10):
                image = store.put(noise(1000 + 100 * life + number, (8, 8)))
                store.record(tool="edit_image", parameters={}, inputs=list(kept), outputs=[image.id])
            before = store.usage().images
            process = processes.Process(target=_collect, args=(str(folder), chance.randrange(30)))
            process.start()
            process.join()
            _kill(process)
            check_names(folder, set())
            with ImageStore(folder) as other:
                found = other.verify()
                assert found.clean, found
                assert all(other.read(digest) for digest in kept)
                deleted += before - other.usage().images
        inspect(folder)
    return deleted


def _collect(folder: str, deletions: int) -> None:
    """Collect everything that may go, and die of SIGKILL in the middle, after so many deletions."""
    left = iter(range(deletions))

    def die(event: str, _: object) -> None:
        if event == "os.remove" and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    with ImageStore(folder) as store:
        sys.addaudithook(die)
        store.collect(grace=timedelta(0), keep_accessed=timedelta(0))


def _one_life(processes: ForkServerContext, folder: Path, chance: random.Random) -> set[str]:
    """Let a victim say some words, none perhaps, and kill it a moment later; what it has said."""
    reading, writing = processes.Pipe(duplex=False)
    with reading, writing:
        process = processes.Process(target=_victim, args=(str(folder), chance.getrandbits(32), writing))
        process.start()
        writing.close()
        words, enough = b"", chance.randrange(MOST_WORDS + 1)
        while words.count(b"\n") < enough:
            words += os.read(reading.fileno(), 1 << 16)
        time.sleep(chance.uniform(0, LONGEST_LEFT_S))
        _kill(process)
        while chunk := os.read(reading.fileno(), 1 << 16):
            words += chunk
    # A word is written in one piece or not at all: shorter than PIPE_BUF.
    return set(words.decode().split())


def _victim(folder: str, seed: int, writing: Connection) -> None:
    victim(folder, seed, writing.fileno())


def _kill(process: BaseProcess) -> None:
    assert process.pid is not None
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode in (-signal.SIGKILL, 0), f"it died of {process.exitcode}, not of us"
    process.close()


def _forkserver() -> ForkServerContext:
    """Starts processes in milliseconds: what they need is already imported where they are forked from."""
    context = multiprocessing.get_context("forkserver")
    # Not this module: run as a program it would be there twice.
    context.set_forkserver_preload(["numpy", "storage"])
    return context


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, and print what was seen."""
    parser = argparse.ArgumentParser(description="Kill a process that is storing images.")
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        seen = crash(Path(folder), given.kills, given.seed, inspect_every=100, progress=True)
        print(
            f"{seen.kills} kills in {time.monotonic() - started:.0f} s: {len(seen.ids)} ids given out, all "
            f"readable; {seen.files} files, each named by its hash; {seen.left_over} left in staging; "
            "verify clean; rebuilt index equal"
        )


if __name__ == "__main__":
    try:
        main()
    except (AssertionError, StoreError) as error:
        raise SystemExit(f"A promise was broken: {error}") from error
