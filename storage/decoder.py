"""Bytes from outside to what is stored, in worker processes that can be ended: the only way in for them.

A picture may crash its reader, or take hours or all memory in it. So it is decoded in another process
(`storage/worker.py`) with a limit of processor time and memory, after its size was read from the header, and
with a budget of pixels at once. Workers start when first needed, are used again, end when idle, and with this
process: on Linux the kernel sees to that, elsewhere they see their socket close.

concurrent.futures and pebble were looked at: they bring the caller's main module and its memory into the
worker, and have no limits but time on the clock.
"""

import atexit
import contextlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from dataclasses import astuple
from pathlib import Path
from typing import Any

from storage import containers
from storage.budget import TICK_S, Checkpoint, PixelBudget, no_checkpoint
from storage.codec import Limits
from storage.errors import ImageRejected, StoreError
from storage.ingest import Ingested, check_bytes
from storage.worker import HEAD

PIXELS_AT_ONCE = 64_000_000
"""Of large pictures being decoded, here and in workers each: one of the largest."""
WORKERS = 2
"""For small pictures, and as many for large ones."""
OPENED = 4
"""Small stored pictures being opened in this process at once, and as many large ones."""
SECONDS = 5.0
"""Of processor time that any picture may take, and"""
SECONDS_PER_MEGAPIXEL = 0.4
"""so much more: ten times what photographs take on a slow core."""
WALL = 20.0
"""Seconds on the clock for each of them: others may want the processor."""
IDLE_S = 60.0
"""Seconds after which a worker that is not needed ends."""
MEMORY = 192 << 20
"""Bytes that any picture may take, and"""
MEMORY_PER_PIXEL = 28
"""so many more: readers keep up to five copies of four bytes."""
_FACTS_BYTES = 1 << 16
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "TMPDIR")
"""What a worker inherits: no secrets."""
_START = """\
import sys, types
sys.path[:] = {path!r}
package = types.ModuleType("storage")  # of which the worker needs few modules, and none of what others import
package.__path__ = [{folder!r}]
sys.modules["storage"] = package
from storage.worker import main
main({parent})
"""


def decode(
    data: bytes, limits: Limits, checkpoint: Checkpoint = no_checkpoint, *, keep_own: bool = False
) -> Ingested:
    """The picture in `data` as it is to be stored; with `keep_own`, `data` itself if it has that form.

    Raises:
        ImageRejected: it is no picture, broken, too large, or takes too long.
        StoreBusy: too many pictures are being decoded. Also what `checkpoint` raises.
    """
    check_bytes(data, limits)
    size = containers.size(data)
    pixels = size[0] * size[1] if size else limits.pixels
    for expected in (pixels, limits.pixels):
        with _budget.taken(expected, checkpoint):
            reply, png = _workers.ask(data, limits, expected, keep_own, checkpoint)
        if "refused" in reply:
            raise ImageRejected(*reply["refused"])
        if "notes" in reply:
            return Ingested(data if reply["own"] else png, tuple(reply["notes"]))
    raise ImageRejected("The image is larger than its header says.", "Save it again as a plain picture.")


def opening(size: tuple[int, int]) -> contextlib.AbstractContextManager[None]:
    """Hold the budget for decoding a stored picture of `size` in this process. Raises StoreBusy."""
    return _opening.taken(size[0] * size[1])


class _Lost(Exception):
    """The worker ended in the middle; by its exit code."""


class _Worker:
    """One process, asked by one caller at a time."""

    def __init__(self) -> None:
        path = [os.path.abspath(part) for part in sys.path if part]
        start = _START.format(path=path, folder=str(Path(__file__).parent), parent=os.getpid())
        given = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", start],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                # One pool of memory and one thread: address space is what is limited.
                env=given | {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C is for the server
            )
        self._socket.settimeout(TICK_S)
        self.idle_since = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(
        self, asked: dict[str, Any], data: bytes, seconds: float, most: int, checkpoint: Checkpoint
    ) -> tuple[dict[str, Any], bytes]:
        """The answer to a message, of at most `most` bytes.

        Raises:
            TimeoutError: there was none for `seconds`.
            _Lost: the process ended.
        """
        deadline = time.monotonic() + seconds
        text = json.dumps(asked).encode()
        try:
            self._send(HEAD.pack(len(text), len(data)) + text, deadline, checkpoint)
            self._send(data, deadline, checkpoint)
            facts, body = HEAD.unpack(self._receive(HEAD.size, deadline, checkpoint))
            if facts > _FACTS_BYTES or body > most:
                raise ConnectionError
            reply = json.loads(self._receive(facts, deadline, checkpoint))
            return reply, self._receive(body, deadline, checkpoint)
        except ConnectionError:
            self.end(wait=True)
            raise _Lost(self._process.returncode) from None

    def _send(self, data: bytes, deadline: float, checkpoint: Checkpoint) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except TimeoutError:
                _go_on(deadline, checkpoint)

    def _receive(self, size: int, deadline: float, checkpoint: Checkpoint) -> bytes:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            try:
                count = self._socket.recv_into(rest)
            except TimeoutError:
                _go_on(deadline, checkpoint)
                continue
            if not count:
                raise ConnectionError
            rest = rest[count:]
        return bytes(data)

    def end(self, *, wait: bool = False) -> None:
        """Close the connection and end the process; with `wait`, only if it does not end by itself."""
        self._socket.close()
        try:
            self._process.wait(1 if wait else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """In a process that was forked from the one this belongs to: let go of it."""
        self._socket.close()
        self._process.returncode = 0  # not ours to wait for


def _go_on(deadline: float, checkpoint: Checkpoint) -> None:
    checkpoint()
    if time.monotonic() > deadline:
        raise TimeoutError


class _Workers:
    """The workers of this process. How many there are is up to how many callers there are at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._wanted: queue.SimpleQueue[Future[_Worker]] = queue.SimpleQueue()
        self._keeper: threading.Thread | None = None

    def ask(
        self, data: bytes, limits: Limits, pixels: int, keep_own: bool, checkpoint: Checkpoint
    ) -> tuple[dict[str, Any], bytes]:
        """A worker's answer for a picture of at most `pixels` pixels.

        Raises:
            ImageRejected: it takes too long, or the worker ends with it.
        """
        seconds = SECONDS + SECONDS_PER_MEGAPIXEL * pixels / 1e6
        asked = {
            "limits": astuple(limits),
            "pixels": pixels,
            "own": keep_own,
            "seconds": seconds,
            "memory": MEMORY + 3 * len(data) + MEMORY_PER_PIXEL * pixels,
        }
        worker = self._hired()
        try:
            reply = worker.ask(asked, data, WALL * seconds, 5 * pixels + (1 << 20), checkpoint)
        except TimeoutError:
            self._dismiss(worker)
            raise _too_slow(seconds) from None
        except _Lost as lost:
            self._dismiss(worker)
            raise _too_slow(seconds) if lost.args[0] == -signal.SIGPROF else _crashed(lost.args[0]) from None
        except BaseException:
            self._dismiss(worker)
            raise
        with self._lock:
            worker.idle_since = time.monotonic()
            self._idle.append(worker)
        return reply

    def close(self) -> None:
        """End every worker."""
        with self._lock:
            ending, self._all, self._idle = self._all, set(), []
        for worker in ending:
            worker.end()

    def forget(self) -> None:
        """After a fork: these are the parent's."""
        for worker in self._all:
            worker.forget()

    def pids(self) -> list[int]:
        """The processes there are."""
        return [worker.pid for worker in self._all]

    def _hired(self) -> _Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.is_alive():
                    return worker
                self._all.discard(worker)
                worker.end()
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name="decoder-keeper", daemon=True)
                self._keeper.start()
        wanted: Future[_Worker] = Future()
        self._wanted.put(wanted)
        try:
            return wanted.result()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StoreError(
                f"No process could be started to decode the image: {reason}.", "Try again."
            ) from error

    def _dismiss(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.end()

    def _keep(self) -> None:
        """Start workers, and end idle ones.

        In one thread that never ends: the kernel ends a worker with the thread that started it.
        """
        while True:
            try:
                wanted = self._wanted.get(timeout=IDLE_S / 4)
            except queue.Empty:
                self._end_idle()
                continue
            try:
                worker = _Worker()
                with self._lock:
                    self._all.add(worker)
                wanted.set_result(worker)
            except BaseException as error:
                wanted.set_exception(error)

    def _end_idle(self) -> None:
        now = time.monotonic()
        with self._lock:
            ending = [worker for worker in self._idle if now - worker.idle_since > IDLE_S]
            self._idle = [worker for worker in self._idle if worker not in ending]
            self._all.difference_update(ending)
        for worker in ending:
            worker.end()


def _too_slow(seconds: float) -> ImageRejected:
    return ImageRejected(
        f"The image could not be decoded in {seconds:.0f} seconds of processor time.",
        "Save it again as a plain PNG or JPEG.",
    )


def _crashed(code: int | None) -> ImageRejected:
    return ImageRejected(
        f"The process that decoded the image was ended by {_cause(code)}.",
        "Try again; if that fails too, save the image again as a plain PNG or JPEG.",
    )


def _cause(code: int | None) -> str:
    try:
        return signal.Signals(-(code or 0)).name
    except ValueError:
        return f"an error ({code})"


def _begin() -> None:
    global _workers, _budget, _opening
    _workers = _Workers()
    _budget, _opening = PixelBudget(PIXELS_AT_ONCE, WORKERS), PixelBudget(PIXELS_AT_ONCE, OPENED)


def _after_fork() -> None:
    _workers.forget()
    _begin()


_workers: _Workers
_budget: PixelBudget
_opening: PixelBudget
_begin()
atexit.register(lambda: _workers.close())
os.register_at_fork(after_in_child=_after_fork)
