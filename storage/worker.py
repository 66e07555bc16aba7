"""The worker process that decodes untrusted image files, started by `storage/decoder.py`.

It serves requests in sequence on a socket that is its standard input, under limits enforced by the kernel:
CPU time and memory per image, no file writes, no core dumps. It ends with its parent.
"""

import contextlib
import ctypes
import json
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from PIL import AvifImagePlugin

from storage.codec import Limits
from storage.errors import ImageRejected
from storage.ingest import LargerThanExpected, ingest, is_stored_form

HEAD = struct.Struct(">IQ")
"""Message header: the sizes in bytes of the JSON and of the body, which follow."""
_DIE_WITH_PARENT = 1
"""PR_SET_PDEATHSIG, an option of prctl(2)."""


def main(parent: int) -> None:
    """Serve requests until the socket closes; `parent` is the id of the process that started this one."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before prctl
        return
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    with socket.socket(fileno=0) as connection:
        while message := _receive(connection):
            reply, body = _answer(*message)
            text = json.dumps(reply).encode()
            connection.sendall(HEAD.pack(len(text), len(body)) + text)
            connection.sendall(body)


def _answer(asked: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    try:
        with _limits(asked["seconds"], asked["memory"]):
            taken = ingest(data, Limits(*asked["limits"]), asked["pixels"])
            own = asked["own"] and is_stored_form(data, taken.png)
        body = b"" if own else taken.png
        return {"notes": taken.notes, "own": own, "history": len(taken.history)}, taken.history + body
    except ImageRejected as error:
        return {"refused": [error.message, error.advice]}, b""
    except LargerThanExpected as error:
        return {"pixels": error.pixels}, b""


@contextlib.contextmanager
def _limits(seconds: float, memory: int):
    """End this process after `seconds` of CPU time, and limit its growth to `memory` bytes."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with contextlib.suppress(OSError, ValueError):  # not Linux: no /proc or no limit on address space
        with open("/proc/self/statm", "rb") as status:
            used = int(status.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _receive(connection: socket.socket) -> tuple[dict[str, Any], bytes] | None:
    """The next message, or None if the socket is closed."""
    receive: Callable[[int], bytes] = lambda size: connection.recv(size, socket.MSG_WAITALL)  # noqa: E731
    head = receive(HEAD.size)
    if len(head) < HEAD.size:
        return None
    text, body = HEAD.unpack(head)
    asked = json.loads(receive(text))
    data = receive(body) if body else b""
    return (asked, data) if len(data) == body else None
