"""Resolve what a caller names to a stored image, if the caller may name it.

The spellings are in `tools/references.py`; here is the policy: files only within the caller's folders,
and never through a link; addresses only if the host allows it; nothing larger than the store takes.
"""

import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from anyio import CapacityLimiter, from_thread, to_thread

from server.errors import as_tool_error
from storage import StoredImage, StoreView
from storage.errors import ImageRejected, StoreError
from storage.safe_files import IsLink, NotRegular, names_in, new_file, open_file, real_folder
from tools.base import OpenFile, Pick, ToolError
from tools.references import (
    DataRef,
    FileRef,
    StoredRef,
    UrlRef,
    names_stored,
    parse_reference,
    shown,
    source_of,
)

if TYPE_CHECKING:
    from server.fetch import Fetcher

OTHERWISE = (
    "Name a file in an allowed folder, send the picture as a data: URI, or give the id of a stored one."
)
ALLOW = (
    "Give the file itself if this is a link to it. For a file elsewhere ask the host to allow its folder "
    "(omnigen2-mcp serve --allow-dir FOLDER), or send a picture as a data: URI."
)
ALLOW_WRITING = (
    "Give a path inside an allowed folder, such as picture.png, or ask the host to allow the folder "
    "(omnigen2-mcp serve --allow-dir FOLDER)."
)
WAITING = 64
"""Pictures that are being decoded or wait for it, in threads of their own."""


class References:
    """How references of one server are resolved; without a fetcher, nothing is fetched."""

    def __init__(self, fetcher: "Fetcher | None") -> None:
        self._fetcher = fetcher
        self._decoding = CapacityLimiter(WAITING)

    def look_up(
        self, store: StoreView, reference: str, field: str, own: Sequence[str] = ()
    ) -> StoredImage | None:
        """The image, if `reference` is the id of one in `store` or its address; not for the event loop.

        `own` are the addresses of this server, as for `parse_reference`.

        Raises:
            ToolError: `image_not_found` or `invalid_argument`, naming `field`.
        """
        if not names_stored(reference, own):
            return None
        try:
            found = _find(store, reference, field, (), own)
        except StoreError as error:
            raise as_tool_error(error, field) from error
        return found if isinstance(found, StoredImage) else None

    async def resolve(
        self,
        store: StoreView,
        reference: str,
        field: str,
        folders: Sequence[Path],
        own: Sequence[str] = (),
    ) -> StoredImage:
        """The image in `store` that `reference` means; one from outside is stored first.

        Raises:
            ToolError: `image_not_found`, `image_rejected`, `forbidden` or `invalid_argument`, naming `field`.
        """
        try:
            found = await to_thread.run_sync(_find, store, reference, field, folders, own)
            if isinstance(found, StoredImage):
                return found
            data = found if isinstance(found, bytes) else await self._fetch(found, field)
            # A caller who has gone has its picture's decoding ended.
            source, gone = source_of(reference), from_thread.check_cancelled
            put = partial(store.put, data, source=source, checkpoint=gone)
            return await to_thread.run_sync(put, limiter=self._decoding)
        except StoreError as error:
            raise as_tool_error(error, field) from error

    async def _fetch(self, address: UrlRef, field: str) -> bytes:
        if self._fetcher is None:
            raise ToolError(
                "forbidden", f"{field}: {shown(address.url)}: this server fetches no addresses.", OTHERWISE
            )
        return await self._fetcher.fetch(address.url, field)


def _find(
    store: StoreView, reference: str, field: str, folders: Sequence[Path], own: Sequence[str]
) -> StoredImage | bytes | UrlRef:
    """The image or its bytes, if they are on this machine; else the address to fetch."""
    most = store.limits.bytes
    if len(reference) > most * 4 // 3 + 1024:  # before base64 is decoded
        raise ImageRejected(
            f"The reference has {len(reference):,} characters; an image may have {most:,} bytes.",
            "Send a smaller picture.",
        )
    match parse_reference(reference, field, own):
        case StoredRef(digits):
            return store.get(digits)
        case DataRef(data=data):
            return data
        case FileRef(path):
            return _read(path, field, folders, most)
        case UrlRef() as address:
            return address


def open_allowed(path: Path, field: str, folders: Sequence[Path], pick: Pick | None = None) -> OpenFile:
    """Open a file that is named by a client, if it lies below one of the folders; where it is, and the file.

    With `pick`, `path` may be a folder: the file in it that `pick` names.

    Raises:
        ToolError: `forbidden`: it lies elsewhere or behind a link; whether it exists is not revealed.
        OSError: it cannot be read; `NotRegular` if it is not a file.
    """
    real = allowed_path(path, field, folders)
    try:
        names = names_in(real) if pick else None
        real = real if names is None or pick is None else real / pick(names)
        return real, open_file(real)
    except IsLink as error:
        raise _forbidden(
            path, field, "it is a link or lies behind one, and links are not followed"
        ) from error


@contextmanager
def new_allowed(
    path: Path, field: str, folders: Sequence[Path], replace: bool
) -> Generator[tuple[Path, Callable[[bytes], None]]]:
    """Where a file will be that is named by a client, and a function that writes it, see `new_file`.

    Raises:
        ToolError: `forbidden`: it lies outside of the folders or behind a link.
        OSError: it cannot be written, see `new_file`.
    """
    real = allowed_path(path, field, folders, writing=True)
    try:
        with new_file(real, replace=replace) as write:
            yield real, write
    except IsLink as error:
        reason = "it is a link or lies behind one, and links are not followed"
        raise _forbidden(path, field, reason, ALLOW_WRITING) from error


def allowed_path(path: Path, field: str, folders: Sequence[Path], *, writing: bool = False) -> Path:
    """Where `path` is below one of the folders, by its text alone; the disk is not read.

    A relative path starts in the first folder. The host may give a folder through a link; where that leads is
    found out once.

    Raises:
        ToolError: `forbidden`, naming the folders.
    """
    homes = {name: real for folder in folders for real in (real_folder(folder),) for name in (real, folder)}
    if homes:
        whole = Path("/" + os.path.normpath(next(iter(homes)) / path).lstrip("/"))
        homes_of = [home for home in homes if whole.is_relative_to(home)]
        if homes_of:
            home = max(homes_of, key=lambda home: len(home.parts))
            return homes[home] / whole.relative_to(home)
    known = ", ".join(dict.fromkeys(map(str, homes.values())))
    if writing:
        reason = f"files are written inside {known}" if known else "this server writes files to no folder"
        raise _forbidden(path, field, reason, ALLOW_WRITING)
    raise _forbidden(
        path, field, f"files are read inside {known}" if known else "files are read from no folder"
    )


def _forbidden(path: Path, field: str, reason: str, advice: str = ALLOW) -> ToolError:
    return ToolError("forbidden", f"{field}: {shown(str(path))} may not be used: {reason}.", advice)


def _read(path: Path, field: str, folders: Sequence[Path], most: int) -> bytes:
    """The bytes of an allowed file of up to `most` bytes."""
    name = shown(str(path))
    try:
        with open_allowed(path, field, folders)[1] as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise ImageRejected(
                    f"{name} has {size:,} bytes; at most {most:,} are taken.", "Send a smaller picture."
                )
            return file.read(most + 1)  # it may have grown: the store refuses one byte too many
    except NotRegular:
        raise ToolError("image_rejected", f"{field}: {name} is not a regular file.", OTHERWISE) from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise ToolError("image_not_found", f"{field}: {name} cannot be read: {reason}.", OTHERWISE) from error
