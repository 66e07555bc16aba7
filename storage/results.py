"""Values that the store returns: frozen, without a reference to the store."""

import builtins
from dataclasses import dataclass
from datetime import UTC, datetime

from storage.codec import MIME_TYPE
from storage.digest import Digest
from storage.index.search import Origin
from storage.index.tables import ImageRow
from storage.records import Record


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The metadata of a stored image."""

    id: Digest
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    mime_type: str
    bytes: int
    """Size of the encoded image in bytes."""
    created: datetime
    """Time of first storage, UTC."""
    label: str | None = None
    pinned: bool = False
    notes: tuple[str, ...] = ()
    """Set by `ImageStore.put` only: sentences on what was dropped, reduced or converted."""
    history: builtins.bytes = b""
    """Set by `ImageStore.put` only: the history in the file, see `history.from_text`; not stored."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list of images, newest first."""

    images: tuple[StoredImage, ...]
    cursor: str | None
    """Cursor of the next page; None on the last page."""


@dataclass(frozen=True, slots=True)
class Ancestor:
    """An image in a lineage, with the record that made it."""

    image: StoredImage
    record_id: Digest | None
    record: Record | None
    """None for an image that was imported without a record."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Amount of data stored."""

    images: int
    bytes: int
    """Total size of all images and records."""
    quota_bytes: int | None


def stored_image(row: ImageRow) -> StoredImage:
    """The metadata in an index row."""
    created = datetime.fromtimestamp(row.created // 1000 / 1_000_000, UTC)
    return StoredImage(row.digest, row.width, row.height, MIME_TYPE, row.size, created, row.label, row.pinned)


def ancestor(origin: Origin) -> Ancestor:
    """The result for a lineage entry of the index."""
    return Ancestor(stored_image(origin.image), origin.record_id, origin.record)
