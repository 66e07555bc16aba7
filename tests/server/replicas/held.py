"""Replicas in the place of the held engine (`HeldEngine`): their engines stand still where a test wants it.

`pytest --replicas 2 tests/server/surfaces/test_mcp.py` runs tests on them. A replica is another process, so
that what the test wants is in files of a folder.
"""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio

from omnigen2.factory import Checkpoints
from omnigen2.memory.placement import Placement
from omnigen2.task import Backend, Progress, Task, Ticket
from server.replicas.backend import RemoteBackend

WAIT_S = 60


class FileEvent(threading.Event):
    """An event of several processes: it is set when its file is there."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def is_set(self) -> bool:
        return self._path.exists()

    def set(self) -> None:
        self._path.touch()

    def clear(self) -> None:
        self._path.unlink(missing_ok=True)

    def wait(self, timeout: float | None = None) -> bool:
        end = time.monotonic() + (timeout or WAIT_S)
        while not self.is_set() and time.monotonic() < end:
            time.sleep(0.01)
        return self.is_set()


class Holding(Checkpoints):
    """Checkpoints, loaded into engines that a folder holds at a step. Travels to the replicas."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, model: str, placement: Placement, evict: Callable[[], bool]) -> Backend:
        backend = super().load(model, placement, evict)
        submit, wanted = backend.submit, self.folder / "hold_at"

        def held(task: Task, on_progress: Callable[[Progress], None]) -> Ticket:
            def listen(progress: Progress) -> None:
                on_progress(progress)
                if wanted.exists() and wanted.read_text() == str(progress.step):
                    wanted.unlink()
                    FileEvent(self.folder / "reached").set()
                    FileEvent(self.folder / "released").wait()

            return submit(task, listen)

        backend.submit = held  # type: ignore[method-assign]
        return backend


class HeldReplicas:
    """A `Backend` for one test, over replicas that all tests share; as a test uses `HeldEngine`."""

    def __init__(self, remote: RemoteBackend, folder: Path) -> None:
        self.card, self.cost, self.stalled_s = remote.card, remote.cost, remote.stalled_s
        self.memory_bytes, self.busy, self.replicas = remote.memory_bytes, remote.busy, remote.replicas
        self._remote, self._folder = remote, folder
        self.reached, self.released = FileEvent(folder / "reached"), FileEvent(folder / "released")
        self.started: list[Task] = []
        self.steps: list[int] = []
        self.submitted = 0
        self._pictures: Any = SimpleNamespace(_room=None)
        self._tickets: list[Ticket] = []
        for own in folder.iterdir():
            own.unlink()

    @property
    def hold_at(self) -> int | None:
        wanted = self._folder / "hold_at"
        return int(wanted.read_text()) if wanted.exists() else None

    @hold_at.setter
    def hold_at(self, step: int) -> None:
        fresh = self._folder / "fresh"
        fresh.write_text(str(step))
        fresh.rename(self._folder / "hold_at")

    async def is_held(self) -> None:
        """Wait until an engine stands still."""
        assert await anyio.to_thread.run_sync(self.reached.wait, WAIT_S)

    def submit(self, task: Task, on_progress: Callable[[Progress], None]) -> Ticket:
        def listen(progress: Progress) -> None:
            if progress.stage == "encode":
                self.started.append(task)
            self.steps.append(progress.step)
            on_progress(progress)

        self.submitted += 1
        self._tickets.append(ticket := self._remote.submit(task, listen))
        return ticket

    def has_room(self, task: Task) -> bool:
        full = self._pictures._room is not None and self.busy()
        return not full and self._remote.has_room(task)

    def close(self) -> None:
        """End what the test has begun; the replicas stay."""
        self.released.set()
        for ticket in self._tickets:
            ticket.cancel()
        end = time.monotonic() + WAIT_S
        while self.busy() and time.monotonic() < end:
            time.sleep(0.01)
