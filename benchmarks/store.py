"""How fast the image store is when it is large.

    python -m benchmarks.store --images 100000

Fills a store with small images, each with a record, a third of them edits of earlier ones; then times
questions (95th percentile, milliseconds), and putting images of 1 MB beside a bare write, fsync and rename of
the same bytes. The images go in below `ImageStore.put`, without a fsync each: filling would take an hour.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from PIL import Image

from storage import Digest, ImageStore, codec
from storage.records import make_record

WORDS = tuple(
    "red green blue circle square star three small large sea house tree night fog paper glass".split()
)
DEPTH = 40
"""Edits in a row at most, so the longest lineage is a hard case and not an absurd one."""
LIMIT_MS = 10.0
LIMIT_RATIO = 1.25


def fill(folder: Path, count: int) -> list[Digest]:
    """A store of `count` images with records, its index built by the store itself; the images in order."""
    chance = random.Random(0)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    digests: list[Digest] = []
    depth: list[int] = []
    for number in range(count):
        pixels = np.frombuffer(number.to_bytes(12, "little"), np.uint8).reshape(2, 2, 3)
        png = codec.encode(Image.fromarray(pixels))
        when = start + timedelta(seconds=number)
        digest = _file(folder / "blobs", png, when)
        parent = chance.randrange(max(0, number - 500), number) if number and chance.random() < 0.9 else None
        parent = parent if parent is not None and depth[parent] < DEPTH else None
        words = f"{' '.join(chance.sample(WORDS, 6))} number{number}"
        record = make_record(
            tool="generate_image" if parent is None else "edit_image",
            parameters={"prompt" if parent is None else "instruction": words, "steps": 28},
            inputs=[] if parent is None else [digests[parent]],
            outputs=[digest],
            seed=number,
            time=when,
        )
        _file(folder / "records", record.canonical, when)
        digests.append(digest)
        depth.append(0 if parent is None else depth[parent] + 1)
    return digests


def _file(folder: Path, data: bytes, when: datetime) -> Digest:
    digest = Digest.of(data)
    path = folder / "sha256" / digest.hex[:2] / digest.hex[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    os.chmod(path, 0o444)
    os.utime(path, (when.timestamp(), when.timestamp()))
    return digest


def questions(store: ImageStore, digests: list[Digest]) -> dict[str, Callable[[int], object]]:
    """What is asked of a large store, each by a number that varies it."""
    cursors = [store.list(since=None, limit=1, query=None).cursor]
    for _ in range(20):
        cursors.append(store.list(limit=1000, cursor=cursors[-1]).cursor)
    return {
        "list": lambda number: store.list(limit=20),
        "list, deep page": lambda number: store.list(limit=20, cursor=cursors[number % len(cursors)]),
        "list, one tool": lambda number: store.list(tool="generate_image", limit=20),
        "search, frequent word": lambda number: store.list(query=WORDS[number % len(WORDS)]),
        "search, three words": lambda number: store.list(
            query=" ".join(random.Random(number).sample(WORDS, 3))
        ),
        "search, rare word": lambda number: store.list(query=f"number{number * 37 % len(digests)}"),
        "search, word and tool": lambda number: store.list(
            query=WORDS[number % len(WORDS)], tool="edit_image"
        ),
        "search, nothing found": lambda number: store.list(query=f"red number{len(digests) + number}"),
        "lineage": lambda number: store.lineage(digests[number * 7919 % len(digests)]),
        "get": lambda number: store.get(digests[number * 7919 % len(digests)].hex[:12]),
        "find_equal": lambda number: store.find_equal(
            tool="generate_image", parameters={"prompt": f"absent {number}", "steps": 28}, seed=number
        ),
    }


def percentile_ms(work: Callable[[int], object], rounds: int) -> tuple[float, float]:
    """Median and 95th percentile of `work`, in milliseconds, after a few rounds that do not count."""
    took: list[float] = []
    for number in range(-5, rounds):
        started = time.perf_counter()
        work(number)
        if number >= 0:
            took.append((time.perf_counter() - started) * 1000)
    took.sort()
    return took[len(took) // 2], took[int(len(took) * 0.95)]


def puts(store: ImageStore, folder: Path, rounds: int) -> dict[str, float]:
    """Median milliseconds of 1 MB: written bare, hashed, its PNG put into the store, and as a whole `put`.

    A whole `put` also checks, decodes or normalises, and encodes, which a bare write of the PNG does not.
    """
    took: dict[str, list[float]] = {name: [] for name in ("bare", "SHA-256 alone", "store", "whole put")}
    for number in range(rounds):
        picture = Image.fromarray(
            np.random.default_rng(number).integers(0, 256, (590, 592, 3), dtype=np.uint8)
        )
        png = codec.encode(picture)
        other = Image.eval(picture, lambda value: 255 - value)
        works: list[tuple[str, Callable[[], object]]] = [
            ("bare", lambda png=png, number=number: _bare(folder, png, number)),
            ("SHA-256 alone", lambda png=png: Digest.of(png)),
            ("store", lambda png=png: store._repository.put_image(png)),
            ("whole put", lambda other=other: store.put(other)),
        ]
        # In turn first and last: what one leaves to the disk must not burden always the same other.
        for name, work in works if number % 2 else reversed(works):
            started = time.perf_counter()
            work()
            took[name].append((time.perf_counter() - started) * 1000)
    return {name: sorted(times)[len(times) // 2] for name, times in took.items()}


def _bare(folder: Path, data: bytes, number: int) -> None:
    temporary = folder / f"{number}.tmp"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(handle, data)
    os.fsync(handle)
    os.close(handle)
    os.rename(temporary, folder / f"{number}.png")


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill, time, print; fails if a bar is missed."""
    parser = argparse.ArgumentParser(description="How fast a large image store is.")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=200)
    given = parser.parse_args(arguments)
    missed: list[str] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        started = time.monotonic()
        digests = fill(folder / "store", given.images)
        print(
            f"filled with {given.images:,} images and records in {time.monotonic() - started:.0f} s",
            flush=True,
        )
        started = time.monotonic()
        with ImageStore(folder / "store") as store:
            size = (folder / "store" / "index.sqlite").stat().st_size
            print(f"index built in {time.monotonic() - started:.0f} s, {size / 1e6:.0f} MB", flush=True)
            print(f"{'milliseconds':26}{'median':>8}{'p95':>8}")
            for name, ask in questions(store, digests).items():
                median, slow = percentile_ms(ask, given.rounds)
                print(f"{name:26}{median:>8.2f}{slow:>8.2f}", flush=True)
                missed += [name] if slow >= LIMIT_MS else []
            (folder / "bare").mkdir()
            times = puts(store, folder / "bare", given.rounds)
            for name, median in times.items():
                print(f"{'1 MB, ' + name:26}{median:>8.2f}   {median / times['bare']:.2f} times bare")
            missed += ["put"] if times["store"] > LIMIT_RATIO * times["bare"] else []
    if missed:
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
