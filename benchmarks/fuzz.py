"""Coverage-guided fuzzing: hostile input is refused as documented, quickly, in little memory.

    python -m benchmarks.fuzz TARGET|all [--count N] [--seconds S] [--seed N] [--keep FOLDER]
    python -m benchmarks.fuzz TARGET --input FILE

With atheris (`pip install -e .[fuzz] -c constraints.txt`) each target runs in a process of its own,
guided by which lines an input reaches, until --count inputs were judged or --seconds passed; without it,
inputs are mutations of the seeds. An input that breaks a promise ends its target: it is made smaller, written
to --keep, and judged again by `--input FILE`. Targets: `benchmarks/fuzz_targets.py`.
"""

import argparse
import faulthandler
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import atheris  # type: ignore[import-not-found]
except ImportError:
    atheris = None

if TYPE_CHECKING:
    from benchmarks.fuzz_judges import Judge
    from benchmarks.fuzz_targets import Target

SLOW_S = 2.0
"""Seconds of processor time that one input may take."""
HANG_S = 30
"""Seconds by the clock, on however busy a machine."""
MEMORY = 300_000_000
"""Bytes by which one input may raise the process's memory."""
SETTLED_AFTER = 200
"""Inputs after which a target judges what is left behind."""
ADDRESS_SPACE = 4_000_000_000
"""Bytes that a process may map: whatever asks for more gets a MemoryError, which no target allows."""
LONGEST = 4096
"""Bytes of an input."""
STATUS_LINE = re.compile(r"^(VmHWM|VmRSS):\s+(\d+) kB", re.MULTILINE)
INSTRUMENTED = ["storage", "tools", "server", "omnigen2", "PIL"]


@dataclass
class Watch:
    """Has inputs judged, and holds each to its time and memory."""

    judge: "Judge"
    seen: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    """Most processor time that one input took, and"""
    longest_s: float = 0.0
    """most time by the clock: others may want the processor."""
    largest: int = 0
    """Most bytes that one input added."""
    now: tuple[bytes | None, float] = (None, 0.0)
    """The input that is judged, and since when."""

    def __call__(self, data: bytes) -> None:
        """Judge one input. Raises what the target does, and AssertionError beyond a limit."""
        before = _forget_peak()
        self.now = (data, time.monotonic())
        started, used = time.monotonic(), time.process_time()
        word = self.judge(data)
        used, took = time.process_time() - used, time.monotonic() - started
        self.now = (None, 0.0)
        added = _memory("VmHWM") - before
        self.seen[word] += 1
        self.slowest_s, self.longest_s = max(self.slowest_s, used), max(self.longest_s, took)
        self.largest = max(self.largest, added)
        assert used < SLOW_S and took < HANG_S, f"{used:.1f} s of processor, {took:.1f} s by the clock"
        assert added < MEMORY, f"{added / 1e6:.0f} MB for an input of {len(data)} bytes"
        if self.seen.total() % SETTLED_AFTER == 0:
            self.judge.settle()

    def guard(self, name: str, keep: Path) -> None:
        """End the process if an input hangs: keep the input, and print where every thread stands."""
        while True:
            time.sleep(1)
            data, since = self.now
            if data is not None and time.monotonic() - since > 2 * HANG_S:
                (keep / f"{name}-hangs").write_bytes(data)
                print(f"{name}: FAULT an input hangs, kept in {keep / name}-hangs", flush=True)
                faulthandler.dump_traceback()
                os._exit(1)

    def fails(self, data: bytes) -> Exception | None:
        """What an input raises when it is judged alone."""
        try:
            self(data)
            self.judge.settle()
        except Exception as error:
            return error
        return None


def smaller(watch: Watch, data: bytes, kind: type[Exception]) -> bytes:
    """A shorter input that fails alike: parts are left out as long as the error is of the same type."""
    deadline, size = time.monotonic() + 20, max(1, len(data) // 2)
    while size and time.monotonic() < deadline:
        at = 0
        while at < len(data) and time.monotonic() < deadline:
            shorter = data[:at] + data[at + size :]
            if type(watch.fails(shorter)) is kind:
                data = shorter
            else:
                at += size
        size //= 2
    return data


def mutations(target: "Target", seed: int) -> Iterator[bytes]:
    """The seeds of a target, then endless mutations of them; the same for the same seed."""
    seeds = list(target.seeds())
    yield from seeds
    chance = random.Random(seed)
    while True:
        data = bytearray(chance.choice(seeds))
        for _ in range(chance.choice((1, 2, 4, 8, 16))):
            _mutate(data, chance, target.words, seeds)
        yield bytes(data[:LONGEST])


def _mutate(data: bytearray, chance: random.Random, words: tuple[bytes, ...], seeds: list[bytes]) -> None:
    at, size = chance.randrange(len(data) + 1), chance.randrange(1, 20)
    match chance.randrange(8):
        case 0 | 1 if at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        case 2:
            data[at : at + size] = chance.randbytes(size)
        case 3:
            del data[at : at + size]
        case 4:
            data[at:at] = data[at : at + size] * chance.choice((1, 2, 30))
        case 5 if words:
            data[at:at] = chance.choice(words)
        case 6:
            other = chance.choice(seeds)
            data[at:] = other[chance.randrange(len(other)) :]
        case _ if at < len(data):
            data[at] = chance.choice((0, 1, 7, 127, 128, 255, chance.randrange(256)))


def judged(name: str, count: int, seed: int = 0, *, folder: Path) -> Watch:
    """Judge `count` mutations in this process, without guidance; what was seen. Raises at the first fault."""
    from benchmarks.fuzz_targets import TARGETS

    with ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about odd files
        watch = Watch(TARGETS[name].judge(folder, stack))
        for number, data in enumerate(mutations(TARGETS[name], seed)):
            if number == count:
                break
            try:
                watch(data)
            except Exception as error:
                error.add_note(f"input {number} of {name}, seed {seed}: {data!r}")
                raise
        watch.judge.settle()
    return watch


def guided(name: str, count: int, seconds: int, seed: int, keep: Path) -> None:
    """Let atheris find inputs for one target; ends the process, with a code that is not 0 after a fault."""
    keep.mkdir(parents=True, exist_ok=True)
    with (keep / f"{name}.log").open("w") as log:
        os.dup2(log.fileno(), sys.stderr.fileno())  # atheris and the libraries below Pillow say a lot
    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        from benchmarks.fuzz_targets import TARGETS
    warnings.simplefilter("ignore")
    target, folder, stack = TARGETS[name], Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-")), ExitStack()
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, data in enumerate(target.seeds()):
        (corpus / f"seed-{number:03}").write_bytes(data)
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words)
    (folder / "words").write_text("".join(f'"{word}"\n' for word in escaped), encoding="ascii")
    watch = Watch(target.judge(folder, stack))
    started = time.monotonic()

    def one(data: bytes) -> None:
        try:
            watch(data)
            if (number := watch.seen.total()) == count or (
                seconds and number % 64 == 0 and time.monotonic() - started > seconds
            ):
                watch.judge.settle()
                report(name, watch, time.monotonic() - started)
                stack.close()
                os._exit(0)
        except Exception as error:
            _keep_fault(name, watch, data, error, keep)
            os._exit(1)

    threading.Thread(target=watch.guard, args=(name, keep), daemon=True).start()
    resource.setrlimit(resource.RLIMIT_AS, (_mapped() + ADDRESS_SPACE,) * 2)
    options = [
        f"-seed={seed}",
        f"-max_len={LONGEST}",
        f"-timeout={4 * HANG_S}",
        "-rss_limit_mb=0",
        "-len_control=0",
    ]
    options += [f"-artifact_prefix={keep}/", *([f"-dict={folder / 'words'}"] if target.words else [])]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one)
    atheris.Fuzz()


def report(name: str, watch: Watch, took_s: float) -> None:
    """Print what became of the inputs of a target."""
    count = watch.seen.total()
    print(
        f"{name}: {count} inputs in {took_s:.0f} s ({count / max(took_s, 1e-3):.0f}/s), "
        f"slowest {watch.slowest_s:.2f} s ({watch.longest_s:.2f} s by the clock), "
        f"most memory {watch.largest / 1e6:.0f} MB"
    )
    for word, times in watch.seen.most_common(12):
        print(f"{times:9}  {word}")
    sys.stdout.flush()


def _keep_fault(name: str, watch: Watch, data: bytes, error: Exception, keep: Path) -> None:
    path = keep / f"{name}-{time.time_ns()}"
    path.write_bytes(data)
    print(f"{name}: FAULT after {watch.seen.total()} inputs, kept in {path}", flush=True)
    traceback.print_exception(error, limit=-6, file=sys.stdout)
    if type(watch.fails(data)) is type(error):
        path.write_bytes(smaller(watch, data, type(error)))
        print(f"made smaller: {path.stat().st_size} of {len(data)} bytes", flush=True)


def again(name: str, data: bytes) -> None:
    """Judge one kept input."""
    from benchmarks.fuzz_targets import TARGETS

    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        watch = Watch(TARGETS[name].judge(Path(folder), stack))
        watch(data)
        watch.judge.settle()
    report(name, watch, 0.0)


def _forget_peak() -> int:
    """Bytes in use now; from here on the kernel notes the peak anew. 0 where it does not note any."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return 0
    return _memory("VmRSS")


def _memory(which: str) -> int:
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return 1024 * int(dict(STATUS_LINE.findall(status))[which])


def _mapped() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()


def main() -> int:
    """Fuzz; exit code 1 if any target found a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", help="pictures, references, records, exports, rest, mcp, or all")
    parser.add_argument("--count", type=int, default=20_000, help="inputs, of all targets together")
    parser.add_argument("--seconds", type=int, default=0, help="most seconds for each target; 0: no limit")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "fuzz-faults")
    parser.add_argument("--input", type=Path, help="judge this one input")
    given = parser.parse_args()
    if given.input:
        again(given.target, given.input.read_bytes())
        return 0
    if given.target != "all":
        if atheris is not None:
            guided(given.target, given.count, given.seconds, given.seed, given.keep)
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            watch = judged(given.target, given.count, given.seed, folder=Path(folder))
            report(given.target, watch, time.monotonic() - started)
        return 0
    from benchmarks.fuzz_targets import TARGETS

    options = ("--seconds", str(given.seconds), "--seed", str(given.seed), "--keep", str(given.keep))
    bad = 0
    for name, target in TARGETS.items():
        count = str(round(given.count * target.share))
        command = [sys.executable, "-m", "benchmarks.fuzz", name, "--count", count, *options]
        if subprocess.run(command, check=False).returncode:
            print(f"{name}: failed; {given.keep / name}.log tells more", flush=True)
            bad += 1
    print("no fault" if not bad else f"{bad} targets with a fault")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
