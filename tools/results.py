"""What tools answer: ids and facts, never pixels. One record of the store always gives one result.

Fields of the last base come first, as in requests.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, JsonValue

from storage import Record, StoredImage, StoreView
from tools.base import Detail, Result, short_id


class Facts(BaseModel):
    """A part of a result."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ImageInfo(Facts):
    """An image of the store."""

    id: str
    """sha256:<64 hex digits>: names the image in every later call."""
    uri: Annotated[str, Detail]
    """Resource URI of the full image."""
    url: str | None = None
    """Address at which a browser opens the full image, for the user; only over HTTP."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    mime_type: Annotated[str, Detail]
    bytes: Annotated[int, Detail]
    """Size of the full image."""

    @classmethod
    def of(cls, image: StoredImage, **more: object) -> Self:
        """The facts of a stored image, and what else this kind of image has."""
        return cls.model_validate(
            {
                "id": str(image.id),
                "uri": image.id.uri,
                "width": image.width,
                "height": image.height,
                "mime_type": image.mime_type,
                "bytes": image.bytes,
                **more,
            }
        )


class MadeImage(ImageInfo):
    """An image that a request made."""

    seed: int
    """The seed with which a request for one image makes this picture again."""


class Timings(Facts):
    """Milliseconds by phase; a result from the store has only the total."""

    model_config = ConfigDict(extra="ignore")  # a backend may have phases of its own

    queued_ms: float = 0
    load_ms: float = 0
    """Spent on waiting for the model to be loaded."""
    total_ms: float = 0


class ImageTimings(Timings):
    """Milliseconds by phase of making pictures."""

    encode_ms: float = 0
    denoise_ms: float = 0
    decode_ms: float = 0


class TextTimings(Timings):
    """Milliseconds by phase of writing text."""

    write_ms: float = 0


def effective(parameters: dict[str, JsonValue], seed: int | None) -> dict[str, JsonValue]:
    """Every value by which a result can be made again, the seed among them."""
    return parameters if seed is None else parameters | {"seed": seed}


class Made(Result):
    """How the result of a model came about."""

    status: Literal["done", "queued"] = "done"
    """`queued`: it is made in the background; ask get_job."""
    model: str
    """Name of the model."""
    parameters: Annotated[dict[str, JsonValue], Detail]
    """Every effective value; the same call with these values gives the same result."""
    record: Annotated[str | None, Detail] = None
    """Id of the provenance record."""
    cached: bool = False
    """Whether an equal request was answered before and this is its result."""
    job_id: str | None = None

    @classmethod
    def of(
        cls,
        record: Record,
        images: Sequence[StoredImage],
        *,
        timings: Mapping[str, float],
        job_id: str | None = None,
        cached: bool = False,
        notes: Sequence[str] = (),
    ) -> Self:
        """The result that a record and its stored outputs stand for.

        `timings` are milliseconds by phase, `notes` those on this call; the record has those on its outcome.
        """
        return cls.model_validate(
            cls._made(record, images)
            | {
                "timings": timings,
                "model": record.model.id if record.model else "",
                "parameters": effective(record.parameters, record.seed),
                "record": str(record.id),
                "cached": cached,
                "job_id": job_id,
                "notes": tuple(dict.fromkeys((*notes, *(record.notes or ())))),
            }
        )

    def to_journal(self) -> str:
        return json.dumps({"record": self.record, "notes": self.notes})

    @classmethod
    def from_journal(cls, text: str, store: StoreView, job_id: str) -> Self:
        kept = json.loads(text)  # older versions wrote the whole result, which has these two fields as well
        record = store.get_record(kept["record"])
        images = [store.get(digest) for digest in record.outputs]
        return cls.of(record, images, timings=record.timings or {}, job_id=job_id, notes=kept["notes"])

    @classmethod
    def _made(cls, record: Record, images: Sequence[StoredImage]) -> dict[str, object]:
        """What the model made."""
        raise NotImplementedError

    def line(self) -> str:
        if self.status == "queued":
            return f"Queued as {self.job_id}. Ask get_job for its result."
        return self._summary()

    def _summary(self) -> str:
        raise NotImplementedError


class WithImages(Result):
    """What answers with images."""

    images: list[MadeImage]

    def linked(self) -> tuple[str, ...]:
        return tuple(image.id for image in self.images)

    def previewed(self) -> tuple[str, ...]:
        return self.linked()


class ImagesResult(Made, WithImages):
    """Pictures that a model made."""

    timings: Annotated[ImageTimings, Detail] = ImageTimings()

    @classmethod
    def _made(cls, record: Record, images: Sequence[StoredImage]) -> dict[str, object]:
        first = record.seed or 0
        return {"images": [MadeImage.of(image, seed=first + index) for index, image in enumerate(images)]}

    @classmethod
    def accepted(cls, job_id: str, model: str, parameters: dict[str, JsonValue]) -> Self:
        """What is said while they are still to be made."""
        return cls(status="queued", images=[], model=model, parameters=parameters, job_id=job_id)

    def _summary(self) -> str:
        count, first = len(self.images), self.images[0]
        what = "1 image" if count == 1 else f"{count} images"
        how = "from the store" if self.cached else f"made by {self.model}"
        named = "; ".join(f"id {short_id(image.id)}, seed {image.seed}" for image in self.images)
        return f"{what}, {first.width}x{first.height}, {how}: {named}."


class WithText(Result):
    """What answers with text."""

    text: str
    """What the model wrote; empty while it is queued."""


class TextResult(Made, WithText):
    """Text that a model wrote."""

    seed: int | None = None
    """The seed with which the same question has this answer again; absent at temperature 0."""
    timings: Annotated[TextTimings, Detail] = TextTimings()

    @classmethod
    def _made(cls, record: Record, images: Sequence[StoredImage]) -> dict[str, object]:
        return {"text": record.text or "", "seed": record.seed}

    @classmethod
    def accepted(cls, job_id: str, model: str, parameters: dict[str, JsonValue]) -> Self:
        """What is said while it is still to be written."""
        return cls(status="queued", text="", model=model, parameters=parameters, job_id=job_id)

    def _summary(self) -> str:
        return self.text if self.seed is None else f"{self.text}\n(seed {self.seed})"
