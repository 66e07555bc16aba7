"""Records: how an image was made, and their canonical form.

A record is stored as canonical JSON (RFC 8785), so equal records have equal bytes and the same id. Labels and
pins are records too (`label_image`, `pin_image`), because they must survive the loss of the index, as only
blobs and records do.
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
"""Tool names of the records that set or remove a label or a pin."""
IMPORT = "import_image"
"""Tool name of the records of images that came from outside."""
LOCAL = "local"
"""The principal of whoever runs the process and can read its files: it sees everything, and owns nothing."""
SEARCHED = ("prompt", "instruction", "question", "label")
"""Parameters whose text is indexed for search."""
MAX_BYTES = 4_000_000
"""Maximum size of a record's canonical form."""
MAX_DEPTH = 64
"""Maximum nesting of lists and objects: JSON libraries have limits, some depending on the call stack."""
MAX_LABEL = 500
"""Maximum number of characters in a label."""


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
    """The model that was used."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    id: str
    """The model's name: a repository id, a folder's name, or `nano`."""
    digest: str | None = None
    """Digest of its weights, `sha256:<hex>`."""


class Record(BaseModel):
    """One call of a tool: its parameters, input images, model and results."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    tool: Annotated[str, Field(min_length=1, max_length=100)]
    """Name of the tool."""
    parameters: dict[str, JsonValue] = {}
    """All effective parameters."""
    inputs: Images = ()
    """The input images, in the order given."""
    outputs: Images = ()
    """The images made, in order."""
    text: str | None = None
    """The text made, for tools that make text."""
    model: Model | None = None
    seed: int | None = None
    """Seed of the random generator."""
    numerics: str | None = None
    """Version of the numerics: equal requests give equal pixels only within one version."""
    code: str | None = None
    """Version of the program."""
    principal: str | None = None
    """The authenticated user who made the call."""
    time: Time
    """Time of the call, UTC, with microsecond precision."""
    timings: dict[str, float] | None = None
    """Duration of each phase in milliseconds."""
    notes: tuple[str, ...] | None = None
    """Warnings about the result, such as a truncated prompt."""

    @model_validator(mode="after")
    def _check_annotations(self) -> Self:
        """Check the types of label and pin, which the index stores in typed columns."""
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
        """RFC 8785 JSON of all fields that are not None.

        Raises:
            InvalidArgument: a number has no canonical form (NaN, infinity, an integer beyond 2^53), or the
                record exceeds `MAX_BYTES` or `MAX_DEPTH`.
        """
        body = b"{%s}" % b",".join(b'"%s":%s' % (name.encode(), form) for name, form in self.forms.items())
        if len(body) > MAX_BYTES:
            raise _too_large(len(body))
        if depth(json.loads(body, parse_int=_exact)) > MAX_DEPTH:
            raise InvalidArgument(
                f"The record has more than {MAX_DEPTH} levels of nested lists and objects.",
                "Give flatter parameters.",
            )
        return body

    @cached_property
    def forms(self) -> dict[str, bytes]:
        """The canonical form of each field that is not None, sorted by name."""
        fields = self.model_dump(mode="json", exclude_none=True)
        return {name: canonical(fields[name]) for name in sorted(fields)}

    @property
    def id(self) -> Digest:
        """The SHA-256 of the canonical form."""
        return Digest.of(self.canonical)

    @property
    def owner(self) -> str | None:
        """The principal whose images the outputs are; None if they are nobody's."""
        return owner_of(self.principal)

    @property
    def request_key(self) -> Digest:
        """The key that is equal for equal requests, see `request_key`."""
        forms, null = self.forms, canonical(None)
        model = canonical((self.model.digest or self.model.id) if self.model else None)
        seed, numerics = forms.get("seed", null), forms.get("numerics", null)
        return _key_of(forms["tool"], forms["parameters"], forms["inputs"], model, seed, numerics)

    def searched_text(self) -> str:
        """The text that is indexed for search of its outputs."""
        values = (self.parameters.get(name) for name in SEARCHED)
        return "\n".join(value for value in values if isinstance(value, str))


def make_record(**fields: Any) -> Record:
    """A validated record; `time` defaults to now.

    Raises:
        InvalidArgument: a field is missing, unknown or of the wrong type; the message names it.
    """
    try:
        record = Record.model_validate({"time": datetime.now(UTC), **fields})
    except ValidationError as error:
        raise InvalidArgument(f"The record is invalid: {_first(error)}.", "Correct the field.") from error
    body = record.canonical
    again = parse_record(body)  # as it will be read: there, a float with an integral value is an integer
    vars(again).update(forms=record.forms, canonical=body)  # equal, and expensive to compute again
    return again


def parse_record(data: bytes) -> Record:
    """The record in JSON bytes, which need not be canonical.

    Raises:
        InvalidArgument: `data` is not a valid record; the message names the field.
    """
    if len(data) > MAX_BYTES:
        raise _too_large(len(data))
    try:
        return Record.model_validate_json(data)
    except ValidationError as error:
        raise InvalidArgument(f"The record is invalid: {_first(error)}.") from error


def owner_of(principal: str | None) -> str | None:
    """`principal`, or None for one that owns nothing: none at all, or `LOCAL`."""
    return None if principal in (None, "", LOCAL) else principal


def check_label(label: str) -> None:
    """Raise InvalidArgument if `label` is blank or longer than `MAX_LABEL` characters."""
    if not label.strip() or len(label) > MAX_LABEL:
        raise InvalidArgument(
            f"The label has {len(label)} characters; 1 to {MAX_LABEL} are allowed, and not only spaces.",
            "Give a shorter label, or none.",
        )


def request_key(
    tool: str,
    parameters: Mapping[str, JsonValue],
    inputs: Sequence[Digest],
    model: str | None,
    seed: int | None,
    numerics: str | None,
) -> Digest:
    """The digest by which an equal earlier request is found; `model` is the digest of the weights."""
    parts = (tool, dict(parameters), [str(digest) for digest in inputs], model, seed, numerics)
    return _key_of(*map(canonical, parts))


def _key_of(*forms: bytes) -> Digest:
    """The digest of the canonical list of values with these canonical forms (RFC 8785)."""
    return Digest.of(b"[%s]" % b",".join(forms))


def canonical(value: Any) -> bytes:
    """`value` as RFC 8785 JSON.

    Raises:
        InvalidArgument: `value` has no canonical form.
    """
    try:
        return rfc8785.dumps(value)
    # Also ValueError, for lone surrogates in a text, and RecursionError, for deep nesting.
    except (rfc8785.CanonicalizationError, ValueError, RecursionError) as error:
        raise InvalidArgument(
            f"A record cannot contain this value: {error}.",
            "Use text, finite numbers and integers up to 2^53.",
        ) from error


def _exact(digits: str) -> int:
    """An integer of a canonical form; a large float also reads as one, but has no canonical form then."""
    if abs(number := int(digits)) >= 2**53:
        raise InvalidArgument(
            f"A record cannot contain the number {digits}.", "Use finite numbers and integers up to 2^53."
        )
    return number


def depth(value: JsonValue) -> int:
    """The number of nested levels of lists and objects."""
    levels, level = 0, [value]
    while level:
        parts: list[JsonValue] = []
        for item in level:
            if isinstance(item, dict):
                parts += item.values()
            elif isinstance(item, list):
                parts += item
        levels, level = levels + 1, parts
    return levels - 1


def _too_large(size: int) -> InvalidArgument:
    return InvalidArgument(
        f"The record has {size:,} bytes; at most {MAX_BYTES:,} are allowed.", "Give shorter texts."
    )


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in detail["loc"])[:100]
    return f"{field}: {detail['msg']} (given {reprlib.repr(detail['input'])})"
