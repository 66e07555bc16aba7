"""Export of images as PNG files with embedded records; import of any folder of image files.

Imported files are not trusted: images are decoded like all others, ids are computed, and a record is joined
to the store only if every image it refers to is stored. Otherwise it is kept as a claim, see
`storage/history.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from storage.decoder import decode
from storage.digest import Digest
from storage.embedding import embed, extract
from storage.errors import ImageNotFound, ImageRejected, InvalidArgument
from storage.history import HISTORY, MAX_RECORDS, from_text, to_claims
from storage.records import IMPORT, Record
from storage.recovery import Progress, reporting
from storage.repository import Repository
from storage.results import StoredImage
from storage.safe_files import open_file, write_file

if TYPE_CHECKING:
    from storage.view import StoreView

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
    store: "StoreView", digests: Sequence[Digest], folder: Path, progress: Progress | None
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
    store: "StoreView", repository: Repository, folder: Path, progress: Progress | None
) -> Imported:
    """Store every image below `folder`, then every record whose images are all stored, the others as claims.

    Raises:
        InvalidArgument: there is no such folder.
        StoreFull, StoreReadOnly: images and records imported before the error remain stored.
    """
    if not folder.is_dir():
        raise InvalidArgument(
            f"There is no folder {folder}.", "Give a folder of image files, such as one written by an export."
        )
    taken: list[_Taken] = []
    skipped: list[Skipped] = []
    files = list(_files(folder.resolve()))
    for path in reporting(progress, len(files))(files):
        try:
            taken.append(_store_file(store, repository, path))
            skipped += [Skipped(path, reason) for reason in taken[-1].refused]
        except (ImageRejected, OSError) as error:
            skipped.append(Skipped(path, str(error)))
    stored, left = _join(repository, taken)
    for file in taken:
        if claims := [record for record in file.records if record.id in left]:
            kept, refused = _keep_claims(store, file, claims)
            stored += kept
            skipped += [Skipped(file.path, reason) for reason in refused]
    notes = {file.image.id: file.image.notes for file in taken}
    return Imported(
        tuple(replace(store.get(digest), notes=said) for digest, said in notes.items()),
        tuple(stored),
        tuple(skipped),
    )


@dataclass(frozen=True, slots=True)
class _Taken:
    """A file whose image is stored."""

    path: Path
    image: StoredImage
    records: list[Record]
    """Those in the file, which are not stored yet."""
    refused: tuple[str, ...]
    """Reasons why others are refused."""


def _join(repository: Repository, taken: Sequence[_Taken]) -> tuple[list[Digest], set[Digest]]:
    """Store every record whose images are all stored, oldest first; those, and the others."""
    records = {record.id: record for file in taken for record in file.records}
    joined: list[Digest] = []
    left: set[Digest] = set()
    for digest, record in sorted(records.items(), key=lambda item: (item[1].time, item[0])):
        try:
            joined.append(repository.put_record(record))
        except ImageNotFound:
            left.add(digest)
    return joined, left


def _keep_claims(
    store: "StoreView", file: _Taken, claims: Sequence[Record]
) -> tuple[list[Digest], tuple[str, ...]]:
    """Record an import with what its file claims; the record, and reasons for what is left out."""
    origin = store.origin(file.image.id).record
    kept, refused = to_claims(claims)
    if origin is None:
        parameters: dict[str, JsonValue] = {"source": file.path.name, HISTORY: kept}
        return [store.record(tool=IMPORT, parameters=parameters, outputs=[file.image.id])], refused
    if origin.parameters.get(HISTORY) == kept:  # imported before
        return [origin.id], refused
    return [], (f"{len(claims)} records in it refer to images that are not stored.",)


def with_history(store: "StoreView", digest: Digest, *, ancestors: bool = False) -> bytes:
    """The PNG of an image with its records embedded, as in an export; with those of its ancestors, if asked.

    Raises as `ImageStore.read`.
    """
    return embed(store.read(digest), digest, history_of(store, digest, ancestors=ancestors))


def history_of(store: "StoreView", digest: Digest, *, ancestors: bool) -> list[Record]:
    """The record that made an image, and those of its label and pin; then those that made its ancestors.

    The nearest come first, `MAX_RECORDS` at most.
    """
    lineage = store.lineage(digest, MAX_RECORDS) if ancestors else (store.origin(digest),)
    makers = {step.record_id: step.record for step in reversed(lineage) if step.record}
    own = makers.pop(lineage[-1].record_id, None)
    return [record for record in (own, *store.notes(digest), *makers.values()) if record][:MAX_RECORDS]


def _write(store: "StoreView", digest: Digest, folder: Path) -> Path:
    data = with_history(store, digest)
    path = folder / f"{digest.hex[:_NAME_DIGITS]}.png"
    try:
        write_file(path, data)
    except OSError as error:
        raise InvalidArgument(f"Cannot write {path}: {error}.", "Choose another folder.") from error
    return path


def _files(folder: Path) -> Iterator[Path]:
    # Links are not followed: they could point to any file of the machine.
    yield from (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.is_symlink())


def _store_file(store: "StoreView", repository: Repository, path: Path) -> _Taken:
    """Store the image in a file.

    Raises:
        ImageRejected, OSError: it is none, or cannot be read.
    """
    limit = store.limits.bytes
    with open_file(path) as file:
        data = file.read(limit + 1)  # one byte more than the limit, so that a larger file is rejected
    extracted = extract(data) if len(data) <= limit else None
    if extracted is None:
        image = store.put(data)
        return _Taken(path, image, *(from_text(image.history) if image.history else ([], ())))
    png, records, refused = extracted
    digest = Digest.of(png)
    # Another build of the encoder may have compressed the same pixels differently. Keep its bytes, so that
    # the image keeps the id that the records refer to.
    known = any(digest in (*record.inputs, *record.outputs) for record in records)
    taken = decode(png, store.limits, keep_own=known)
    image = replace(store.get(repository.put_image(taken.png)), notes=taken.notes)
    return _Taken(path, image, records, refused)
