"""SHA-256 of files, computed once for as long as a file stays the same.

A file counts as the same while its device, inode, size, time of modification and time of change are: the
system sets the last of them at every write, and nobody can set it back. Hashes of large files are also kept
on disk; where that memory is damaged, it is begun anew. Needs no torch.
"""

import hashlib
import json
import os
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

LARGE_BYTES = 64 * 2**20
"""From this size on, the hash of a file is remembered between runs."""
REMEMBERED = 4096
"""Most hashes that are remembered."""
SETTLED_NS = 2_000_000_000
"""A file that was changed more recently is read every time: one tick of the clock may hold two writes."""

Stamp = tuple[int, int, int, int, int]

_known: dict[Stamp, str] = {}
_keeping = threading.Lock()
_writing = threading.Lock()


def file_hash(path: Path, start: bytes = b"", kind: str = "sha256") -> str:
    """Hex digest of a file, with `start` before its content."""
    with path.open("rb", buffering=0) as file:
        return _hash(file, start, kind)


def known_hash(file: BinaryIO, memory: Path) -> str | None:
    """The SHA-256 of an open file if it is remembered or quick to compute; None if a large file must be read.

    `memory` is the JSON file that remembers large files between runs.
    """
    stamp = _stamp(file)
    if stamp not in _known and stamp[2] >= LARGE_BYTES and (digest := _read(memory).get(_named(stamp))):
        _keep(stamp, digest)
    return remembered_hash(file) if stamp in _known or stamp[2] < LARGE_BYTES else None


def remembered_hash(file: BinaryIO, memory: Path | None = None) -> str:
    """The SHA-256 of an open file; it is read only if it has changed since it was last hashed."""
    begun, stamp = time.time_ns(), _stamp(file)
    if digest := _known.get(stamp) or (memory and known_hash(file, memory)):
        return digest
    file.seek(0)
    digest = _hash(file)
    if stamp == _stamp(file) and begun - stamp[4] > SETTLED_NS:
        remember(file, digest, memory)
    return digest


def remember(file: BinaryIO, digest: str, memory: Path | None = None) -> None:
    """Keep the SHA-256 of an open file, which is known from elsewhere."""
    stamp = _stamp(file)
    _keep(stamp, digest)
    if memory is None or stamp[2] < LARGE_BYTES:
        return
    with _writing, suppress(OSError):  # a folder that cannot be written costs time, nothing else
        known = [*_read(memory).items(), (_named(stamp), digest)][-REMEMBERED:]
        memory.parent.mkdir(parents=True, exist_ok=True)
        fresh = memory.with_name(f"{memory.name}.{uuid.uuid4().hex}")
        fresh.write_text(json.dumps(dict(known), indent=1), encoding="utf-8")
        fresh.replace(memory)


def _stamp(file: BinaryIO) -> Stamp:
    """Device, inode, size, and times of modification and change in nanoseconds."""
    state = os.fstat(file.fileno())
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _hash(file: BinaryIO, start: bytes = b"", kind: str = "sha256") -> str:
    state = hashlib.new(kind, start)
    for chunk in iter(lambda: file.read(2**20), b""):
        state.update(chunk)
    return state.hexdigest()


def _keep(stamp: Stamp, digest: str) -> None:
    with _keeping:
        if len(_known) >= REMEMBERED:
            del _known[next(iter(_known))]
        _known[stamp] = digest


def _named(stamp: Stamp) -> str:
    return " ".join(map(str, stamp))


def _read(memory: Path) -> dict[str, str]:
    """The hashes that are kept on disk, by stamp; none where they cannot be read."""
    try:
        found: Any = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {stamp: digest for stamp, digest in entries if _is_hash(digest)}


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")
