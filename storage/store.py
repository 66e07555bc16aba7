"""The public interface of the image store: thread-safe, and safe for processes that share a folder.

A facade that turns references into digests and index rows into results. The write order is defined in
`storage/repository.py`. Has no knowledge of models, tools or HTTP.
"""

import contextlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self

from PIL import Image
from pydantic import JsonValue

from storage import codec, decoder, gc, maintenance, transfer
from storage.blobs import BlobStore
from storage.budget import Checkpoint, no_checkpoint
from storage.codec import Limits
from storage.digest import Digest, hex_digits
from storage.errors import InvalidArgument, image_not_found
from storage.index import search, tables
from storage.index.tables import ImageRow
from storage.ingest import Ingested
from storage.records import LABEL, PIN, Model, Record, check_label, make_record, parse_record, request_key
from storage.recovery import Progress
from storage.repository import Repository
from storage.results import Ancestor, Page, StoredImage, Usage, ancestor, stored_image

Reference = Digest | str
"""An id, a prefix of one with at least 8 hex digits, or an image URI."""
MAX_PAGE = 1000
"""Maximum number of images per page."""


class ImageStore:
    """Images addressed by the SHA-256 of their bytes, and records of how they were made."""

    def __init__(
        self,
        path: Path | str | None,
        quota_bytes: int | None = None,
        *,
        limits: Limits | None = None,
        blobs: BlobStore | None = None,
        records: BlobStore | None = None,
    ) -> None:
        """Open the store in the folder `path`, or create one.

        `quota_bytes` limits the total size of images and records, `limits` the size of one image. `blobs`
        and `records` store the bytes, by default in folders below `path`; locks and index are always below
        `path`. If `path` is None, they are in memory and are lost with this object.

        A store without write permission is opened read-only, see `read_only`.

        Raises:
            StoreReadOnly, StoreFull: the folder is not writable and contains no store.
        """
        self.path = Path(path).expanduser().absolute() if path is not None else None
        self.quota_bytes = quota_bytes
        self.limits = limits or Limits()
        self._repository = Repository(self.path, quota_bytes, blobs, records)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def read_only(self) -> bool:
        """Whether the store was opened without write permission.

        A read-only store shows its content at the time of opening; every change raises StoreReadOnly.
        """
        return self._repository.read_only

    def refuse_if_read_only(self) -> None:
        """Raise StoreReadOnly if the store is read-only; call it before expensive work."""
        self._repository.refuse_if_read_only()

    def close(self) -> None:
        """Record a clean shutdown and close the index connections. The store can be used again afterwards.

        If a process that wrote ends without it, the next process to open the store scans it for images and
        records that are not in the index.
        """
        self._repository.close()

    # -- images ---------------------------------------------------------------------------------------

    def put(
        self,
        image: Image.Image | bytes,
        label: str | None = None,
        *,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> StoredImage:
        """Store an image durably. Equal pixels have the same id.

        The `notes` of the result say what was dropped, reduced or converted. Bytes are decoded in a worker
        process; `checkpoint` is called regularly while this waits, and may raise to cancel.

        Raises:
            ImageRejected: not an image, damaged, too large, or too slow to decode.
            StoreBusy: too many images are being decoded.
            StoreFull, StoreReadOnly: nothing was stored.
            InvalidArgument: the label is empty or too long.
        """
        if label is not None:
            check_label(label)
        if isinstance(image, Image.Image):
            ingested = Ingested(codec.encode(codec.admit(image, self.limits)))
        else:
            ingested = decoder.decode(image, self.limits, checkpoint)
        digest = self._repository.put_image(ingested.png)
        stored = self.label(digest, label) if label is not None else self.get(digest)
        return replace(stored, notes=ingested.notes, history=ingested.history)

    def get(self, ref: Reference) -> StoredImage:
        """The metadata of an image; counts as an access, see `collect`.

        Raises:
            InvalidArgument: `ref` is malformed, or a prefix of several ids.
            ImageNotFound: no such image is stored.
        """
        row = self._row(ref)
        self._repository.note_access(row.digest)
        return stored_image(row)

    def read(self, ref: Reference) -> bytes:
        """The PNG bytes of an image, verified against its id. Raises as `get`, and `Corrupt`."""
        digest = self.get(ref).id
        try:
            return self._repository.blobs.get(digest)
        except KeyError:
            raise image_not_found(digest) from None

    def check(self, refs: Iterable[Reference]) -> None:
        """Read each image and discard it. Raises as `read`."""
        for ref in refs:
            self.read(ref)

    def open(self, ref: Reference) -> Image.Image:
        """The decoded image, verified, in mode RGB or RGBA.

        Raises as `read`, and:
            ImageRejected: the image exceeds the limits of this store.
            StoreBusy: too many large images are being decoded.
        """
        png = self.read(ref)
        with decoder.budget_for(codec.size_of(png)):
            return codec.open_stored(png, self.limits)

    def preview(
        self, ref: Reference, max_side: int = 512, *, region: tuple[int, int, int, int] | None = None
    ) -> tuple[bytes, str]:
        """A reduced copy of an image or of a region (x, y, width, height in pixels): bytes and MIME type.

        See `codec.preview`. Limits how many large images are in memory at once. Raises as `open`.
        """
        png = self.read(ref)
        with decoder.budget_for(codec.size_of(png)):
            image = codec.open_stored(png, self.limits)
            if region is not None:
                x, y, width, height = region
                image = image.crop((x, y, x + width, y + height))
            return codec.preview(image, max_side)

    def label(self, ref: Reference, text: str | None) -> StoredImage:
        """Set the label of an image, or remove it with None. `collect` keeps labelled images."""
        if text is not None:
            check_label(text)
        return self._set_annotation(ref, LABEL, {} if text is None else {"label": text})

    def pin(self, ref: Reference, pinned: bool = True) -> StoredImage:
        """Pin or unpin an image. `collect` keeps pinned images."""
        return self._set_annotation(ref, PIN, {"pinned": True} if pinned else {})

    def notes(self, ref: Reference) -> tuple[Record, ...]:
        """The records that set the current label and pin of an image."""
        digest = self._row(ref).digest
        return tuple(self._repository.query(lambda db: tables.annotations_of(db, digest)))

    @contextlib.contextmanager
    def hold(self, refs: Iterable[Reference]) -> Generator[tuple[StoredImage, ...]]:
        """Protect images from `collect` in any process until the block exits or this process ends.

        Used by running jobs for images that they may still refer to. Raises as `get`.
        """
        digests = [self._row(ref).digest for ref in refs]
        with contextlib.ExitStack() as stack:
            images = self._repository.with_index_repair(lambda: self._repository.lease(digests, stack))
            yield tuple(map(stored_image, images))

    # -- records --------------------------------------------------------------------------------------

    def record(
        self,
        *,
        tool: str,
        parameters: Mapping[str, JsonValue],
        inputs: Sequence[Digest] = (),
        outputs: Sequence[Digest] = (),
        model: Model | None = None,
        seed: int | None = None,
        **more: Any,
    ) -> Digest:
        """Store durably how `outputs` were made from `inputs`; returns the record's id.

        `more` are the other fields of `Record`: text, numerics, code, principal, time, timings, notes.

        Raises:
            InvalidArgument: a field is invalid; the message names it.
            ImageNotFound: an input or output is not stored.
            StoreFull, StoreReadOnly: nothing was stored.
        """
        fields = {"parameters": dict(parameters), "inputs": inputs, "outputs": outputs, "model": model}
        return self._repository.put_record(make_record(tool=tool, seed=seed, **fields, **more))

    def put_made(self, pictures: Iterable[Image.Image], *, tool: str, **fields: Any) -> Record:
        """Store images, and a record with them as outputs, durably; `fields` are the others of `record`.

        Faster than `put` followed by `record`. If storing the record fails, the images may remain stored.
        Raises as both.
        """
        pngs = [codec.encode(codec.admit(picture, self.limits)) for picture in pictures]
        return self._repository.put_made(
            pngs, lambda digests: make_record(tool=tool, outputs=digests, **fields)
        )

    def get_record(self, ref: Reference) -> Record:
        """The record with a complete id, verified.

        Raises:
            InvalidArgument: `ref` is not a complete id, or not the id of a record.
            Corrupt: the stored bytes do not match the id.
        """
        digest = ref if isinstance(ref, Digest) else Digest.parse(ref)
        try:
            return parse_record(self._repository.records.get(digest))
        except KeyError:
            advice = "Use the `record` of a result, or the history of an image."
            raise InvalidArgument(f"There is no record {digest}.", advice) from None

    def find_equal(
        self,
        *,
        tool: str,
        parameters: Mapping[str, JsonValue],
        inputs: Sequence[Digest] = (),
        model: Model | None = None,
        seed: int | None = None,
        numerics: str | None = None,
    ) -> Record | None:
        """The oldest record of an equal request whose record and output images are all readable.

        Equal means equal arguments here; a model without a digest is compared by its id. None if there is no
        such record: carrying out the request again then also restores damaged images.
        """
        weights = model.digest or model.id if model else None
        key = request_key(tool, parameters, inputs, weights, seed, numerics)
        bodies = self._repository.query(lambda db: search.records_of_request(db, key))
        record = next((parse_record(body) for body in bodies if self._repository.is_readable(body)), None)
        if record is not None:
            self._repository.touch(record.outputs)
        return record

    # -- queries --------------------------------------------------------------------------------------

    def list(
        self,
        *,
        query: str | None = None,
        tool: str | None = None,
        since: datetime | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> Page:
        """A page of images, newest first. All words of `query` must occur in prompt, instruction or label.

        Raises:
            InvalidArgument: `limit` is not in 1 to 1000, `since` has no time zone, or `cursor` is invalid.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidArgument(f"limit is {limit}; it must be 1 to {MAX_PAGE}.")
        wanted = search.Query(query, tool, since, limit, cursor)
        images, following = self._repository.query(lambda db: search.list_images(db, wanted))
        return Page(tuple(map(stored_image, images)), following)

    def origin(self, ref: Reference) -> Ancestor:
        """An image and its record, without reading its ancestors. Raises as `get`."""
        digest = self._row(ref).digest
        found = self._repository.query(lambda db: search.origin(db, digest))
        if found is None:  # collected since
            raise image_not_found(digest)
        return ancestor(found)

    def lineage(self, ref: Reference, limit: int | None = None) -> tuple[Ancestor, ...]:
        """The ancestors of an image and their records, oldest first; the image itself is last.

        With `limit`, at most that many entries: the image and its nearest ancestors. Raises as `get`.
        """
        digest = self.get(ref).id
        origins = self._repository.query(lambda db: search.origins(db, [digest], limit))
        return tuple(map(ancestor, search.oldest_first(origins, digest)))

    def with_ancestors(self, refs: Iterable[Digest]) -> set[Digest]:
        """The given images and all their ancestors."""
        images = list(refs)
        return set(self._repository.query(lambda db: search.origins(db, images)))

    def usage(self) -> Usage:
        """Number of images and bytes stored."""
        images, size = self._repository.query(tables.totals)
        return Usage(images, size, self.quota_bytes)

    # -- maintenance ----------------------------------------------------------------------------------

    def verify(self, progress: Progress | None = None) -> maintenance.Verification:
        """Read and hash every file; quarantine invalid ones, index missing ones, delete nothing."""
        return self._repository.with_index_repair(lambda: maintenance.verify(self._repository, progress))

    def rebuild_index(self, progress: Progress | None = None) -> tuple[Path, ...]:
        """Rebuild the index from blobs and records; returns the new paths of quarantined unreadable files.

        Raises:
            StoreBusy: another process is collecting or rebuilding.
        """
        return maintenance.rebuild_index(self._repository, progress)

    def collect(
        self,
        *,
        dry_run: bool = False,
        grace: timedelta = timedelta(days=1),
        keep_accessed: timedelta = timedelta(days=30),
    ) -> gc.Collected:
        """Delete unused images, and the records that refer to them.

        Kept are images with a label or a pin, those held by a running job (`hold`), those stored within
        `grace` or accessed within `keep_accessed` plus one hour, and every image in a record that made a
        kept image, recursively. Blocks writers in all processes.

        Raises:
            StoreBusy: another process is collecting or rebuilding.
        """
        return self._repository.with_index_repair(
            lambda: gc.collect(self._repository, dry_run=dry_run, grace=grace, keep_accessed=keep_accessed)
        )

    def export(
        self, refs: Iterable[Reference], folder: Path | str, progress: Progress | None = None
    ) -> tuple[Path, ...]:
        """Write images as PNG files with their records embedded; returns the paths of `refs`.

        Ancestors are written to the subfolder `lineage/`, so that the whole history can be imported.

        Raises as `read`, and:
            InvalidArgument: the folder cannot be written.
        """
        digests = [self.get(ref).id for ref in refs]
        return transfer.export(self, digests, Path(folder), progress)

    def import_(self, folder: Path | str, progress: Progress | None = None) -> transfer.Imported:
        """Store every image file below a folder, and the records embedded in exported files.

        Raises:
            InvalidArgument: there is no such folder.
            StoreFull, StoreReadOnly: images and records imported before the error remain stored.
        """
        return transfer.import_folder(self, self._repository, Path(folder), progress)

    # -- internal -------------------------------------------------------------------------------------

    def _row(self, ref: Reference) -> ImageRow:
        images = self._repository.find(ref.hex if isinstance(ref, Digest) else hex_digits(ref))
        if not images:
            raise image_not_found(ref)
        if len(images) > 1:
            raise InvalidArgument(
                f"{ref} is a prefix of several ids, for example {images[0].digest} and {images[1].digest}.",
                "Give more digits.",
            )
        return images[0]

    def _set_annotation(self, ref: Reference, tool: str, parameters: dict[str, JsonValue]) -> StoredImage:
        digest = self._row(ref).digest
        self._repository.put_record(make_record(tool=tool, parameters=parameters, inputs=(digest,)))
        return self.get(digest)
