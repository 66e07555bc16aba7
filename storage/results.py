"""What the store answers with: small frozen values, no handles on the store."""

from dataclasses import dataclass
from datetime import datetime

from storage.digest import Digest
from storage.records import Record


@dataclass(frozen=True, slots=True)
class StoredImage:
    """What is known of an image without its pixels."""

    id: Digest
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    mime_type: str
    bytes: int
    """Size of the encoded image."""
    created: datetime
    """When it was first stored, UTC."""
    label: str | None = None
    pinned: bool = False
    notes: tuple[str, ...] = ()
    """From `ImageStore.put` only: what was dropped, reduced or converted in taking it in; sentences."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some images, newest first."""

    images: tuple[StoredImage, ...]
    cursor: str | None
    """Asks for the next page; None on the last one."""


@dataclass(frozen=True, slots=True)
class Ancestor:
    """An image in a lineage, and how it was made."""

    image: StoredImage
    record_id: Digest | None
    record: Record | None
    """None for an image that came from outside and has no record."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How full the store is."""

    images: int
    bytes: int
    """Of all images and records."""
    quota_bytes: int | None
