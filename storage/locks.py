"""Locks between threads and processes of one machine.

Every lock is an `flock`, which the kernel releases when its holder ends: there are no stale locks, and no
expiry or heartbeat is needed. Writers hold `write.lock` shared; deletion and maintenance hold it exclusively.
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
        """Hold the shared write lock: excludes `exclusive`, not other writers. Blocks until available."""
        with self._locked("write.lock", fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def exclusive(self) -> Generator[None]:
        """Hold the exclusive write lock: excludes all writers. Blocks until available."""
        with self._locked("write.lock", fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def quota(self) -> Generator[None]:
        """Hold the exclusive lock for writes under a quota. Blocks until available."""
        with self._locked("quota.lock", fcntl.LOCK_EX):
            yield

    @contextlib.contextmanager
    def maintenance(self, work: str) -> Generator[None]:
        """Hold the exclusive maintenance lock, without blocking; `work` names the task in the error message.

        Raises:
            StoreBusy: another task holds the lock.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._locked("care.lock", fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                raise _maintenance_running(work) from None
            yield

    def register_writer(self) -> Callable[[], None]:
        """Register this process as a writer; call the result to deregister.

        A process that ends without deregistering is reported by `has_dead_writer`. Requires `shared` or
        `exclusive`.
        """
        path, handle, process = *self._new_locked_file(self.writers), os.getpid()

        def deregister() -> None:
            if os.getpid() == process:  # not in a forked child, which shares the lock
                _release(path, handle)

        return deregister

    def has_dead_writer(self) -> bool:
        """Whether a writer ended without deregistering. Reliable only under `exclusive`."""
        return any(_is_released(path) for path in self._files_in(self.writers))

    def forget_dead_writers(self) -> None:
        """Remove the registrations of writers that died. Requires `exclusive`."""
        for path in self._files_in(self.writers):
            if _is_released(path):
                _remove(path)

    @contextlib.contextmanager
    def lease(self, digests: Iterable[Digest]) -> Generator[None]:
        """Protect images from deletion until the block exits or this process ends."""
        path, handle = self._new_locked_file(self.leases)
        try:
            os.write(handle, b"".join(digest.raw for digest in digests))
            yield
        finally:
            _release(path, handle)

    def leased_images(self) -> set[Digest]:
        """All images with an active lease. Removes leases of ended processes. Requires `exclusive`.

        Raises:
            StoreError: a lease file cannot be read.
        """
        found: set[Digest] = set()
        for path in self._files_in(self.leases):
            if _is_released(path):
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

    def _files_in(self, folder: Path) -> list[Path]:
        """The regular files in a folder; other entries are ignored."""
        try:
            with os.scandir(folder) as entries:
                return [Path(entry.path) for entry in entries if entry.is_file(follow_symlinks=False)]
        except OSError as error:
            raise from_os_error(error, self.folder.parent, reading=True) from error

    def _new_locked_file(self, folder: Path) -> tuple[Path, int]:
        """The path and descriptor of a new file, locked until the descriptor is closed."""
        path = folder / secrets.token_hex(8)
        handle = self._open(path)
        fcntl.flock(handle, fcntl.LOCK_EX)
        return path, handle

    @contextlib.contextmanager
    def _locked(self, name: str, operation: int) -> Generator[None]:
        # A new descriptor per use, so that flock also excludes other threads of this process.
        handle = self._open(self.folder / name)
        try:
            fcntl.flock(handle, operation)
            yield
        finally:
            os.close(handle)

    def _open(self, path: Path) -> int:
        try:
            return create(path, self.folder)
        except OSError as error:
            raise from_os_error(error, self.folder.parent) from error


class MemoryLocks:
    """`Locks` for a store in memory, which no other process can use."""

    def __init__(self) -> None:
        self._turn = threading.Condition()
        self._writers = 0
        self._exclusive = False
        self._quota = threading.Lock()
        self._maintenance = threading.Lock()
        self._leases: dict[object, set[Digest]] = {}

    def prepare(self) -> None:
        """Does nothing."""

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
            raise _maintenance_running(work)
        try:
            yield
        finally:
            self._maintenance.release()

    def register_writer(self) -> Callable[[], None]:
        """Does nothing: the store ends with this process."""
        return lambda: None

    def has_dead_writer(self) -> bool:
        """Always False."""
        return False

    def forget_dead_writers(self) -> None:
        """Does nothing."""

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


def _maintenance_running(work: str) -> StoreBusy:
    return StoreBusy(
        f"Cannot {work}: another process is collecting or rebuilding this store.",
        "Try again when it has finished.",
    )


def _release(path: Path, handle: int) -> None:
    _remove(path)
    os.close(handle)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # already removed, or owned by another user
        path.unlink()


def _is_released(path: Path) -> bool:
    """Whether the file exists and no process holds its lock. A file that cannot be opened counts as held."""
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
