"""How an image came to be: a record, and the one way of writing it down.

Knows nothing of files or the index. A record is canonical JSON (RFC 8785), so equal records are equal bytes
and have one id. Labels and pins are records too (`label_image`, `pin_image`): what a person says about an
image must outlive the index, and only blobs and records do.
"""

import json
import reprlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Annotated, Any, Self

import rfc8785
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    ValidationError,
    model_validator,
)

from storage.digest import Digest
from storage.errors import InvalidArgument

LABEL, PIN = "label_image", "pin_image"
"""Tools of the records by which a label is set, and a pin set or taken off."""
SEARCHED = ("prompt", "instruction", "question", "label")
"""Parameters whose text is found by a search."""
MAX_BYTES = 4_000_000
"""Of a record's canonical form."""
MAX_DEPTH = 64
"""Lists and objects within each other: JSON readers and writers have limits, some depending on the caller."""
MAX_LABEL = 500
"""Characters."""


def _in_utc(time: datetime) -> datetime:
    try:
        return time.astimezone(UTC)
    except OverflowError:
        raise ValueError("is not within the years 1 to 9999, UTC") from None


Time = Annotated[
    AwareDatetime,
    AfterValidator(_in_utc),
    PlainSerializer(lambda time: time.isoformat(timespec="microseconds"), return_type=str),
]

Images = Annotated[tuple[Digest, ...], Field(max_length=1000)]


class Model(BaseModel):
    """Which weights worked."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: str
    """The model's name: a repository id, a folder's name, or `nano`."""
    digest: str | None = None
    """`sha256:<hex>` over its weights."""


class Record(BaseModel):
    """What was asked, of what, with what, and what came of it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tool: Annotated[str, Field(min_length=1, max_length=100)]
    """Name of the tool."""
    parameters: dict[str, JsonValue] = {}
    """Every effective parameter."""
    inputs: Images = ()
    """The images it worked from, in the order given."""
    outputs: Images = ()
    """The images it made, in order."""
    text: str | None = None
    """The text it wrote, if that is what it makes."""
    model: Model | None = None
    seed: int | None = None
    """Number that fixes the outcome."""
    numerics: str | None = None
    """Version of the arithmetic: equal requests give equal pixels only within one."""
    code: str | None = None
    """Version of the program."""
    principal: str | None = None
    """On whose behalf."""
    time: Time
    """When it was done, UTC, to the microsecond."""
    timings: dict[str, float] | None = None
    """Milliseconds by phase."""
    notes: tuple[str, ...] | None = None
    """What was said about the outcome, such as that the prompt was cut."""

    @model_validator(mode="after")
    def _says_what_the_index_can_hold(self) -> Self:
        """The index keeps labels and pins as columns, for which only these types will do."""
        label, pinned = self.parameters.get("label"), self.parameters.get("pinned")
        if self.tool == LABEL and label is not None:
            if not isinstance(label, str):
                raise ValueError("the label of a label_image record must be text")
            check_label(label)
        if self.tool == PIN and not (pinned is None or isinstance(pinned, bool)):
            raise ValueError("pinned of a pin_image record must be true or false")
        return self

    @cached_property
    def canonical(self) -> bytes:
        """RFC 8785 JSON of every field that is not None; computed once, as a record never changes.

        Raises:
            InvalidArgument: a number has no exact form in JSON (NaN, infinity, a whole number beyond 2^53),
                or the record is too large or too deeply nested for everything that will read it.
        """
        body = b"{%s}" % b",".join(b'"%s":%s' % (name.encode(), form) for name, form in self.forms.items())
        if len(body) > MAX_BYTES:
            raise _too_large(len(body))
        if _depth(json.loads(body, parse_int=_exact)) > MAX_DEPTH:
            raise InvalidArgument(
                f"The record has more than {MAX_DEPTH} lists and objects within each other.",
                "Give flatter parameters.",
            )
        return body

    @cached_property
    def forms(self) -> dict[str, bytes]:
        """The canonical form of each field that is not None, in the order of their names."""
        fields = self.model_dump(mode="json", exclude_none=True)
        return {name: canonical(fields[name]) for name in sorted(fields)}

    @property
    def id(self) -> Digest:
        """The SHA-256 of the canonical form."""
        return Digest.of(self.canonical)

    @property
    def memo(self) -> Digest:
        """What makes two requests the same: see `memo`."""
        forms, null = self.forms, canonical(None)
        model = canonical((self.model.digest or self.model.id) if self.model else None)
        seed, numerics = forms.get("seed", null), forms.get("numerics", null)
        return _memo(forms["tool"], forms["parameters"], forms["inputs"], model, seed, numerics)

    def searched_text(self) -> str:
        """The words by which its outputs can be found."""
        values = (self.parameters.get(name) for name in SEARCHED)
        return "\n".join(value for value in values if isinstance(value, str))


def make_record(**fields: Any) -> Record:
    """A record from fields as they come; `time` is now if it is not given.

    Raises:
        InvalidArgument: a field is missing, unknown or of the wrong kind; the message names it.
    """
    try:
        record = Record.model_validate({"time": datetime.now(UTC), **fields})
    except ValidationError as error:
        raise InvalidArgument(f"This is no record: {_first(error)}.", "Correct the field.") from error
    body = record.canonical
    again = parse_record(body)  # as it will be read: a whole number written as a float is an integer then
    vars(again).update(forms=record.forms, canonical=body)  # equal to its own, and slow to compute
    return again


def parse_record(data: bytes) -> Record:
    """The record in JSON bytes.

    Raises:
        InvalidArgument: it is none.
    """
    if len(data) > MAX_BYTES:
        raise _too_large(len(data))
    try:
        return Record.model_validate_json(data)
    except ValidationError as error:
        raise InvalidArgument(f"This is no record: {_first(error)}.") from error


def check_label(label: str) -> None:
    """Raise InvalidArgument unless `label` can be an image's label."""
    if not label.strip() or len(label) > MAX_LABEL:
        raise InvalidArgument(
            f"The label has {len(label)} characters; 1 to {MAX_LABEL} are allowed, not only spaces.",
            "Give a shorter label, or none.",
        )


def memo(
    tool: str,
    parameters: Mapping[str, JsonValue],
    inputs: Sequence[Digest],
    model: str | None,
    seed: int | None,
    numerics: str | None,
) -> Digest:
    """The digest under which an equal request finds its earlier answer; `model` is the weights' digest."""
    parts = (tool, dict(parameters), [str(digest) for digest in inputs], model, seed, numerics)
    return _memo(*map(canonical, parts))


def _memo(*forms: bytes) -> Digest:
    """From the canonical forms of the parts: a list of them has theirs, with commas between (RFC 8785)."""
    return Digest.of(b"[%s]" % b",".join(forms))


def canonical(value: Any) -> bytes:
    """RFC 8785 JSON.

    Raises:
        InvalidArgument: `value` has no canonical form.
    """
    try:
        return rfc8785.dumps(value)
    # Beside its own errors: bare ValueError for text that is not Unicode, RecursionError for endless nesting.
    except (rfc8785.CanonicalizationError, ValueError, RecursionError) as error:
        raise InvalidArgument(
            f"A record cannot hold this value: {error}.", "Use text, finite numbers and integers up to 2^53."
        ) from error


def _exact(digits: str) -> int:
    """An integer of a canonical form. A large float is one, too, and could not be written a second time."""
    if abs(number := int(digits)) >= 2**53:
        raise InvalidArgument(
            f"A record cannot hold the number {digits}.", "Use finite numbers and integers up to 2^53."
        )
    return number


def _depth(value: JsonValue) -> int:
    """How many lists and objects are within each other."""
    depth, level = 0, [value]
    while level:
        parts: list[JsonValue] = []
        for item in level:
            if isinstance(item, dict):
                parts += item.values()
            elif isinstance(item, list):
                parts += item
        depth, level = depth + 1, parts
    return depth - 1


def _too_large(size: int) -> InvalidArgument:
    return InvalidArgument(
        f"The record has {size:,} bytes; at most {MAX_BYTES:,} are allowed.", "Give shorter texts."
    )


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in detail["loc"])[:100]
    return f"{field}: {detail['msg']} (given {reprlib.repr(detail['input'])})"
