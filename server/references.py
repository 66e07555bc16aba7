"""From what a caller names to a stored image, and what a caller may name at all.

The spellings are in `tools/references.py`; here is the policy: files only within the caller's folders, by
where they really are; addresses only if the host allows it; nothing larger than the store takes.
"""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from anyio import to_thread

from server.errors import as_tool_error
from storage import ImageStore, StoredImage
from storage.errors import ImageRejected, StoreError
from tools.base import ToolError
from tools.references import DataRef, FileRef, StoredRef, UrlRef, parse_reference, shown

if TYPE_CHECKING:
    from server.fetch import Fetcher

OTHERWISE = (
    "Name a file in an allowed folder, send the picture as a data: URI, or give the id of a stored one."
)


class References:
    """How references of one server are resolved; without a fetcher, nothing is fetched."""

    def __init__(self, store: ImageStore, fetcher: "Fetcher | None") -> None:
        self._store = store
        self._fetcher = fetcher

    async def resolve(self, reference: str, field: str, folders: Sequence[Path]) -> StoredImage:
        """The stored image that `reference` means; one from outside is stored first.

        Raises:
            ToolError: `image_not_found`, `image_rejected`, `forbidden` or `invalid_argument`, naming `field`.
        """
        try:
            found = await to_thread.run_sync(self._look, reference, field, folders)
            if isinstance(found, StoredImage):
                return found
            return await to_thread.run_sync(self._store.put, await self._fetch(found, field))
        except StoreError as error:
            raise as_tool_error(error, field) from error

    def _look(self, reference: str, field: str, folders: Sequence[Path]) -> StoredImage | UrlRef:
        """What can be found on this machine; only addresses are left."""
        most = self._store.limits.bytes
        if len(reference) > most * 4 // 3 + 1024:  # before base64 is decoded
            raise ImageRejected(
                f"The reference has {len(reference):,} characters; an image may have {most:,} bytes.",
                "Send a smaller picture.",
            )
        match parse_reference(reference, field):
            case StoredRef(digits):
                return self._store.get(digits)
            case DataRef(data=data):
                return self._store.put(data)
            case FileRef(path):
                return self._store.put(_read(allowed_path(path, field, folders), reference, field, most))
            case UrlRef() as address:
                return address

    async def _fetch(self, address: UrlRef, field: str) -> bytes:
        if self._fetcher is None:
            raise ToolError(
                "forbidden", f"{field}: {shown(address.url)}: this server fetches no addresses.", OTHERWISE
            )
        return await self._fetcher.fetch(address.url, field)


def allowed_path(path: Path, field: str, folders: Sequence[Path]) -> Path:
    """Where `path` really is, if that is within one of the folders. A relative one starts in the first.

    Raises:
        ToolError: `forbidden`, naming the folders. It does not tell whether there is such a file.
    """
    homes = [folder.resolve() for folder in folders]
    if homes:
        try:
            real = (homes[0] / path).resolve()
            if any(real.is_relative_to(home) for home in homes):
                return real
        except (OSError, RuntimeError, ValueError):  # a loop of links, or no path at all
            pass
    within = f"inside {', '.join(map(str, homes))}" if homes else "from no folder"
    raise ToolError(
        "forbidden", f"{field}: {shown(str(path))} may not be used; files are read {within}.", OTHERWISE
    )


def _read(path: Path, reference: str, field: str, most: int) -> bytes:
    """The bytes of a regular file. `path` has no links left; one that appears meanwhile is not followed."""
    try:
        # Non-blocking, so that opening a pipe that somebody left there does not wait for its other end.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            state = os.fstat(handle)
            if not stat.S_ISREG(state.st_mode):
                raise ToolError("image_rejected", f"{field}: {shown(reference)} is no file.", OTHERWISE)
            if state.st_size > most:
                raise ImageRejected(
                    f"{shown(reference)} has {state.st_size:,} bytes; at most {most:,} are taken.",
                    "Send a smaller picture.",
                )
            with open(handle, "rb", closefd=False) as file:
                return file.read(most + 1)
        finally:
            os.close(handle)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ToolError(
            "image_not_found", f"{field}: {shown(reference)} cannot be read: {reason}.", OTHERWISE
        ) from error
