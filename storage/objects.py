"""Blobs in an object store: S3, GCS, Azure, or memory; whatever fsspec reaches by URL.

Relies on what object stores promise and folders do not: an object appears whole or not at all, and is durable
once the call returns. For folders there is `LocalBlobs`; `open_store` picks. Locks and the index stay on this
machine, so one machine at a time may write to a bucket.
"""

import contextlib
import re
from collections.abc import Generator, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec  # pyright: ignore[reportMissingTypeStubs]

from storage.blobs import Blob
from storage.digest import Digest
from storage.errors import ADVICE_AFAR, InvalidArgument, StoreError, from_os_error
from storage.store import ImageStore, default_store_path

_DIGITS = re.compile(r"[0-9a-f]{64}")
_TIMES = ("LastModified", "last_modified", "updated", "modified", "mtime", "created")
"""What the file systems of fsspec call the time an object was written, surest first."""


def open_store(url: str, quota_bytes: int | None = None) -> ImageStore:
    """The image store at a URL. For an object store the index and the locks lie in this user's data folder;
    of `memory://` nothing is ever on disk.

    Raises:
        InvalidArgument: no such scheme, its fsspec package is not installed, or no bucket is named.
        StoreReadOnly, StoreFull: the folder cannot be written.
    """
    scheme = urlsplit(url).scheme
    if scheme in ("", "file", "local"):
        return ImageStore(unquote(urlsplit(url).path) if scheme else url, quota_bytes)
    in_memory, place = scheme == "memory", url.partition("://")[2].rstrip("/")
    if not (place or in_memory):
        raise InvalidArgument(f"{url} names no bucket.", f"Give one: {scheme}://BUCKET/FOLDER.")
    base = f"{scheme}://{place}/" if place else f"{scheme}://"
    blobs, records = (ObjectBlobs(base + kind) for kind in ("blobs", "records"))
    beside = default_store_path().with_name("indexes") / Digest.of(url.encode()).hex[:16]
    return ImageStore(None if in_memory else beside, quota_bytes, blobs=blobs, records=records)


class ObjectBlobs:
    """Immutable objects `<url>/sha256/<2 hex>/<62 hex>`, on any fsspec file system with whole-object puts."""

    def __init__(self, url: str, **options: Any) -> None:
        """`options` go to the file system: credentials, endpoint, ...

        Raises:
            InvalidArgument: no such scheme, or its fsspec package is not installed.
        """
        self.url = url
        try:
            files: Any = fsspec.url_to_fs(url, **options)  # pyright: ignore
        except (ValueError, ImportError) as error:
            raise InvalidArgument(
                f"{url} names no object store: {error}.", "Check the scheme, or install its fsspec package."
            ) from error
        self._files = files[0]
        self._root = str(files[1]).rstrip("/")

    def put(self, data: bytes) -> Blob:
        digest = Digest.of(data)
        found = self.has(digest)
        with self._asking():
            # Bytes that are not these are damaged: put the right ones there.
            if found is None or bytes(self._files.cat_file(self._path(digest))) != data:
                self._files.pipe_file(self._path(digest), data)
        return self.has(digest) or Blob(digest, len(data), 0)

    def get(self, digest: Digest) -> bytes:
        with self._asking():
            try:
                return bytes(self._files.cat_file(self._path(digest)))
            except FileNotFoundError:
                pass
        raise KeyError(str(digest))

    def has(self, digest: Digest) -> Blob | None:
        with self._asking():
            try:
                return _blob(digest, self._files.info(self._path(digest)))
            except FileNotFoundError:
                return None

    def list(self) -> Iterator[Blob]:
        folder = f"{self._root}/sha256"
        self._files.invalidate_cache(folder)  # another process may have put
        with self._asking():
            found: Mapping[str, Mapping[str, Any]] = self._files.find(folder, detail=True)
        for path, info in found.items():
            digits = "".join(path.rsplit("/", 2)[-2:])
            if _DIGITS.fullmatch(digits):
                yield _blob(Digest(bytes.fromhex(digits)), info)

    def delete(self, digest: Digest) -> None:
        with self._asking(), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(digest))

    @contextlib.contextmanager
    def _asking(self) -> Generator[None]:
        """What goes wrong on the way to the object store, in the store's words."""
        try:
            yield
        except OSError as error:
            raise from_os_error(error, self.url) from error
        except Exception as error:  # of whatever library the file system is built on
            message = f"The image store failed: {type(error).__name__}."  # its text may name what is secret
            raise StoreError(message, ADVICE_AFAR, f"{self.url} ({error})") from error

    def _path(self, digest: Digest) -> str:
        return f"{self._root}/sha256/{digest.hex[:2]}/{digest.hex[2:]}"


def _blob(digest: Digest, info: Mapping[str, Any]) -> Blob:
    return Blob(
        digest, int(info["size"] or 0), _nanoseconds(next((info[at] for at in _TIMES if at in info), 0))
    )


def _nanoseconds(time: datetime | float | str) -> int:
    """Since 1970, to the microsecond, from whatever a file system calls a time."""
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    if isinstance(time, datetime):
        time = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
    return round(time * 1_000_000) * 1000
