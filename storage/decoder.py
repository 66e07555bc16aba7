"""Decodes untrusted image files in worker processes.

A file may crash its decoder, or make it use hours of CPU time or all memory. So it is decoded in another
process (`storage/worker.py`) with limits on CPU time and memory, after reading its size from the header, and
within a budget of pixels decoded at once. Workers start on demand, are reused, and end when idle or with this
process: on Linux by a signal from the kernel, elsewhere when their socket closes.

Why not concurrent.futures or pebble: they load the caller's main module and memory into the worker, and limit
only wall-clock time.
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

from storage import containers, extraction
from storage.budget import POLL_S, Checkpoint, PixelBudget, no_checkpoint
from storage.codec import Limits
from storage.errors import ImageRejected, StoreError
from storage.ingest import Ingested, check_bytes
from storage.worker import HEAD

PIXELS_AT_ONCE = 64_000_000
"""Budget for large images, for workers and for this process each: one image of maximum size."""
WORKERS = 2
"""Number of workers for small images, and for large ones."""
OPENED = 4
"""Number of small stored images decoded in this process at once, and of large ones."""
SECONDS = 5.0
"""CPU time allowed for any image, plus"""
SECONDS_PER_MEGAPIXEL = 0.4
"""this, which is ten times the time for photographs on a slow core."""
WALL = 20.0
"""Wall-clock seconds allowed for each second of CPU time, as the machine may be busy."""
IDLE_S = 60.0
"""Seconds after which an idle worker ends."""
MEMORY = 192 << 20
"""Bytes of memory allowed for any image, plus"""
MEMORY_PER_PIXEL = 28
"""this: decoders keep up to five copies of 4 bytes per pixel, and more."""
_MAX_REPLY_BYTES = 1 << 16
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "TMPDIR")
"""Environment variables that a worker inherits; they contain no secrets."""
_SCRIPT = """\
import sys, types
sys.path[:] = {path!r}
package = types.ModuleType("storage")  # without its __init__, which imports what the worker does not need
package.__path__ = [{folder!r}]
sys.modules["storage"] = package
from storage.worker import main
main({parent})
"""


def decode(
    data: bytes, limits: Limits, checkpoint: Checkpoint = no_checkpoint, *, keep_own: bool = False
) -> Ingested:
    """The image in `data` in stored form; with `keep_own`, `data` itself if it already has that form.

    Raises:
        ImageRejected: not an image, damaged, too large, or too slow to decode.
        StoreBusy: too many images are being decoded. Also what `checkpoint` raises.
    """
    check_bytes(data, limits)
    size = containers.size(data)
    pixels = size[0] * size[1] if size else limits.pixels
    for expected in (pixels, limits.pixels):
        with _budget.taken(expected, checkpoint):
            reply, body = _workers.ask(data, limits, expected, keep_own, checkpoint)
        if "refused" in reply:
            raise ImageRejected(*reply["refused"])
        if "notes" in reply:
            history, png = body[: reply["history"]], body[reply["history"] :]
            return Ingested(data if reply["own"] else png, tuple(reply["notes"]), history)
    raise ImageRejected("The image is larger than its header states.", "Save it again as a plain image file.")


def budget_for(size: tuple[int, int]) -> contextlib.AbstractContextManager[None]:
    """Hold the budget for decoding a stored image of `size` in this process. Raises StoreBusy."""
    return _local_budget.taken(size[0] * size[1])


class _WorkerDied(Exception):
    """The worker ended during a request; the argument is its exit code."""


class _Worker:
    """One process, used by one caller at a time."""

    def __init__(self) -> None:
        path = [os.path.abspath(part) for part in sys.path if part]
        start = _SCRIPT.format(path=path, folder=str(Path(__file__).parent), parent=os.getpid())
        given = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-c", start],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                # One malloc arena and one thread, because the limit is on address space.
                env=given | {"MALLOC_ARENA_MAX": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # so that Ctrl-C reaches the server only
            )
        self._socket.settimeout(POLL_S)
        self.idle_since = 0.0

    @property
    def pid(self) -> int:
        return self._process.pid

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(
        self, asked: dict[str, Any], data: bytes, seconds: float, most: int, checkpoint: Checkpoint
    ) -> tuple[dict[str, Any], bytes]:
        """Send a request; returns the JSON and the body, at most `most` bytes, of the reply.

        Raises:
            TimeoutError: no reply within `seconds`.
            _WorkerDied: the process ended. Also what `checkpoint` raises.
        """
        deadline = time.monotonic() + seconds
        text = json.dumps(asked).encode()
        try:
            self._send(HEAD.pack(len(text), len(data)) + text, deadline, checkpoint)
            self._send(data, deadline, checkpoint)
            facts, body = HEAD.unpack(self._receive(HEAD.size, deadline, checkpoint))
            if facts > _MAX_REPLY_BYTES or body > most:
                raise ConnectionError
            reply = json.loads(self._receive(facts, deadline, checkpoint))
            return reply, self._receive(body, deadline, checkpoint)
        except ConnectionError:
            self.end(wait=True)
            raise _WorkerDied(self._process.returncode) from None

    def _send(self, data: bytes, deadline: float, checkpoint: Checkpoint) -> None:
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[self._socket.send(rest) :]
            except TimeoutError:
                _check_deadline(deadline, checkpoint)

    def _receive(self, size: int, deadline: float, checkpoint: Checkpoint) -> bytes:
        data = bytearray(size)
        rest = memoryview(data)
        while rest:
            try:
                count = self._socket.recv_into(rest)
            except TimeoutError:
                _check_deadline(deadline, checkpoint)
                continue
            if not count:
                raise ConnectionError
            rest = rest[count:]
        return bytes(data)

    def end(self, *, wait: bool = False) -> None:
        """Close the connection and kill the process; with `wait`, give it a second to end by itself."""
        self._socket.close()
        try:
            self._process.wait(1 if wait else 0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def forget(self) -> None:
        """Release the worker in a forked child, without ending it."""
        self._socket.close()
        self._process.returncode = 0  # it belongs to the parent


def _check_deadline(deadline: float, checkpoint: Checkpoint) -> None:
    checkpoint()
    if time.monotonic() > deadline:
        raise TimeoutError


class _Workers:
    """The worker pool of this process; the pixel budget limits its size."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: set[_Worker] = set()
        self._idle: list[_Worker] = []
        self._requests: queue.SimpleQueue[Future[_Worker]] = queue.SimpleQueue()
        self._supervisor: threading.Thread | None = None

    def ask(
        self, data: bytes, limits: Limits, pixels: int, keep_own: bool, checkpoint: Checkpoint
    ) -> tuple[dict[str, Any], bytes]:
        """The reply of a worker for an image of at most `pixels` pixels.

        Raises:
            ImageRejected: it takes too long, or the worker dies.
            StoreError: no worker could be started.
        """
        seconds = SECONDS + SECONDS_PER_MEGAPIXEL * pixels / 1e6
        asked = {
            "limits": astuple(limits),
            "pixels": pixels,
            "own": keep_own,
            "seconds": seconds,
            "memory": MEMORY + 3 * len(data) + MEMORY_PER_PIXEL * pixels,
        }
        worker = self._acquire()
        most = 5 * pixels + (1 << 20) + extraction.MAX_TEXT
        try:
            reply = worker.ask(asked, data, WALL * seconds, most, checkpoint)
        except TimeoutError:
            self._discard(worker)
            raise _too_slow(seconds) from None
        except _WorkerDied as died:
            self._discard(worker)
            raise _too_slow(seconds) if died.args[0] == -signal.SIGPROF else _crashed(died.args[0]) from None
        except BaseException:
            self._discard(worker)
            raise
        with self._lock:
            worker.idle_since = time.monotonic()
            self._idle.append(worker)
        return reply

    def close(self) -> None:
        """End all workers."""
        with self._lock:
            ending, self._all, self._idle = self._all, set(), []
        for worker in ending:
            worker.end()

    def forget(self) -> None:
        """Release all workers in a forked child; they belong to the parent."""
        for worker in self._all:
            worker.forget()

    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.pid for worker in self._all]

    def _acquire(self) -> _Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.is_alive():
                    return worker
                self._all.discard(worker)
                worker.end()
            if self._supervisor is None:
                self._supervisor = threading.Thread(
                    target=self._supervise, name="decoder-supervisor", daemon=True
                )
                self._supervisor.start()
        request: Future[_Worker] = Future()
        self._requests.put(request)
        try:
            return request.result()
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise StoreError(
                f"No process could be started to decode the image: {reason}.", "Try again."
            ) from error

    def _discard(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.end()

    def _supervise(self) -> None:
        """Start requested workers, and end idle ones.

        Runs in one thread that never ends, because the kernel kills a worker with the thread that started it.
        """
        while True:
            try:
                request = self._requests.get(timeout=IDLE_S / 4)
            except queue.Empty:
                self._end_idle()
                continue
            try:
                worker = _Worker()
                with self._lock:
                    self._all.add(worker)
                request.set_result(worker)
            except BaseException as error:
                request.set_exception(error)

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
        f"The image could not be decoded in {seconds:.0f} seconds of CPU time.",
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


def _start_pool() -> None:
    global _workers, _budget, _local_budget
    _workers = _Workers()
    _budget, _local_budget = PixelBudget(PIXELS_AT_ONCE, WORKERS), PixelBudget(PIXELS_AT_ONCE, OPENED)


def _after_fork() -> None:
    _workers.forget()
    _start_pool()


_workers: _Workers
_budget: PixelBudget
_local_budget: PixelBudget
_start_pool()
atexit.register(lambda: _workers.close())
os.register_at_fork(after_in_child=_after_fork)
