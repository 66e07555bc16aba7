"""What it costs to take in hostile and ordinary pictures: seconds, and the memory of all processes.

    python -m benchmarks.decoding

Every case runs in a process of its own, with a new store; memory is the peak of the sum of this process and
its workers, sampled every 10 ms, without what it has before the first picture.
"""

import io
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable

import numpy as np
import psutil
from PIL import Image

from storage import ImageStore
from storage.errors import ImageRejected

Make = Callable[[], list[bytes]]


def webp_bomb(side: int = 8000) -> bytes:
    """A picture of side x side pixels in under a hundred bytes."""
    out = io.BytesIO()
    Image.new("RGB", (side, side)).save(out, "WEBP", lossless=True)
    return out.getvalue()


def scans_bomb(side: int = 4000, scans: int = 100) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    out = io.BytesIO()
    Image.new("RGB", (side, side)).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * scans + data[-2:]


def chunks_bomb(count: int = 4_000_000) -> bytes:
    """A PNG with so many empty chunks before its pixels."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    empty = struct.pack(">I4sI", 0, b"aaAa", zlib.crc32(b"aaAa"))
    return out.getvalue()[:33] + empty * count + out.getvalue()[33:]


def photo(megapixels: int, kind: str = "JPEG") -> bytes:
    """Something as smooth and as noisy as a photograph, 4:3."""
    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    small = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    large = Image.fromarray(small).resize((height * 4 // 3, height), Image.Resampling.BICUBIC)
    noisy = Image.effect_noise(large.size, 20).convert("RGB")
    out = io.BytesIO()
    Image.blend(large, noisy, 0.15).save(out, kind, quality=88)
    return out.getvalue()


CASES: dict[str, Make] = {
    "first put of 64x64": lambda: [_small()],
    "photo of 12 MP": lambda: [photo(12)],
    "photo of 63 MP": lambda: [photo(63)],
    "WebP of 64 MP": lambda: [webp_bomb()],
    "4 WebP of 64 MP at once": lambda: [webp_bomb()] * 4,
    "JPEG of 16 MP with 100 scans": lambda: [scans_bomb()],
    "JPEG of 64 MP with 95 scans": lambda: [scans_bomb(8000, 90)],
    "PNG with 4,000,000 empty chunks": lambda: [chunks_bomb()],
}


def _small() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(out, "PNG")
    return out.getvalue()


def measure(files: list[bytes]) -> tuple[float, float, list[str]]:
    """Store all of them at once: seconds, peak of memory in MB, what came out."""
    me, done, peak = psutil.Process(), threading.Event(), 0

    def memory() -> int:
        total = 0
        for process in [me, *me.children(recursive=True)]:
            try:
                total += process.memory_info().rss
            except psutil.Error:
                pass
        return total

    def sample() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, memory())

    def put(data: bytes) -> None:
        try:
            image = store.put(data)
            outcomes.append(f"{image.width}x{image.height}")
        except ImageRejected as error:
            outcomes.append(error.message)

    outcomes: list[str] = []
    with tempfile.TemporaryDirectory() as folder, ImageStore(folder) as store:
        before, started = memory(), time.monotonic()
        threads = [threading.Thread(target=put, args=[data]) for data in files]
        threads.append(threading.Thread(target=sample))
        for thread in threads:
            thread.start()
        for thread in threads[:-1]:
            thread.join()
        took = time.monotonic() - started
        done.set()
        threads[-1].join()
    return took, max(0, peak - before) / 1e6, sorted(set(outcomes))


def main() -> None:
    """Print a line per case."""
    if len(sys.argv) > 1:
        took, peak, outcomes = measure(CASES[sys.argv[1]]())
        print(f"{sys.argv[1]:34} {took:7.2f} s {peak:7.0f} MB  {'; '.join(outcomes)}")
        return
    for name in CASES:
        subprocess.run([sys.executable, "-m", "benchmarks.decoding", name], check=True)


if __name__ == "__main__":
    main()
