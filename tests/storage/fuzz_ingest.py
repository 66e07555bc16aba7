"""Hostile bytes against the way in: refused with a reason or stored right, never a crash or a hang.

    python -m tests.storage.fuzz_ingest --cases 1000000 --seed 7

`Target` takes bytes and judges what the store does with them; any fuzzer can drive it. The one here mutates
the seeds in `corpus/`, one or two of every format that is read, and is the same for the same seed.
"""

import argparse
import random
import re
import struct
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from storage import Digest, ImageStore, Limits
from storage.embedding import extract
from storage.errors import ImageRejected
from storage.objects import ObjectBlobs

CORPUS = Path(__file__).parent / "corpus"
LIMITS = Limits(bytes=20_000, pixels=250_000, side=2_000)
HANG_S = 30.0
"""No case of this size takes a hundredth of it, on however busy a machine."""
EXTREMES = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@dataclass
class Target:
    """Feeds bytes to a store and judges the outcome."""

    store: ImageStore
    refused: Counter[str] = field(default_factory=Counter)
    """How often, by the beginning of the reason."""
    stored: int = 0
    slowest_s: float = 0.0

    def __call__(self, data: bytes) -> None:
        """Judge one input.

        Raises:
            AssertionError: it was stored wrong, refused without a reason, or took too long.
        """
        started = time.monotonic()
        try:
            image = self.store.put(data)
        except ImageRejected as error:
            assert len(error.message) > 20 and error.advice, error
            self.refused[re.sub(r"\d[\dx,]*", "N", error.message)[:50]] += 1
        else:
            self.stored += 1
            kept = self.store.read(image.id)
            picture = self.store.open(image.id)
            assert Digest.of(kept) == image.id and len(kept) == image.bytes
            assert picture.size == (image.width, image.height) and picture.mode in ("RGB", "RGBA")
            assert picture.width * picture.height <= LIMITS.pixels and max(picture.size) <= LIMITS.side
            assert set(chunk_names(kept)) == {b"IHDR", b"IDAT", b"IEND"}, "it holds more than pixels"
            assert self.store.put(kept).id == image.id, "equal pixels have two ids"
        extract(data)
        took = time.monotonic() - started
        self.slowest_s = max(self.slowest_s, took)
        assert took < HANG_S, f"{took:.0f} s for {len(data)} bytes"


def chunk_names(png: bytes) -> Iterator[bytes]:
    """The names of a PNG's chunks, in order."""
    at = 8
    while at < len(png):
        yield png[at + 4 : at + 8]
        at += 12 + int.from_bytes(png[at : at + 4], "big")


def cases(count: int, seed: int) -> Iterator[bytes]:
    """The seeds as they are, then mutations of them, `count` in all."""
    seeds = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    yield from seeds[:count]
    chance = random.Random(seed)
    for _ in range(count - len(seeds)):
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
            chance.choice(_MUTATIONS)(data, chance, seeds)
        if data[:4] == b"\x89PNG" and chance.random() < 0.7:
            _mend_checksums(data)  # otherwise hardly any damage gets past them
        yield bytes(data)


def _flip(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    if data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _overwrite(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    form = chance.choice(("B", "<H", ">H", "<I", ">I"))
    size = struct.calcsize(form)
    if len(data) >= size:
        # Sizes and offsets lie near the beginning of most formats.
        at = chance.randrange(min(len(data) - size + 1, chance.choice((40, 10**9))))
        struct.pack_into(form, data, at, chance.choice(EXTREMES) & ((1 << 8 * size) - 1))


def _cut(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    del data[chance.randrange(len(data) + 1) :]


def _remove(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    del data[at : at + chance.randrange(1, 40)]


def _repeat(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    data[at:at] = data[at : at + chance.randrange(1, 60)] * chance.choice((1, 1, 2, 50))


def _splice(data: bytearray, chance: random.Random, seeds: list[bytes]) -> None:
    other = chance.choice(seeds)
    data[chance.randrange(len(data) + 1) :] = other[chance.randrange(len(other)) :]


def _append(data: bytearray, chance: random.Random, seeds: list[bytes]) -> None:
    data += chance.choice((chance.randbytes(9), bytes(9), b"%PDF-1.7", *seeds[:3]))


def _noise(data: bytearray, chance: random.Random, _: list[bytes]) -> None:
    at = chance.randrange(len(data) + 1)
    size = chance.randrange(1, 30)
    data[at : at + size] = chance.randbytes(size)


_MUTATIONS = (_flip, _flip, _overwrite, _overwrite, _cut, _remove, _repeat, _splice, _append, _noise)


def _mend_checksums(png: bytearray) -> None:
    at = 8
    while at + 12 <= len(png):
        end = at + 12 + int.from_bytes(png[at : at + 4], "big")
        if end > len(png):
            return
        png[end - 4 : end] = zlib.crc32(png[at + 4 : end - 4]).to_bytes(4, "big")
        at = end


def fuzz(folder: Path, count: int, seed: int = 0) -> Target:
    """Judge `count` inputs; the target, with what it saw."""
    url = f"memory://fuzz-{time.monotonic_ns()}"
    with ImageStore(folder, limits=LIMITS, blobs=ObjectBlobs(url)) as store, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd files: not errors where people run it
        target = Target(store)
        for number, data in enumerate(cases(count, seed)):
            try:
                target(data)
            except Exception as error:
                path = folder / f"case-{number}"
                path.write_bytes(data)
                raise AssertionError(f"case {number} of seed {seed}, kept in {path}: {error!r}") from error
        assert store.verify().clean
    return target


def main() -> None:
    """Fuzz, and print what was seen."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    started = time.monotonic()
    target = fuzz(Path(tempfile.mkdtemp()), given.cases, given.seed)
    print(f"{given.cases} cases in {time.monotonic() - started:.0f} s, slowest {target.slowest_s:.2f} s")
    print(f"{target.stored} stored; refused:")
    for reason, times in target.refused.most_common():
        print(f"{times:8}  {reason}")


if __name__ == "__main__":
    main()
