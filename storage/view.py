"""The images and records of a store as one principal sees them, or all: what tools and surfaces are given.

Turns references into digests and index rows into results. The write order is defined in
`storage/repository.py`. Has no knowledge of models, tools or HTTP.
"""

import contextlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from PIL import Image
from pydantic import JsonValue

from storage import codec, decoder
from storage.budget import Checkpoint, no_checkpoint
from storage.codec import Limits
from storage.digest import Digest, hex_digits
from storage.errors import InvalidArgument, image_not_found
from storage.history import HISTORY, claims_in
from storage.index import owners, search, tables
from storage.index.tables import ImageRow
from storage.index.texts import EVERYONE
from storage.ingest import Ingested
from storage.records import (
    IMPORT,
    LABEL,
    PIN,
    Model,
    Record,
    check_label,
    make_record,
    owner_of,
    parse_record,
    request_key,
)
from storage.repository import Allowance, Repository
from storage.results import Ancestor, Page, StoredImage, Usage, ancestor, stored_image

Reference = Digest | str
"""An id, a prefix of one with at least 8 hex digits, or an image URI."""
MAX_PAGE = 1000
"""Maximum number of images per page."""


class StoreView:
    """Images addressed by the SHA-256 of their bytes, and records of how they were made.

    What is stored through a view is its principal's. If the view is `own`, only the images of this principal
    exist in it, with only the records and labels that this principal stored; an id of any other image is like
    one that never was.
    """

    def __init__(
        self,
        repository: Repository,
        limits: Limits,
        principal: str | None = None,
        own: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        """`principal` is recorded with all that is stored; one that owns nothing (`owner_of`) sees all.

        `max_bytes` limits the total size of the images and records of the principal.
        """
        self.limits = limits
        self._repository = repository
        self._principal = principal
        self._owner = owner_of(principal)
        self._viewer = self._owner if own and self._owner else EVERYONE
        self._allowance = Allowance(self._owner, max_bytes) if self._owner and max_bytes is not None else None

    @property
    def read_only(self) -> bool:
        """Whether the store was opened without write permission.

        A read-only store shows its content at the time of opening; every change raises StoreReadOnly.
        """
        return self._repository.read_only

    def refuse_if_read_only(self) -> None:
        """Raise StoreReadOnly if the store is read-only; call it before expensive work."""
        self._repository.refuse_if_read_only()

    def refuse_if_full(self, more: int) -> None:
        """Raise OverQuota if `more` bytes are too many for the principal; call it before expensive work."""
        self._repository.with_index_repair(lambda: self._repository.refuse_if_over(self._allowance, more))

    # -- images ---------------------------------------------------------------------------------------

    def put(
        self,
        image: Image.Image | bytes,
        label: str | None = None,
        *,
        source: str | None = None,
        checkpoint: Checkpoint = no_checkpoint,
    ) -> StoredImage:
        """Store an image durably. Equal pixels have the same id.

        It becomes the principal's by a record of the import with `source`, where it came from, and the claims
        of the file. There is no record if it is the principal's already, or if the principal owns nothing and
        there are no claims, or no `source`.

        The `notes` of the result say what was dropped, reduced or converted. Bytes are decoded in a worker
        process; `checkpoint` is called regularly while this waits, and may raise to cancel.

        Raises:
            ImageRejected: not an image, damaged, too large, or too slow to decode.
            StoreBusy: too many images are being decoded.
            StoreFull, StoreReadOnly, OverQuota: nothing was stored.
            InvalidArgument: the label is empty or too long.
        """
        if label is not None:
            check_label(label)
        if isinstance(image, Image.Image):
            ingested = Ingested(codec.encode(codec.admit(image, self.limits)))
        else:
            ingested = decoder.decode(image, self.limits, checkpoint)
        digest = self._put(ingested, source)
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

    def resized(self, ref: Reference, width: int) -> tuple[bytes, str]:
        """A copy that is `width` pixels wide: bytes and MIME type, see `codec.resized`. Raises as `open`."""
        png = self.read(ref)
        with decoder.budget_for(codec.size_of(png)):
            return codec.resized(codec.open_stored(png, self.limits), width)

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
        return tuple(self._repository.query(lambda db: tables.annotations_of(db, digest, self._viewer)))

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

        `more` are the other fields of `Record`: text, numerics, code, time, timings, notes; and principal,
        where the view has none.

        Raises:
            InvalidArgument: a field is invalid; the message names it.
            ImageNotFound: an input or output is not stored.
            StoreFull, StoreReadOnly, OverQuota: nothing was stored.
        """
        self._check_named((*inputs, *outputs))
        fields = {"parameters": dict(parameters), "inputs": inputs, "outputs": outputs, "model": model}
        return self._put_record(make_record(tool=tool, seed=seed, **fields, **self._signed(more)))

    def put_made(self, pictures: Iterable[Image.Image], *, tool: str, **fields: Any) -> Record:
        """Store images, and a record with them as outputs, durably; `fields` are the others of `record`.

        Faster than `put` followed by `record`. If storing the record fails, the images may remain stored.
        Raises as both.
        """
        self._check_named(fields.get("inputs", ()))
        pngs = [codec.encode(codec.admit(picture, self.limits)) for picture in pictures]
        signed = self._signed(fields)
        return self._repository.put_made(
            pngs, lambda digests: make_record(tool=tool, outputs=digests, **signed), self._allowance
        )

    def get_record(self, ref: Reference) -> Record:
        """The record with a complete id, verified.

        Raises:
            InvalidArgument: `ref` is not a complete id, or not the id of a record.
            Corrupt: the stored bytes do not match the id.
        """
        digest = ref if isinstance(ref, Digest) else Digest.parse(ref)
        try:
            if self._viewer and not self._repository.query(
                lambda db: search.has_record(db, digest, self._viewer)
            ):
                raise KeyError(digest)
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
        such record: carrying out the request again then also restores damaged images. An image that was read
        a moment ago, and whose file has not changed since, is not read again.
        """
        weights = model.digest or model.id if model else None
        key = request_key(tool, parameters, inputs, weights, seed, numerics)
        bodies = self._repository.query(lambda db: search.records_of_request(db, key, self._viewer))
        record = next((parse_record(body) for body in bodies if self._repository.is_readable(body)), None)
        for image in record.outputs if record is not None else ():
            self._repository.note_access(image)
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
        images, following = self._repository.query(lambda db: search.list_images(db, wanted, self._viewer))
        return Page(tuple(map(stored_image, images)), following)

    def origin(self, ref: Reference) -> Ancestor:
        """An image and its record, without reading its ancestors. Raises as `get`."""
        digest = self._row(ref).digest
        found = self._repository.query(lambda db: search.origin(db, digest, self._viewer))
        if found is None:  # collected since
            raise image_not_found(digest)
        return ancestor(found)

    def lineage(self, ref: Reference, limit: int | None = None) -> tuple[Ancestor, ...]:
        """The ancestors of an image and their records, oldest first; the image itself is last.

        With `limit`, at most that many entries: the image and its nearest ancestors. Raises as `get`.
        """
        digest = self.get(ref).id
        origins = self._repository.query(lambda db: search.origins(db, [digest], limit, self._viewer))
        return tuple(map(ancestor, search.oldest_first(origins, digest)))

    def with_ancestors(self, refs: Iterable[Digest]) -> set[Digest]:
        """The given images and all their ancestors, as far as they are seen."""
        images = list(refs)
        return set(self._repository.query(lambda db: search.origins(db, images, viewer=self._viewer)))

    def made_since(self, moment: datetime) -> Sequence[tuple[datetime, int]]:
        """When models made images for the principal since `moment`, and how many each time."""
        owner = self._owner
        return self._repository.query(lambda db: owners.made_since(db, owner, moment)) if owner else []

    def usage(self) -> Usage:
        """Number of images and bytes stored, of those that the view shows."""
        if self._viewer:
            images, size = self._repository.query(lambda db: owners.totals(db, self._viewer))
            return Usage(images, size, self._allowance.bytes if self._allowance else None)
        images, size = self._repository.query(tables.totals)
        return Usage(images, size, self._repository.quota)

    # -- internal -------------------------------------------------------------------------------------

    def _row(self, ref: Reference) -> ImageRow:
        images = self._repository.find(ref.hex if isinstance(ref, Digest) else hex_digits(ref), self._viewer)
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
        self._put_record(make_record(tool=tool, parameters=parameters, inputs=(digest,), **self._signed({})))
        return self.get(digest)

    def _put(self, ingested: Ingested, source: str | None) -> Digest:
        digest, (claims, left) = Digest.of(ingested.png), claims_in(ingested.history)
        if self._has_import(digest, bool(source and claims)):
            return self._repository.put_image(ingested.png)
        parameters = ({"source": source} if source else {}) | ({HISTORY: claims} if claims else {})
        came = {"parameters": parameters, "notes": (*ingested.notes, *left) or None}
        self._repository.put_made(
            [ingested.png],
            lambda digests: make_record(tool=IMPORT, outputs=digests, principal=self._principal, **came),
            self._allowance,
        )
        return digest

    def _has_import(self, digest: Digest, told: bool) -> bool:
        """Whether an image needs no record of its import; `told` is whether there is something to tell."""
        owner = self._owner
        if owner is not None:
            return self._repository.query(lambda db: owners.owns(db, owner, digest))
        found = self._repository.query(lambda db: search.origin(db, digest)) if told else None
        return not told or (found is not None and found.record is not None)

    def _put_record(self, record: Record) -> Digest:
        return self._repository.put_record(record, self._allowance)

    def _signed(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a record, with the principal of the view if it has one."""
        return {**fields, "principal": self._principal} if self._principal else dict(fields)

    def _check_named(self, images: Iterable[Digest]) -> None:
        """Raise ImageNotFound if a record would name an image that does not exist in this view."""
        if self._viewer:
            for digest in images:
                self._row(digest)
