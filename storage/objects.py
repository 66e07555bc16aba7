"""Blobs in an object store that fsspec supports: S3, GCS, Azure, memory.

Requires the guarantees of object stores: an object appears complete or not at all, and is durable once the
call returns. Folders use `LocalBlobs`; `open_store` chooses by URL. Locks and the index are on this machine,
so only one machine at a time may write to a bucket: the one that holds its lease (`lease.py`).
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec  # pyright: ignore[reportMissingTypeStubs]

from storage.blobs import Blob
from storage.digest import Digest
from storage.errors import InvalidArgument, errors_afar
from storage.lease import Lease
from storage.paths import default_store_path
from storage.store import ImageStore

_DIGITS = re.compile(r"[0-9a-f]{64}")
_TIMES = ("LastModified", "last_modified", "updated", "modified", "mtime", "created")
"""Names of the modification time in fsspec file systems, in order of preference."""


def open_store(url: str, quota_bytes: int | None = None) -> ImageStore:
    """Open the image store at a path or URL.

    For an object store, index and locks are in this user's data folder. With `memory://`, nothing is on disk.
    While another machine writes to the bucket, it can be read; writes raise StoreBusy.

    Raises:
        InvalidArgument: unknown scheme, its fsspec package is not installed, or the bucket is missing.
        StoreReadOnly, StoreFull: the folder cannot be written.
    """
    scheme = urlsplit(url).scheme
    if scheme in ("", "file", "local"):
        return ImageStore(unquote(urlsplit(url).path) if scheme else url, quota_bytes)
    in_memory, place = scheme == "memory", url.partition("://")[2].rstrip("/")
    if not (place or in_memory):
        raise InvalidArgument(f"{url} names no bucket.", f"Give one: {scheme}://BUCKET/FOLDER.")
    base = f"{scheme}://{place}/" if place else f"{scheme}://"
    beside = default_store_path().with_name("indexes") / Digest.of(url.encode()).hex[:16]
    if in_memory:
        blobs, records = (ObjectBlobs(base + kind) for kind in ("blobs", "records"))
        return ImageStore(None, quota_bytes, blobs=blobs, records=records)
    files, root = _opened(base)
    lease = Lease(files, root, beside)
    blobs, records = (ObjectBlobs(base + kind, lease) for kind in ("blobs", "records"))
    return ImageStore(beside, quota_bytes, blobs=blobs, records=records, lease=lease)


class ObjectBlobs:
    """Blobs as objects `<url>/sha256/<2 hex>/<62 hex>` on an fsspec file system with atomic puts."""

    def __init__(self, url: str, lease: Lease | None = None, **options: Any) -> None:
        """`lease` is asked before each write; `options` are passed to the file system: credentials, ...

        Raises:
            InvalidArgument: unknown scheme, or its fsspec package is not installed.
        """
        self.url = url
        self._lease = lease
        self._files, self._root = _opened(url, **options)

    def put(self, data: bytes) -> Blob:
        digest = Digest.of(data)
        found = self.has(digest)
        with errors_afar(self.url):
            self._check_lease()
            # Other bytes under this name are damaged: replace them.
            if found is None or bytes(self._files.cat_file(self._path(digest))) != data:
                self._files.pipe_file(self._path(digest), data)
            self._check_lease()  # the process may have been stopped for longer than the lease
        return self.has(digest) or Blob(digest, len(data), 0)

    def get(self, digest: Digest) -> bytes:
        with errors_afar(self.url):
            try:
                return bytes(self._files.cat_file(self._path(digest)))
            except FileNotFoundError:
                pass
        raise KeyError(str(digest))

    def has(self, digest: Digest) -> Blob | None:
        with errors_afar(self.url):
            try:
                return _blob(digest, self._files.info(self._path(digest)))
            except FileNotFoundError:
                return None

    def list(self) -> Iterator[Blob]:
        folder = f"{self._root}/sha256"
        self._files.invalidate_cache(folder)  # another process may have stored objects
        with errors_afar(self.url):
            found: Mapping[str, Mapping[str, Any]] = self._files.find(folder, detail=True)
        for path, info in found.items():
            digits = "".join(path.rsplit("/", 2)[-2:])
            if _DIGITS.fullmatch(digits):
                yield _blob(Digest(bytes.fromhex(digits)), info)

    def delete(self, digest: Digest) -> None:
        with errors_afar(self.url), contextlib.suppress(FileNotFoundError):
            self._check_lease()
            self._files.rm_file(self._path(digest))

    def _check_lease(self) -> None:
        if self._lease is not None:
            self._lease.check()

    def _path(self, digest: Digest) -> str:
        return f"{self._root}/sha256/{digest.hex[:2]}/{digest.hex[2:]}"


def _opened(url: str, **options: Any) -> tuple[Any, str]:
    """The file system that a URL means, and the path there. Raises InvalidArgument as `ObjectBlobs`."""
    try:
        files: Any = fsspec.url_to_fs(url, **options)  # pyright: ignore
    except (ValueError, ImportError) as error:
        raise InvalidArgument(
            f"{url} names no object store: {error}.", "Check the scheme, or install its fsspec package."
        ) from error
    return files[0], str(files[1]).rstrip("/")


def _blob(digest: Digest, info: Mapping[str, Any]) -> Blob:
    return Blob(
        digest, int(info["size"] or 0), _nanoseconds(next((info[at] for at in _TIMES if at in info), 0))
    )


def _nanoseconds(time: datetime | float | str) -> int:
    """A time in any form used by fsspec, as nanoseconds since 1970 with microsecond precision."""
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    if isinstance(time, datetime):
        time = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return round(time * 1_000_000) * 1000
