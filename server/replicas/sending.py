"""Tasks on their way to a replica: pictures and adapters as references into Ray's object store.

A picture is put there once, whatever the number of requests and replicas that use it; a replica fetches what
it does not remember. References travel inside of a value, as Ray fetches those that are arguments themselves
before anybody can say that they are not needed.
"""

import asyncio
import atexit
import hashlib
import os
import pickle
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from PIL.Image import Image

from omnigen2.adapters.file import Adapter, WeightedAdapter
from omnigen2.task import ImageTask, Task

KEPT_BYTES = 64 * 2**20
"""Bytes of pictures that the front keeps in the object store for the next request."""
REMEMBERED_PIXELS = 64 * 2**20
"""Pixels of decoded pictures that a replica remembers."""
COPIES = "omnigen2-adapters-"
"""What the names of folders with copies of adapters begin with; machine and process follow."""


class Missing(Exception):
    """A replica lacks an adapter that the front thought it had: it was started anew."""


@dataclass(frozen=True)
class Blob:
    """Bytes in the object store, by their SHA-256."""

    digest: str
    ref: Any
    """Reference to the bytes; None if the replica is known to have them."""


@dataclass(frozen=True)
class SentTask:
    """A task without its pictures and the files of its adapters, and these."""

    task: Task
    pictures: tuple[Blob, ...]
    adapters: tuple[Blob, ...] = ()
    """One for each adapter of the task, in order."""


def adapters_of(task: Task) -> tuple[WeightedAdapter, ...]:
    """The adapters of a task; a text has none."""
    return task.adapters if isinstance(task, ImageTask) else ()


class Sender:
    """Packs tasks for replicas. Safe for use by several threads."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        self._kept: OrderedDict[str, tuple[Any, int]] = OrderedDict()
        self._lock = threading.Lock()

    def pack(self, task: Task, known_adapters: set[str]) -> SentTask:
        """The task as it travels; files of adapters go along unless their digest is known.

        Raises:
            OSError, ValueError: a picture or an adapter cannot be read.
        """
        pictures = tuple(self._picture(image) for image in task.images)
        adapters = tuple(
            Blob(
                own.adapter.digest, None if own.adapter.digest in known_adapters else self._file(own.adapter)
            )
            for own in adapters_of(task)
        )
        return SentTask(replace(task, images=()), pictures, adapters)

    def _picture(self, image: Any) -> Blob:
        data = pickle.dumps(image, protocol=5)
        return self._put(hashlib.sha256(data).hexdigest(), data)

    def _file(self, adapter: Adapter) -> Any:
        kept = self._kept.get(adapter.file_digest)
        return kept[0] if kept else self._put(adapter.file_digest, adapter.read()).ref

    def _put(self, digest: str, data: bytes) -> Blob:
        """What is kept under this digest, or is put there now; what was used longest ago is let go of."""
        with self._lock:
            if digest not in self._kept:
                self._kept[digest] = self._ray.put(data), len(data)
            self._kept.move_to_end(digest)
            ref, _ = self._kept[digest]
            while sum(size for _, size in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        return Blob(digest, ref)


class Receiver:
    """Unpacks tasks in a replica, and remembers what they brought. For one event loop."""

    def __init__(self) -> None:
        self._pictures: OrderedDict[str, Image] = OrderedDict()
        self._adapters: dict[str, asyncio.Task[Path]] = {}
        """Where the files of adapters are, by digest, or their way here."""
        self.fetched = 0
        """Number of blobs that were fetched, not remembered."""

    async def unpack(self, sent: SentTask) -> Task:
        """The task with its pictures and adapters. Raises Missing, or what Ray does if something is lost."""
        pictures = tuple([await self._picture(blob) for blob in sent.pictures])
        task = replace(sent.task, images=pictures)
        if isinstance(task, ImageTask):
            task = replace(task, adapters=await self._all_adapters(task.adapters, sent.adapters))
        return task

    async def _picture(self, blob: Blob) -> Image:
        picture = self._pictures.pop(blob.digest, None)
        if picture is None:
            self.fetched += 1
            picture = pickle.loads(await blob.ref)
        self._pictures[blob.digest] = picture
        while sum(own.width * own.height for own in self._pictures.values()) > REMEMBERED_PIXELS:
            self._pictures.popitem(last=False)
        return picture

    async def _all_adapters(
        self, wanted: Sequence[WeightedAdapter], blobs: Sequence[Blob]
    ) -> tuple[WeightedAdapter, ...]:
        return tuple(
            [
                replace(own, adapter=replace(own.adapter, path=await self._adapter(own.adapter, blob)))
                for own, blob in zip(wanted, blobs, strict=True)
            ]
        )

    async def _adapter(self, adapter: Adapter, blob: Blob) -> Path:
        """Where this machine has the file of an adapter: where the front has it, or a copy that was sent."""
        known = self._adapters.get(adapter.digest)
        if known is None or (known.done() and (known.cancelled() or known.exception())):
            known = self._adapters[adapter.digest] = asyncio.ensure_future(self._found(adapter, blob))
        return await asyncio.shield(known)  # others may wait for it, too

    async def _found(self, adapter: Adapter, blob: Blob) -> Path:
        if await asyncio.to_thread(_is_here, adapter):
            return adapter.path
        if blob.ref is None:
            raise Missing(f"adapter {adapter.path.name}")
        self.fetched += 1
        return await asyncio.to_thread(_copied, adapter, await blob.ref)


def _copied(adapter: Adapter, data: bytes) -> Path:
    """A file with the bytes of an adapter. Raises Missing if they are not those that were sent."""
    if hashlib.sha256(data).hexdigest() != adapter.file_digest:
        raise Missing(f"adapter {adapter.path.name}: it was damaged on its way")
    folder = _folder_for_copies() / adapter.file_digest
    folder.mkdir(exist_ok=True)
    path = folder / adapter.path.name
    path.write_bytes(data)
    return path


@cache
def _folder_for_copies() -> Path:
    """A folder of this process; those of replicas that were killed on this machine are removed."""
    start = f"{COPIES}{os.uname().nodename}-"
    for left in Path(tempfile.gettempdir()).glob(f"{start}*"):
        pid = left.name.removeprefix(start).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f"{start}{os.getpid()}-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _is_here(adapter: Adapter) -> bool:
    """Whether the adapter's path leads to the same file on this machine."""
    try:
        adapter.read()
    except (OSError, ValueError):
        return False
    return True
