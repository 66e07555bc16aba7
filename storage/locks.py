"""Who may do what at once, across threads and processes of one machine.

Knows only files: every lock is an `flock`, which the kernel gives back when its holder dies, so there is no
expiry, no heartbeat and no stale lock. Writers share `write.lock`; whoever deletes takes it alone.
"""

import contextlib
import fcntl
import os
import secrets
from collections.abc import Generator, Iterable
from pathlib import Path

from storage.digest import Digest
from storage.errors import StoreBusy, from_os_error


class Locks:
    """The lock files of one store, in `<store>/locks/`."""

    def __init__(self, store: Path) -> None:
        self.folder = store / "locks"
        self.leases = self.folder / "leases"

    def prepare(self) -> None:
        """Create the folders."""
        self.leases.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def writing(self) -> Generator[None]:
        """Share the store with other writers, and with nobody who deletes. Waits."""
        with self._locked("write.lock", fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def alone(self) -> Generator[None]:
        """Keep every writer out. Waits for those who are in."""
        with self._locked("write.lock", fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def alone_now(self) -> Generator[bool]:
        """As `alone`, but yields False at once, unlocked, if anybody is writing."""
        try:
            with self._locked("write.lock", fcntl.LOCK_EX | fcntl.LOCK_NB):
                yield True
        except BlockingIOError:
            yield False

    @contextlib.contextmanager
    def caring(self, work: str) -> Generator[None]:
        """The exclusive lease of long maintenance (`work` says which).

        Raises:
            StoreBusy: another process holds it.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked("care.lock", fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                raise StoreBusy(
                    f"Cannot {work}: another process is collecting or rebuilding this store.",
                    "Try again when it is done.",
                ) from None
            yield

    @contextlib.contextmanager
    def lease(self, digests: Iterable[Digest]) -> Generator[None]:
        """Name images that must not be deleted until the block ends, or this process does."""
        path = self.leases / secrets.token_hex(8)
        handle = self._open(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            os.write(handle, b"".join(digest.raw for digest in digests))
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(handle)

    def leased(self) -> set[Digest]:
        """Every image named by a living lease; forgets those whose holder is gone. Call it `alone`."""
        found: set[Digest] = set()
        for path in self.leases.iterdir():
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    raw = file.read()
                    found.update(Digest(raw[at : at + 32]) for at in range(0, len(raw), 32))
                else:
                    path.unlink()
        return found

    @contextlib.contextmanager
    def _locked(self, name: str, how: int) -> Generator[None]:
        # A descriptor of its own per use: flock then also keeps threads of one process apart.
        handle = self._open(self.folder / name)
        try:
            fcntl.flock(handle, how)
            yield
        finally:
            os.close(handle)

    def _open(self, path: Path) -> int:
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise from_os_error(error, self.folder.parent) from error
