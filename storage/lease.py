"""Which machine may write to a bucket: small objects beside the images, the newest renewed by its writer.

Index and locks of a bucket are in a folder of one machine, so a second machine would not see what the first
one stores, and could delete it. A lease names that folder, and has a number. To take it over, a machine makes
the object of the next number, which only one can; the one of the highest number writes. It is valid for
`LEASE_S` after it was renewed, and its writer believes in it for `SLACK_S` less: a process that was stopped
meanwhile writes nothing more when it goes on, and the machines' clocks need to agree to a few seconds only.

Whoever gets it after another machine first brings the index in line with the bucket.
"""

import contextlib
import fcntl
import json
import logging
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from storage.errors import StoreBusy, StoreError, errors_afar

LEASE_S = 20.0
"""Seconds for which a lease is valid."""
SLACK_S = 8.0
"""Seconds before that from which its writer believes in it no more."""
RENEW_S = 5.0
"""Seconds between two renewals."""
REFRESH_S = 120.0
"""Seconds between two looks at what the writer stored, on a machine that stands by."""
WAIT_S = 5.0
"""Seconds for which a write waits for the lease."""
FOLDER = "writer"
HOLDER, IN_LINE = "holder", "in-line"
"""Files beside the index: its random name; number of the lease under which it is in line with the bucket."""
_clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""A clock that goes on while this machine sleeps, where there is one."""
_log = logging.getLogger(__name__)


class Lease:
    """The right to write to the bucket at `root`, for the processes that share the folder `beside`."""

    def __init__(self, files: Any, root: str, beside: Path) -> None:
        """`files`: the fsspec file system; `root`: the path of the bucket in it.

        Raises:
            StoreReadOnly, StoreFull: `beside` cannot be written.
        """
        self._files = files
        self._root = root.rstrip("/")
        self._beside = beside
        with errors_afar(str(beside)):
            self._holder = _name_of(beside)
            self._users = os.open(beside / HOLDER, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._users)
        self._valid_until = 0.0
        self._looked = float("-inf")
        self._warned = False
        self._turn = threading.Lock()
        self._ended = threading.Event()
        self._follow: Callable[[], None] = lambda: None

    def hold(self, follow: Callable[[], None]) -> None:
        """Take the lease if it is free, and from now on renew it, or take it over once it is free.

        `follow` brings the index of this machine in line with the bucket. It is called before the first write
        after another machine's, and every `REFRESH_S` while another one writes. It must take no lock of a
        caller of `check`.
        """
        self._follow = follow
        pause = self._try()
        threading.Thread(target=self._keep, args=(pause,), name="lease of the bucket", daemon=True).start()

    def check(self) -> None:
        """Raise StoreBusy if the lease is not this machine's, another StoreError if the bucket is silent."""
        if time.clock_gettime(_clock) < self._valid_until:
            return
        if not self._turn.acquire(timeout=WAIT_S):
            raise _taking_over()
        try:
            self._renew(following=False)
        finally:
            self._turn.release()

    def release(self) -> None:
        """Give the lease back, unless another process of this machine uses it. `check` takes it again."""
        self._ended.set()
        with self._turn, contextlib.suppress(Exception):  # then it runs out by itself
            held, self._valid_until = time.clock_gettime(_clock) < self._valid_until, 0.0
            try:
                fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                number, found = self._read() if held else (0, {})
                if found.get("holder") == self._holder:
                    self._files.pipe_file(self._path(number), json.dumps(found | {"until": 0.0}).encode())
            finally:
                fcntl.flock(self._users, fcntl.LOCK_UN)

    # -- internal -------------------------------------------------------------------------------------

    def _keep(self, pause: float) -> None:
        while not self._ended.wait(pause):
            pause = self._try()

    def _try(self) -> float:
        """Renew the lease or take it over, if possible; seconds until it should be tried again."""
        pause = RENEW_S
        with self._turn:
            try:
                self._renew(following=True)
                self._warned = False
                return pause
            except _Taken as error:
                pause = min(RENEW_S, max(0.2, error.left))
            except StoreError as error:  # a bucket that may only be read, a network that is down, ...
                _log.log(
                    logging.DEBUG if self._warned else logging.WARNING, "no lease of the store: %s", error
                )
                self._warned = True
            if time.monotonic() - self._looked > REFRESH_S:
                self._looked = time.monotonic()
                with contextlib.suppress(StoreError):  # the next look may be better
                    self._follow()
        return pause

    def _renew(self, *, following: bool) -> None:
        """Extend the lease from now on, or take it. The caller has the turn.

        Raises:
            StoreBusy: another machine has it; or had it, and this one must follow first, which it may not.
        """
        began = time.clock_gettime(_clock)
        with errors_afar(self._root):
            fcntl.flock(self._users, fcntl.LOCK_SH)  # see `release`
            number, found = self._read()
            mine = found.get("holder") == self._holder
            if found and not mine and found["until"] > time.time():
                self._valid_until = 0.0
                raise _Taken(found)
            behind = number if mine else -1
            if self._in_line() != behind and not following:
                raise _taking_over()
            if not (mine and self._extend(number, found["until"])):
                number = self._take(number + 1)
            if self._in_line() != behind:
                self._follow()
            if number != behind:
                _write(self._beside / IN_LINE, str(number))
            self._valid_until = began + LEASE_S - SLACK_S

    def _extend(self, number: int, until: float) -> bool:
        """Renew an own lease; whether that was done before another machine may think that it has ended."""
        if time.time() < until - SLACK_S:
            self._files.pipe_file(self._path(number), self._content())
        return time.time() < until - SLACK_S

    def _take(self, number: int) -> int:
        """Make the object of a number, which no other machine has made; gives the number."""
        content = self._content()
        with contextlib.suppress(FileExistsError):
            self._files.pipe_file(self._path(number), content, mode="create")
        newest, found = self._read()  # which also shows who was first in a bucket that does not know `create`
        if newest != number or found.get("holder") != self._holder:
            self._valid_until = 0.0
            raise _Taken(found)
        for before in self._numbers() - {number}:
            with contextlib.suppress(Exception):  # the highest number counts, whatever others there are
                self._files.rm_file(self._path(before))
        return number

    def _content(self) -> bytes:
        until = time.time() + LEASE_S
        return json.dumps({"holder": self._holder, "host": socket.gethostname(), "until": until}).encode()

    def _read(self) -> tuple[int, dict[str, Any]]:
        """The highest number and its lease; 0 and nothing if there is none."""
        number = max(self._numbers(), default=0)
        if number:
            with contextlib.suppress(FileNotFoundError):  # a higher one has just been made
                return number, dict(json.loads(self._files.cat_file(self._path(number))))
        return number, {}

    def _numbers(self) -> set[int]:
        self._files.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            names = [str(path).rpartition("/")[2] for path in self._files.ls(self._folder, detail=False)]
            return {int(name) for name in names if name.isdecimal()}
        return set()

    @property
    def _folder(self) -> str:
        return f"{self._root}/{FOLDER}"

    def _path(self, number: int) -> str:
        return f"{self._folder}/{number:08}"

    def _in_line(self) -> int:
        """Number of the lease under which the index was last in line with the bucket; 0 if never."""
        try:
            return int((self._beside / IN_LINE).read_text("ascii"))
        except (OSError, ValueError):
            return 0


class _Taken(StoreBusy):
    """Another machine has the lease."""

    def __init__(self, found: dict[str, Any]) -> None:
        self.left = max(0.0, float(found.get("until", 0)) - time.time())
        super().__init__(
            f"Another server, on {found.get('host', 'another machine')}, writes to this image store.",
            "One machine at a time may: use that server, or stop it. If it is gone, this one takes over in "
            f"{self.left:.0f} s.",
        )


def _taking_over() -> StoreBusy:
    return StoreBusy("This server is taking over the image store.", "Try again in a few seconds.")


def _name_of(folder: Path) -> str:
    """A random name that stays with a folder on this machine. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / HOLDER
    if not (path.exists() and path.read_text("ascii")):
        _write(path, secrets.token_hex(16), replacing=False)
    return f"{path.read_text('ascii')}-{_machine()}"


def _machine() -> str:
    """What tells this machine from another one to which the folder was copied."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return socket.gethostname()


def _write(path: Path, text: str, *, replacing: bool = True) -> None:
    """Write a small file, which others see as a whole or not at all. Raises OSError."""
    aside = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
    aside.write_text(text, "ascii")
    try:
        if replacing or (path.exists() and not path.read_text("ascii")):
            aside.replace(path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)
