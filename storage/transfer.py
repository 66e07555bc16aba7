"""Export of images as PNG files with embedded records; import of any folder of image files.

Imported files are not trusted: images are decoded like all others, ids are computed, and a record is stored
only if every image it refers to is stored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from storage.decoder import decode
from storage.digest import Digest
from storage.embedding import embed, extract
from storage.errors import ImageNotFound, ImageRejected, InvalidArgument
from storage.records import Record
from storage.recovery import Progress, reporting
from storage.repository import Repository
from storage.results import StoredImage
from storage.safe_files import open_file, write_file

if TYPE_CHECKING:
    from storage.store import ImageStore

_NAME_DIGITS = 16


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file, or a record in a file, that was not imported."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Imported:
    """The result of an import, including images and records that were already stored."""

    images: tuple[StoredImage, ...]
    records: tuple[Digest, ...]
    skipped: tuple[Skipped, ...]


def export(
    store: "ImageStore", digests: Sequence[Digest], folder: Path, progress: Progress | None
) -> tuple[Path, ...]:
    """Write images to `folder` and their ancestors to `folder/lineage`; returns the paths of the former.

    Raises:
        InvalidArgument: the folder cannot be written.
    """
    asked = dict.fromkeys(digests)
    ancestors = store.with_ancestors(asked) - asked.keys()
    tick = reporting(progress, len(asked) + len(ancestors))
    paths = [_write(store, digest, folder) for digest in tick(asked)]
    for digest in tick(sorted(ancestors)):
        _write(store, digest, folder / "lineage")
    return tuple(paths)


def import_folder(
    store: "ImageStore", repository: Repository, folder: Path, progress: Progress | None
) -> Imported:
    """Store every image below `folder`, then every record whose images are all stored, oldest first.

    Raises:
        InvalidArgument: there is no such folder.
        StoreFull, StoreReadOnly: images and records imported before the error remain stored.
    """
    if not folder.is_dir():
        raise InvalidArgument(
            f"There is no folder {folder}.", "Give a folder of image files, such as one written by an export."
        )
    images: dict[Digest, StoredImage] = {}
    records: dict[Digest, tuple[Record, Path]] = {}
    skipped: list[Skipped] = []
    files = list(_files(folder.resolve()))
    for path in reporting(progress, len(files))(files):
        try:
            image, found, refused = _store_file(store, repository, path)
        except (ImageRejected, OSError) as error:
            skipped.append(Skipped(path, str(error)))
            continue
        images[image.id] = image
        records |= {record.id: (record, path) for record in found}
        skipped += [Skipped(path, reason) for reason in refused]
    stored: list[Digest] = []
    for record, path in sorted(records.values(), key=lambda item: (item[0].time, item[0].id)):
        try:
            stored.append(repository.put_record(record))
        except ImageNotFound as error:
            skipped.append(Skipped(path, str(error)))
    return Imported(
        tuple(replace(store.get(digest), notes=image.notes) for digest, image in images.items()),
        tuple(stored),
        tuple(skipped),
    )


def with_history(store: "ImageStore", digest: Digest) -> bytes:
    """The PNG of an image with its records embedded, as in an export. Raises as `ImageStore.read`."""
    return embed(store.read(digest), digest, _history(store, digest))


def _write(store: "ImageStore", digest: Digest, folder: Path) -> Path:
    data = with_history(store, digest)
    path = folder / f"{digest.hex[:_NAME_DIGITS]}.png"
    try:
        write_file(path, data)
    except OSError as error:
        raise InvalidArgument(f"Cannot write {path}: {error}.", "Choose another folder.") from error
    return path


def _history(store: "ImageStore", digest: Digest) -> list[Record]:
    """The record that made an image, then those of its label and pin."""
    maker = store.origin(digest).record
    return [record for record in (maker, *store.notes(digest)) if record is not None]


def _files(folder: Path) -> Iterator[Path]:
    # Links are not followed: they could point to any file of the machine.
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def _store_file(
    store: "ImageStore", repository: Repository, path: Path
) -> tuple[StoredImage, list[Record], tuple[str, ...]]:
    """Store the image in a file; returns it, its records to store, and reasons why others are rejected."""
    limit = store.limits.bytes
    with open_file(path) as file:
        data = file.read(limit + 1)  # one byte more than the limit, so that a larger file is rejected
    extracted = extract(data) if len(data) <= limit else None
    if extracted is None:
        return store.put(data), [], ()
    png, records, refused = extracted
    digest = Digest.of(png)
    # Another build of the encoder may have compressed the same pixels differently. Keep its bytes, so that
    # the image keeps the id that the records refer to.
    known = any(digest in (*record.inputs, *record.outputs) for record in records)
    taken = decode(png, store.limits, keep_own=known)
    return replace(store.get(repository.put_image(taken.png)), notes=taken.notes), records, refused
