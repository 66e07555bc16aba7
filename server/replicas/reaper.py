"""Ends a Ray that was started for one server, once that server is gone, however it ended.

    python -m server.replicas.reaper FOLDER

Waits until its stdin closes, which the kernel does when the server ends; then kills every process that has a
file in FOLDER open, as each process of that Ray has its log, and deletes FOLDER. Ray alone leaves its agents
behind after a `kill -9`.
"""

import os
import shutil
import signal
import sys
from contextlib import suppress

import psutil


def main() -> None:
    """Wait for the end of the server, then clean up."""
    folder = sys.argv[1]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they are meant for the server
    sys.stdin.buffer.read()
    for _ in range(5):  # a process may start another one while it is looked for
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if any(file.path.startswith(folder + os.sep) for file in process.open_files()):
                    process.kill()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
