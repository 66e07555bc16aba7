"""Bytes from outside are decoded in processes with limits of time and memory, which end when they should."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.decoding import scans_bomb
from storage import ImageStore, Limits, decoder
from storage.budget import Budget, PixelBudget
from storage.errors import ImageRejected, StoreBusy
from tests.storage.fuzz_ingest import CORPUS

SMALL = (CORPUS / "rgb.png").read_bytes()
SLOW = scans_bomb(5000, 90)
"""Takes seconds of processor time."""


@pytest.fixture(autouse=True)
def workers() -> Iterator[None]:
    """Workers and budgets of its own for every test."""
    decoder._start_pool()
    yield
    decoder._workers.close()


def soon(condition: Callable[[], object]) -> bool:
    """Whether a condition comes true; it is given more time than any machine needs."""
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a new interpreter, in which every warning is an error."""
    command = [sys.executable, "-W", "error", *options, "-c", script, str(CORPUS)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=Path(__file__).parents[2])


def in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    raised: list[BaseException] = []

    def target() -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    return thread, raised


def busy_worker() -> psutil.Process:
    """The one worker, once it is at work."""
    assert soon(decoder._workers.pids)
    process = psutil.Process(decoder._workers.pids()[0])
    assert soon(lambda: process.cpu_times().user > 0.3)
    return process


def test_a_picture_that_takes_too_long_is_refused_and_the_next_one_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoder, "SECONDS", 0.1)
    monkeypatch.setattr(decoder, "SECONDS_PER_MEGAPIXEL", 0.0)
    with pytest.raises(ImageRejected, match="could not be decoded in 0 seconds of CPU time") as caught:
        decoder.decode(SLOW, Limits())
    assert caught.value.advice
    assert decoder.decode(SMALL, Limits()).png


def test_a_worker_that_stands_still_is_ended_by_the_clock(monkeypatch: pytest.MonkeyPatch):
    decoder.decode(SMALL, Limits())
    [pid] = decoder._workers.pids()
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(decoder, "WALL", 0.3)
    monkeypatch.setattr(decoder, "SECONDS", 0.1)
    with pytest.raises(ImageRejected, match="could not be decoded"):
        decoder.decode(SMALL, Limits())
    monkeypatch.undo()
    assert decoder.decode(SMALL, Limits()).png and decoder._workers.pids() != [pid]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_dies_fails_its_caller_and_nobody_else(number: signal.Signals):
    thread, raised = in_thread(lambda: decoder.decode(SLOW, Limits()))
    busy_worker().send_signal(number)
    thread.join()
    assert isinstance(raised[0], ImageRejected) and number.name in raised[0].message
    assert decoder.decode(SMALL, Limits()).png


def test_a_worker_that_dies_idle_is_replaced_unnoticed():
    decoder.decode(SMALL, Limits())
    [pid] = decoder._workers.pids()
    os.kill(pid, signal.SIGKILL)
    assert soon(lambda: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    assert decoder.decode(SMALL, Limits()).png


def test_a_caller_who_leaves_ends_its_decoding_and_frees_its_part():
    gone = threading.Event()

    def checkpoint() -> None:
        if gone.is_set():
            raise RuntimeError("gone")

    thread, raised = in_thread(lambda: decoder.decode(SLOW, Limits(), checkpoint))
    worker = busy_worker()
    gone.set()
    thread.join()
    assert str(raised[0]) == "gone" and not worker.is_running()
    with decoder._budget.taken(4_000_000 * decoder.WORKERS):
        pass


def test_one_worker_serves_one_caller_after_another():
    for _ in range(3):
        decoder.decode(SMALL, Limits())
    assert len(decoder._workers.pids()) == 1


def test_many_threads_share_few_workers(tmp_path: Path):
    with ImageStore(tmp_path) as store:
        threads = [in_thread(lambda: store.put(SMALL)) for _ in range(16)]
        for thread, _ in threads:
            thread.join()
        assert not any(raised for _, raised in threads) and store.usage().images == 1
    assert 1 <= len(decoder._workers.pids()) <= decoder.WORKERS


def test_too_much_memory_is_refused(monkeypatch: pytest.MonkeyPatch):
    if sys.platform != "linux":
        pytest.skip("only Linux limits memory")
    decoder.decode(SMALL, Limits())
    monkeypatch.setattr(decoder, "MEMORY", 1 << 20)
    monkeypatch.setattr(decoder, "MEMORY_PER_PIXEL", 0)
    with pytest.raises(ImageRejected, match="too much memory"):
        decoder.decode(SLOW, Limits())
    assert decoder.decode(SMALL, Limits()).png


def test_the_memory_of_large_pictures_sent_at_once_is_bounded():
    script = """
from benchmarks.decoding import measure, webp_bomb
from storage import decoder
decoder.PIXELS_AT_ONCE = 16_000_000
decoder._start_pool()
took, peak, outcomes = measure([webp_bomb(4000)] * 4)
assert outcomes == ["4000x4000"], outcomes
print(peak)
"""
    done = run(script)
    assert not done.stderr and float(done.stdout) < 480, done  # 1,600 without a budget


def test_a_picture_larger_than_its_header_says_is_counted_as_what_it_is():
    data = bytearray((CORPUS / "plain.gif").read_bytes())
    whole = decoder.decode(bytes(data), Limits())
    data[6:10] = b"\1\0\1\0"  # the screen; the frame in it stays
    assert decoder.decode(bytes(data), Limits()).png == whole.png


def test_a_size_beyond_the_limits_starts_no_worker():
    with pytest.raises(ImageRejected, match="at most 100"):
        decoder.decode(SMALL, Limits(pixels=100))
    assert not decoder._workers.pids()


def test_what_comes_first_is_served_first():
    budget, order, inside = Budget(10, 5), [], threading.Event()

    def take(name: str, amount: int) -> None:
        with budget.taken(amount):
            order.append(name)

    with budget.taken(6):
        threads = []
        for place, (name, amount) in enumerate([("large", 9), ("small", 2)], 1):
            threads.append(in_thread(lambda name=name, amount=amount: take(name, amount))[0])
            assert soon(lambda place=place: len(budget._waiting) == place)
        assert not order, "the small one must not overtake, or the large one may never come"
        inside.set()
    for thread in threads:
        thread.join()
    assert order == ["large", "small"]


def test_small_pictures_do_not_wait_for_large_ones():
    budget = PixelBudget(64_000_000, 2)
    with budget.taken(64_000_000), budget.taken(1_000_000):
        pass


def test_waiting_ends_with_a_refusal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("storage.budget.TIMEOUT_S", 0.0)
    budget = Budget(10, 5)
    with budget.taken(10), pytest.raises(StoreBusy), budget.taken(1):
        pass
    with budget.taken(10):
        pass


def test_a_process_that_is_killed_leaves_no_worker():
    script = f"""
import os, signal, sys, threading, time
from pathlib import Path
from benchmarks.decoding import scans_bomb
from storage import Limits, decoder
import psutil
decoder.decode((Path(sys.argv[1]) / "rgb.png").read_bytes(), Limits())
threading.Thread(target=decoder.decode, args=(scans_bomb(5000, 90), Limits()), daemon=True).start()
worker = psutil.Process(decoder._workers.pids()[0])
while worker.cpu_times().user < 0.4: time.sleep(0.01)
print(worker.pid, flush=True)
os.kill(os.getpid(), {signal.SIGKILL:d})
"""
    done = run(script)
    assert done.returncode == -signal.SIGKILL, done
    pid = int(done.stdout)
    assert soon(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


def test_a_script_ends_without_a_word_and_idle_workers_before_it():
    script = """
import sys, time
from pathlib import Path
from storage import Limits, decoder
decoder.IDLE_S = 0.2
data = (Path(sys.argv[1]) / "rgb.png").read_bytes()
decoder.decode(data, Limits())
deadline = time.monotonic() + 60
while decoder._workers.pids() and time.monotonic() < deadline: time.sleep(0.01)
assert not decoder._workers.pids()
decoder.decode(data, Limits())
"""
    done = run(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done


def test_a_fork_has_workers_of_its_own():
    script = """
import os, sys, warnings
from pathlib import Path
from storage import Limits, decoder
warnings.simplefilter("ignore")  # that a process with threads forks
data = (Path(sys.argv[1]) / "rgb.png").read_bytes()
decoder.decode(data, Limits())
before = decoder._workers.pids()
child = os.fork()
decoder.decode(data, Limits())
assert (decoder._workers.pids() == before) == bool(child)
if child:
    assert os.waitpid(child, 0)[1] == 0
    decoder.decode(data, Limits())
    assert decoder._workers.pids() == before
"""
    done = run(script)
    assert (done.returncode, done.stderr) == (0, ""), done


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_has_no_secrets_and_no_open_files(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OMNIGEN2_SECRET", "swordfish")
    decoder.decode(SMALL, Limits())
    folder = Path(f"/proc/{decoder._workers.pids()[0]}")
    assert b"swordfish" not in (folder / "environ").read_bytes()
    assert sorted(os.listdir(folder / "fd")) == ["0", "1", "2"]
    assert os.readlink(folder / "fd" / "1") == os.devnull


def test_a_worker_starts_without_the_rest_of_the_program():
    script = """
import json, sys, types
import storage.worker
print(json.dumps([name for name in ("torch", "pydantic", "numpy", "storage.store") if name in sys.modules]))
"""
    package = "import sys, types\np = sys.modules['storage'] = types.ModuleType('storage')\n"
    done = run(f"{package}p.__path__ = [{str(Path(decoder.__file__).parent)!r}]\n{script}")
    assert json.loads(done.stdout) == [], done
