"""Export to a folder of ordinary PNG files that carry their history; import of any folder of pictures.

Nothing in an imported folder is believed: pictures pass the same gate as every other, a picture's id is
computed, and a record is joined only if every image it names is here.
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
    """A file, or a record in it, that was not taken, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class Imported:
    """What an import stored or found to be stored."""

    images: tuple[StoredImage, ...]
    records: tuple[Digest, ...]
    skipped: tuple[Skipped, ...]


def export(
    store: "ImageStore", digests: Sequence[Digest], folder: Path, progress: Progress | None
) -> tuple[Path, ...]:
    """Write images to `folder`, their ancestors to `folder/lineage`; the paths of those asked for.

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
    """Store every picture below `folder`, then every record whose images are all here, oldest first.

    Raises:
        InvalidArgument: there is no such folder.
        StoreFull, StoreReadOnly: what came before stays stored.
    """
    if not folder.is_dir():
        raise InvalidArgument(f"There is no folder {folder}.", "Give the folder that an export has written.")
    images: dict[Digest, StoredImage] = {}
    records: dict[Digest, tuple[Record, Path]] = {}
    skipped: list[Skipped] = []
    files = list(_files(folder.resolve()))
    for path in reporting(progress, len(files))(files):
        try:
            image, found, refused = _take(store, repository, path)
        except (ImageRejected, OSError) as error:
            skipped.append(Skipped(path, str(error)))
            continue
        images[image.id] = image
        records |= {record.id: (record, path) for record in found}
        skipped += [Skipped(path, reason) for reason in refused]
    joined: list[Digest] = []
    for record, path in sorted(records.values(), key=lambda item: (item[0].time, item[0].id)):
        try:
            joined.append(repository.put_record(record))
        except ImageNotFound as error:
            skipped.append(Skipped(path, str(error)))
    return Imported(
        tuple(replace(store.get(digest), notes=image.notes) for digest, image in images.items()),
        tuple(joined),
        tuple(skipped),
    )


def with_history(store: "ImageStore", digest: Digest) -> bytes:
    """The PNG of an image with its history inside, as exports are. Raises what `ImageStore.read` does."""
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
    """The record that made an image, then what is said about it."""
    maker = store.origin(digest).record
    return [record for record in (maker, *store.notes(digest)) if record is not None]


def _files(folder: Path) -> Iterator[Path]:
    # A link could point at any file of the machine: not followed.
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def _take(
    store: "ImageStore", repository: Repository, path: Path
) -> tuple[StoredImage, list[Record], tuple[str, ...]]:
    """Store the picture in a file: the image, the records to join, and why others in it are refused."""
    limit = store.limits.bytes
    with open_file(path) as file:
        data = file.read(limit + 1)  # one more than allowed is enough to be refused for it
    carried = extract(data) if len(data) <= limit else None
    if carried is None:
        return store.put(data), [], ()
    png, records, refused = carried
    digest = Digest.of(png)
    # Another build of the encoder may have packed the same pixels otherwise. Keep its bytes, and with them
    # the id that the records know.
    known = any(digest in (*record.inputs, *record.outputs) for record in records)
    taken = decode(png, store.limits, keep_own=known)
    return replace(store.get(repository.put_image(taken.png)), notes=taken.notes), records, refused
