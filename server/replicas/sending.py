"""Tasks on their way to a replica: pictures and adapters as references into Ray's object store.

A picture is put there once, whatever the number of requests and replicas that use it; a replica fetches what
it does not remember. References travel inside of a value, as Ray fetches those that are arguments themselves
before anybody can say that they are not needed.
"""

import hashlib
import pickle
import secrets
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL.Image import Image

from omnigen2.adapters.file import Adapter, WeightedAdapter
from omnigen2.task import ImageTask, Task

KEPT_BYTES = 64 * 2**20
"""Bytes of pictures that the front keeps in the object store for the next request."""
REMEMBERED_PICTURES = 16
"""Decoded pictures that a replica remembers."""


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
        self._adapters: dict[str, Path] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="omnigen2-adapters-")
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
        if blob.digest not in self._pictures:
            self.fetched += 1
            self._pictures[blob.digest] = pickle.loads(await blob.ref)
        self._pictures.move_to_end(blob.digest)
        picture = self._pictures[blob.digest]
        if len(self._pictures) > REMEMBERED_PICTURES:
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
        path = self._adapters.get(adapter.digest)
        if path is None:
            path = adapter.path if _is_here(adapter) else await self._copied(adapter, blob)
            self._adapters[adapter.digest] = path
        return path

    async def _copied(self, adapter: Adapter, blob: Blob) -> Path:
        if blob.ref is None:
            raise Missing(f"adapter {adapter.path.name}")
        self.fetched += 1
        folder = Path(self._folder.name) / adapter.file_digest
        folder.mkdir(exist_ok=True)
        path = folder / adapter.path.name
        fresh = path.with_name(secrets.token_hex(8))  # another task may be reading the file
        fresh.write_bytes(await blob.ref)
        return fresh.replace(path)


def _is_here(adapter: Adapter) -> bool:
    """Whether the adapter's path leads to the same file on this machine."""
    try:
        adapter.read()
    except (OSError, ValueError):
        return False
    return True
