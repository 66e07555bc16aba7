"""Who may do what at once, across threads and processes of one machine.

Knows only files: every lock is an `flock`, which the kernel gives back when its holder dies, so there is no
expiry, no heartbeat and no stale lock. Writers share `write.lock`; whoever deletes takes it alone.
"""

import contextlib
import fcntl
import os
import secrets
import threading
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

from storage.digest import Digest
from storage.errors import StoreBusy, from_os_error, unreadable_lease
from storage.permissions import create, make_folder


class Locks:
    """The lock files of one store, in `<store>/locks/`."""

    def __init__(self, store: Path) -> None:
        self.folder = store / "locks"
        self.leases = self.folder / "leases"
        self.writers = self.folder / "writers"

    def prepare(self) -> None:
        """Create the folders."""
        for folder in (self.leases, self.writers):
            make_folder(folder, self.folder)

    @contextlib.contextmanager
    def shared(self) -> Generator[None]:
        """Share the store with other writers, and with nobody who deletes. Waits."""
        with self._locked("write.lock", fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def exclusive(self) -> Generator[None]:
        """Keep every writer out. Waits for those who are in."""
        with self._locked("write.lock", fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def quota(self) -> Generator[None]:
        """Be the only one who fills up a quota. Waits."""
        with self._locked("quota.lock", fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def maintenance(self, work: str) -> Generator[None]:
        """The exclusive lease of long maintenance (`work` says which).

        Raises:
            StoreBusy: another process holds it.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked("care.lock", fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                raise _taken(work) from None
            yield

    def register_writer(self) -> Callable[[], None]:
        """Register this process as a writer; call the result to deregister.

        A process that ends without deregistering is reported by `has_dead_writer`. Requires `shared` or
        `exclusive`.
        """
        path, handle, process = *self._signed(self.writers), os.getpid()

        def deregister() -> None:
            if os.getpid() == process:  # a fork's copy of this says nothing
                _take_back(path, handle)

        return deregister

    def has_dead_writer(self) -> bool:
        """Whether a writer died. Sure only if called `alone`: one may be signing in right now."""
        return any(_holder_gone(path) for path in self._signs(self.writers))

    def forget_dead_writers(self) -> None:
        """Forget the writers who died. Call it `alone`."""
        for path in self._signs(self.writers):
            if _holder_gone(path):
                _remove(path)

    @contextlib.contextmanager
    def lease(self, digests: Iterable[Digest]) -> Generator[None]:
        """Name images that must not be deleted until the block ends, or this process does."""
        path, handle = self._signed(self.leases)
        try:
            os.write(handle, b"".join(digest.raw for digest in digests))
            yield
        finally:
            _take_back(path, handle)

    def leased_images(self) -> set[Digest]:
        """Every image named by a living lease; forgets those whose holder is gone. Call it `alone`."""
        found: set[Digest] = set()
        for path in self._signs(self.leases):
            if _holder_gone(path):
                _remove(path)
                continue
            try:
                raw = path.read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise unreadable_lease(path.name, self.folder.parent) from error
            found.update(Digest(raw[at : at + 32]) for at in range(0, len(raw) - 31, 32))
        return found

    def _signs(self, folder: Path) -> list[Path]:
        """The files in a folder. What else lies there was put there by somebody else, and says nothing."""
        try:
            with os.scandir(folder) as entries:
                return [Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False)]
        except OSError as error:
            raise from_os_error(error, self.folder.parent, reading=True) from error

    def _signed(self, folder: Path) -> tuple[Path, int]:
        """A new file that this process keeps locked while it lives."""
        path = folder / secrets.token_hex(8)
        handle = self._open(path)
        fcntl.flock(handle, fcntl.LOCK_EX)
        return path, handle

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
            return create(path, self.folder)
        except OSError as error:
            raise from_os_error(error, self.folder.parent) from error


class MemoryLocks:
    """The same for a store in memory, which no other process can use. Nobody but this process can die."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._writers = 0
        self._exclusive = False
        self._quota = threading.Lock()
        self._maintenance = threading.Lock()
        self._leases: dict[object, set[Digest]] = {}

    def prepare(self) -> None:
        """Nothing needs to be prepared."""

    @contextlib.contextmanager
    def shared(self) -> Generator[None]:
        """See `Locks`."""
        with self._turn:
            self._turn.wait_for(lambda: not self._exclusive)
            self._writers += 1
        try:
            yield
        finally:
            with self._turn:
                self._writers -= 1
                self._turn.notify_all()

    @contextlib.contextmanager
    def exclusive(self) -> Generator[None]:
        """See `Locks`."""
        with self._turn:
            self._turn.wait_for(lambda: not self._exclusive and not self._writers)
            self._exclusive = True
        try:
            yield
        finally:
            with self._turn:
                self._exclusive = False
                self._turn.notify_all()

    @contextlib.contextmanager
    def quota(self) -> Generator[None]:
        """See `Locks`."""
        with self._quota:
            yield

    @contextlib.contextmanager
    def maintenance(self, work: str) -> Generator[None]:
        """See `Locks`."""
        if not self._maintenance.acquire(blocking=False):
            raise _taken(work)
        try:
            yield
        finally:
            self._maintenance.release()

    def register_writer(self) -> Callable[[], None]:
        """See `Locks`: there is nobody who could look for a writer that died."""
        return lambda: None

    def has_dead_writer(self) -> bool:
        """Never."""
        return False

    def forget_dead_writers(self) -> None:
        """There is nobody to forget."""

    @contextlib.contextmanager
    def lease(self, digests: Iterable[Digest]) -> Generator[None]:
        """See `Locks`."""
        name = object()
        self._leases[name] = set(digests)
        try:
            yield
        finally:
            del self._leases[name]

    def leased_images(self) -> set[Digest]:
        """See `Locks`."""
        return {digest for digests in list(self._leases.values()) for digest in digests}


def _taken(work: str) -> StoreBusy:
    return StoreBusy(
        f"Cannot {work}: another process is collecting or rebuilding this store.",
        "Try again when it is done.",
    )


def _take_back(path: Path, handle: int) -> None:
    _remove(path)
    os.close(handle)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # it is gone, or it is not ours to remove
        path.unlink()


def _holder_gone(path: Path) -> bool:
    """Whether the file is there, but not its holder. One that may not be opened counts as held."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(handle)
    return True
