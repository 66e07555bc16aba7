"""The public interface of the image store: thread-safe, and safe for processes that share a folder.

A facade that turns references into digests and index rows into results. The write order is defined in
`storage/repository.py`. Has no knowledge of models, tools or HTTP.
"""

import contextlib
import os
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

from PIL import Image
from pydantic import JsonValue

from storage import codec, decoder, gc, maintenance, transfer
from storage.blobs import BlobStore
from storage.budget import Checkpoint, no_checkpoint
from storage.codec import Limits
from storage.digest import Digest, hex_digits
from storage.errors import ImageNotFound, InvalidArgument
from storage.index import search, tables
from storage.index.tables import ImageRow
from storage.ingest import Ingested
from storage.records import LABEL, PIN, Model, Record, check_label, make_record, memo, parse_record
from storage.recovery import Progress
from storage.repository import ACCESS_RESOLUTION, Repository
from storage.results import Ancestor, Page, StoredImage, Usage

Reference = Digest | str
"""An id, a prefix of one with at least 8 hex digits, or an image URI."""
MAX_PAGE = 1000
"""Images."""


def default_store_path() -> Path:
    """Where a person's images lie if nothing else is said: the data folder of this system's convention."""
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "omnigen2-mcp" / "store"


class ImageStore:
    """Images by the SHA-256 of their bytes, and the records of how they were made."""

    def __init__(
        self,
        path: Path | str | None,
        quota_bytes: int | None = None,
        *,
        limits: Limits | None = None,
        blobs: BlobStore | None = None,
        records: BlobStore | None = None,
    ) -> None:
        """Open the store at `path`, or begin one there.

        `quota_bytes` bounds images and records together, `limits` what one image may be. `blobs` and
        `records` are where the bytes live, by default below `path`; locks and the index are always
        there. Without a path they are in memory, and gone with this object.

        A store that may only be read is opened to be read, see `read_only`.

        Raises:
            StoreReadOnly, StoreFull: the folder cannot be written, and holds no store.
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
        """Whether this store is another user's, a backup, or for another reason takes no writes.

        Then it shows what was in its folder when it was opened, and refuses every change.
        """
        return self._repository.read_only

    def refuse_if_read_only(self) -> None:
        """Raise StoreReadOnly if nothing can be stored, before any work is done for it."""
        self._repository.refuse_if_read_only()

    def close(self) -> None:
        """Say that all is well, and give the index's connections back. A store may be used again after it.

        A process that dies without it has the next one look through the store for what it left.
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
        """Store a picture; when this returns, it is durable. Equal pixels have one id.

        The `notes` of what is returned say what of the given bytes was dropped, reduced or converted. Bytes
        are decoded in another process; `checkpoint` is called meanwhile, and ends it by raising.

        Raises:
            ImageRejected: no picture, broken, too large, or too slow to decode.
            StoreBusy: too many pictures are being decoded.
            StoreFull, StoreReadOnly: nothing was stored.
            InvalidArgument: the label is too long.
        """
        if label is not None:
            check_label(label)
        if isinstance(image, Image.Image):
            taken = Ingested(codec.encode(codec.admit(image, self.limits)))
        else:
            taken = decoder.decode(image, self.limits, checkpoint)
        digest = self._repository.put_image(taken.png)
        stored = self.label(digest, label) if label is not None else self.get(digest)
        return replace(stored, notes=taken.notes)

    def get(self, ref: Reference) -> StoredImage:
        """What is known of an image.

        Raises:
            InvalidArgument: `ref` is malformed, or a prefix of several ids.
            ImageNotFound: there is no such image.
        """
        row = self._row(ref)
        self._note_access([row])
        return _stored(row)

    def read(self, ref: Reference) -> bytes:
        """The PNG of an image, verified. Raises what `get` does, and `Corrupt`."""
        digest = self.get(ref).id
        try:
            return self._repository.blobs.get(digest)
        except KeyError:
            raise _not_found(str(digest)) from None

    def check(self, refs: Iterable[Reference]) -> None:
        """Raise what `read` does, unless every one of these images can be read."""
        for ref in refs:
            self.read(ref)

    def open(self, ref: Reference) -> Image.Image:
        """The pixels of an image, verified, as RGB or RGBA.

        Raises what `read` does, and:
            ImageRejected: the image is beyond the limits of this store.
            StoreBusy: too many large images are being opened.
        """
        png = self.read(ref)
        with decoder.opening(codec.size_of(png)):
            return codec.open_stored(png, self.limits)

    def preview(
        self, ref: Reference, max_side: int = 512, *, region: tuple[int, int, int, int] | None = None
    ) -> tuple[bytes, str]:
        """A small copy of an image, or of a region of it [x, y, width, height], as `codec.preview` makes it.

        Of large images, few are held in memory at once. Raises what `open` does.
        """
        png = self.read(ref)
        with decoder.opening(codec.size_of(png)):
            image = codec.open_stored(png, self.limits)
            if region is not None:
                x, y, width, height = region
                image = image.crop((x, y, x + width, y + height))
            return codec.preview(image, max_side)

    def label(self, ref: Reference, text: str | None) -> StoredImage:
        """Name an image, or take its name away with None. A labelled image is never collected."""
        if text is not None:
            check_label(text)
        return self._say(ref, LABEL, {} if text is None else {"label": text})

    def pin(self, ref: Reference, pinned: bool = True) -> StoredImage:
        """Keep an image from ever being collected, or no longer."""
        return self._say(ref, PIN, {"pinned": True} if pinned else {})

    def notes(self, ref: Reference) -> tuple[Record, ...]:
        """The records by which the label and the pin of an image were set."""
        digest = self._row(ref).digest
        return tuple(self._repository.query(lambda db: tables.notes_of(db, digest)))

    @contextlib.contextmanager
    def hold(self, refs: Iterable[Reference]) -> Generator[tuple[StoredImage, ...]]:
        """Keep images from being collected, by any process, until the block or this process ends.

        For jobs: what a running job may still name. Raises what `get` does.
        """
        digests = [self._row(ref).digest for ref in refs]
        with contextlib.ExitStack() as stack:
            images = self._repository.with_index_repair(lambda: self._leased(digests, stack))
            yield tuple(_stored(row) for row in images)

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
        """Remember how `outputs` came from `inputs`; the record's id. Durable when this returns.

        `more` are the other fields of `Record`: text, numerics, code, principal, time, timings, notes.

        Raises:
            InvalidArgument: a field is wrong; the message names it.
            ImageNotFound: an input or output is not stored.
            StoreFull, StoreReadOnly: nothing was stored.
        """
        fields = {"parameters": dict(parameters), "inputs": inputs, "outputs": outputs, "model": model}
        return self._repository.put_record(make_record(tool=tool, seed=seed, **fields, **more))

    def put_made(self, pictures: Iterable[Image.Image], *, tool: str, **fields: Any) -> Record:
        """Store pictures and the record that they are its outputs; both are durable when this returns.

        Quicker than `put` and then `record`, whose other fields are `fields`. If the record cannot be stored,
        the pictures are there all the same. Raises what both do.
        """
        pngs = [codec.encode(codec.admit(picture, self.limits)) for picture in pictures]
        return self._repository.put_made(
            pngs, lambda digests: make_record(tool=tool, outputs=digests, **fields)
        )

    def get_record(self, ref: Reference) -> Record:
        """The record with this complete id, verified.

        Raises:
            InvalidArgument: it is no complete id, or not that of a record.
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
        """The first record of an equal request that can still be read with all its images: an instant answer.

        Damaged images are put right when the request is carried out again.
        """
        weights = model.digest or model.id if model else None
        wanted = memo(tool, parameters, inputs, weights, seed, numerics)
        bodies = self._repository.query(lambda db: search.equal(db, wanted))
        record = next((parse_record(body) for body in bodies if self._repository.whole(body)), None)
        if record is not None:
            self._repository.touch(record.outputs)
        return record

    # -- questions ------------------------------------------------------------------------------------

    def list(
        self,
        *,
        query: str | None = None,
        tool: str | None = None,
        since: datetime | None = None,
        limit: int = 20,
        cursor: str | None = None,
    ) -> Page:
        """Images, newest first. All words of `query` must occur in prompt, instruction or label.

        Raises:
            InvalidArgument: `limit` is not 1 to 1000, `since` has no time zone, `cursor` is none of ours.
        """
        if not 1 <= limit <= MAX_PAGE:
            raise InvalidArgument(f"limit is {limit}; 1 to {MAX_PAGE} are allowed.")
        question = search.Question(query, tool, _least_key(since), limit, cursor)
        images, following = self._repository.query(lambda db: search.listed(db, question))
        return Page(tuple(_stored(row) for row in images), following)

    def origin(self, ref: Reference) -> Ancestor:
        """An image and how it was made, at a cost that its ancestors do not raise. Raises what `get` does."""
        digest = self._row(ref).digest
        found = self._repository.query(lambda db: search.origin(db, digest))
        if found is None:  # collected since
            raise _not_found(str(digest))
        return _ancestor(found)

    def lineage(self, ref: Reference, limit: int | None = None) -> tuple[Ancestor, ...]:
        """Every ancestor of an image and how it was made, oldest first; the image itself is last.

        With a `limit`, the image and its nearest ancestors, that many in all. Raises what `get` does.
        """
        digest = self.get(ref).id
        origins = self._repository.query(lambda db: search.origins(db, [digest], limit))
        return tuple(map(_ancestor, search.oldest_first(origins, digest)))

    def with_ancestors(self, refs: Iterable[Digest]) -> set[Digest]:
        """Images and all their ancestors, each looked at once."""
        images = list(refs)
        return set(self._repository.query(lambda db: search.origins(db, images)))

    def usage(self) -> Usage:
        """How many images and bytes are stored."""
        images, size = self._repository.query(tables.totals)
        return Usage(images, size, self.quota_bytes)

    # -- care -----------------------------------------------------------------------------------------

    def verify(self, progress: Progress | None = None) -> maintenance.Verification:
        """Read and hash everything; set aside what is wrong, index what is not indexed, delete nothing."""
        return self._repository.with_index_repair(lambda: maintenance.verify(self._repository, progress))

    def rebuild_index(self, progress: Progress | None = None) -> tuple[Path, ...]:
        """Build the index again from blobs and records. Those that cannot be read are set aside: where.

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
        """Delete images that nothing keeps, and the records that name them.

        Kept are images with a label or a pin, those of a running job (`hold`), those stored within `grace`
        or asked for within `keep_accessed` (and an hour), and whatever any of them was made from or with.

        Raises:
            StoreBusy: another process is collecting or rebuilding.
        """
        return self._repository.with_index_repair(
            lambda: gc.collect(self._repository, dry_run=dry_run, grace=grace, keep_accessed=keep_accessed)
        )

    def export(
        self, refs: Iterable[Reference], folder: Path | str, progress: Progress | None = None
    ) -> tuple[Path, ...]:
        """Write images as PNG with their history embedded; the paths of those asked for.

        Ancestors go into `lineage/` below, so that the whole history can be imported. Raises what `read`
        does.
        """
        digests = [self.get(ref).id for ref in refs]
        return transfer.export(self, digests, Path(folder), progress)

    def import_(self, folder: Path | str, progress: Progress | None = None) -> transfer.Imported:
        """Store every picture below a folder, and join the history that exported ones carry."""
        return transfer.import_folder(self, self._repository, Path(folder), progress)

    # -- inside ---------------------------------------------------------------------------------------

    def _row(self, ref: Reference) -> ImageRow:
        digits = ref.hex if isinstance(ref, Digest) else hex_digits(ref)
        images = self._matching(digits)
        if not images and len(digits) == 64 and self._repository.adopt(Digest(bytes.fromhex(digits))):
            images = self._matching(digits)
        if not images:
            raise _not_found(str(ref))
        if len(images) > 1:
            raise InvalidArgument(
                f"{ref} begins several ids, for example {images[0].digest} and {images[1].digest}.",
                "Give more digits.",
            )
        return images[0]

    def _leased(self, digests: Sequence[Digest], stack: contextlib.ExitStack) -> Sequence[ImageRow]:
        """Images that are there, held until the stack is closed."""
        with self._repository.locks.shared():
            with self._repository.index.reading() as db:
                found = [search.matching(db, digest.hex) for digest in digests]
            if not all(found):
                raise _not_found(str(digests[found.index([])]))
            stack.enter_context(self._repository.locks.lease(digests))
        return [row for (row,) in found]

    def _matching(self, digits: str) -> Sequence[ImageRow]:
        return self._repository.query(lambda db: search.matching(db, digits))

    def _note_access(self, images: Sequence[ImageRow]) -> None:
        stale = time.time_ns() - round(ACCESS_RESOLUTION.total_seconds() * 1e9)
        digests = [row.digest for row in images]
        old = self._repository.query(
            lambda db: [each for each in digests if tables.last_touched(db, each) < stale]
        )
        if old:
            self._repository.touch(old)

    def _say(self, ref: Reference, tool: str, parameters: dict[str, JsonValue]) -> StoredImage:
        digest = self._row(ref).digest
        self._repository.put_record(make_record(tool=tool, parameters=parameters, inputs=(digest,)))
        return self.get(digest)


def _stored(row: ImageRow) -> StoredImage:
    created = datetime.fromtimestamp(row.created // 1000 / 1_000_000, UTC)
    return StoredImage(
        row.digest, row.width, row.height, codec.MIME_TYPE, row.size, created, row.label, row.pinned
    )


def _ancestor(origin: search.Origin) -> Ancestor:
    return Ancestor(_stored(origin.image), origin.record_id, origin.record)


def _not_found(ref: str) -> ImageNotFound:
    return ImageNotFound(f"No image {ref} is stored.", "List the images, or import it first.")


def _least_key(since: datetime | None) -> int | None:
    if since is None:
        return None
    if since.tzinfo is None:
        raise InvalidArgument(
            f"since is {since.isoformat()}, without a time zone.", "Add one, for example +00:00."
        )
    return tables.first_key(since)
