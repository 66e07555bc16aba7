"""Which machine may write to a bucket: a small object beside the images, which its writer renews.

Index and locks of a bucket are in a folder of one machine, so a second machine would not see what the first
one stores, and could delete it. The lease names the folder. It is valid for `LEASE_S` after it was renewed;
when a machine is lost, another one may take over then. The machines' clocks must agree to a few seconds.
"""

import contextlib
import json
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from storage.errors import StoreBusy

LEASE_S = 25.0
"""Seconds for which a lease is valid."""
RENEW_S = 8.0
"""Seconds between two renewals."""
OBJECT = "writer.json"


class Lease:
    """The right to write to the bucket at `root`, for the processes that share the folder `beside`."""

    def __init__(self, files: Any, root: str, beside: Path) -> None:
        """`files`: the fsspec file system."""
        self._files = files
        self._path = f"{root.rstrip('/')}/{OBJECT}"
        self._holder = _name_of(beside)
        self._valid_until = 0.0

    def hold(self) -> None:
        """Take the lease, and renew it for as long as this process lives.

        Raises:
            StoreBusy: another machine has it.
        """
        try:
            self.renew()
        except StoreBusy:
            raise
        except Exception:  # a bucket that may only be read: whoever writes learns of it
            return
        threading.Thread(target=self._keep, name="lease of the bucket", daemon=True).start()

    def check(self) -> None:
        """Raises StoreBusy if the lease is not this machine's any more."""
        if time.monotonic() > self._valid_until:
            self.renew()

    def renew(self) -> None:
        """Extend the lease from now on. Raises StoreBusy as `hold`, and what the file system does."""
        self._files.invalidate_cache()
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = json.loads(self._files.cat_file(self._path))
            left = float(found["until"]) - time.time()
            if found["holder"] != self._holder and left > 0:
                self._valid_until = 0.0
                raise StoreBusy(
                    f"Another server, on {found['host']}, writes to this image store.",
                    f"One machine at a time may: stop that server, or try again in {left:.0f} s; "
                    "if it is gone, this one takes over then.",
                )
        started = time.monotonic()
        now = {"holder": self._holder, "host": socket.gethostname(), "until": time.time() + LEASE_S}
        self._files.pipe_file(self._path, json.dumps(now).encode())
        self._valid_until = started + LEASE_S

    def _keep(self) -> None:
        while True:
            time.sleep(RENEW_S)
            with contextlib.suppress(Exception):  # the next write says why, if it is still so then
                self.renew()


def _name_of(folder: Path) -> str:
    """A random name that stays with a folder."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / "holder"
    with contextlib.suppress(FileExistsError), path.open("x", encoding="ascii") as file:
        file.write(secrets.token_hex(16))
    return path.read_text("ascii")
