"""Ends the process within a bounded time."""

import atexit
import os
import sys
import threading
from typing import NoReturn

LATEST_S = 8.0
"""Seconds from the first request to stop until the process is killed."""


def leave_soon(status: int) -> None:
    """End the process `LATEST_S` from now if it has not ended by itself; at once if it is asked again.

    For signal handlers. What is stored is whole at any moment, and the kernel gives back all locks.
    """
    if _asked.is_set():
        os._exit(status)
    _asked.set()
    timer = threading.Timer(LATEST_S, os._exit, (status,))
    timer.daemon = True
    timer.start()


_asked = threading.Event()


def leave(status: int) -> NoReturn:
    """Run the exit handlers, flush stdout and stderr, and end the process. Call it once the app is closed.

    A model may still be loading, or a step running, on a thread that nothing can stop. Python's own way out
    ends such a thread where it next asks for the interpreter, within C++ code, which then aborts the process
    ("terminate called without an active exception").
    """
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # a full disk, a reader that left, a closed stream
            status = status or 1
    os._exit(status)
