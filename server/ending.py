"""The end of the process."""

import atexit
import os
import sys
from typing import NoReturn


def leave(status: int) -> NoReturn:
    """End the process. Everything of ours is closed; exit handlers run, and what was printed is written.

    A model may still be loading, or a step running, on a thread that nothing can stop. Python's own way out
    ends such a thread where it next asks for the interpreter, within C++ code, which then aborts the process
    ("terminate called without an active exception").
    """
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # a full disk, a reader that left, a closed stream
            status = status or 1
    os._exit(status)
