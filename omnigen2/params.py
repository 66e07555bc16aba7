"""Every tunable of the model, once: its name, type, bounds and sentence.

Tool schemas, command-line options, REST bodies and reference pages derive from these classes. A field that
is `None` means "the model decides"; the values it decides on live in the model card
(`omnigen2.checkpoints.card`) and nowhere else. Nothing here imports torch.
"""

import json
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypedDict, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

MIN_SIDE, MAX_SIDE = 16, 4096  # pixels of a side that can be asked for
MAX_SEED = 2**53 - 1  # the largest integer that survives JSON in every client
MAX_REFERENCES = 5  # rows of the checkpoint's image_index_embedding
MAX_ADAPTERS = 8  # that a picture may use
OFFERED = "offered"
"""Key of a field's JSON schema: what its values name, of which a host can list those there are."""

Scheduler = Literal["euler", "dpmsolver++"]
Speed = Literal["exact", "balanced", "fast"]
Share = Annotated[float, Field(ge=0, le=1)]

P = TypeVar("P", bound="Params")
S = TypeVar("S", bound="Sampling")


class InvalidTask(ValueError):
    """A request that the model cannot do. The message reads `field: what was given; what is allowed`.

    Any other ValueError is a fault of the program, of a library or of a plugin.
    """

    @property
    def field(self) -> str:
        """The parameter that is wrong: what stands before the message's first colon."""
        return str(self).partition(":")[0]


class Params(BaseModel):
    """A frozen group of parameters that can be cut out of a larger request and completed with defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def part(self, kind: type[P]) -> P:
        """The fields of this value that belong to `kind`, as a `kind`."""
        return kind.model_construct(**{name: getattr(self, name) for name in kind.model_fields})

    def filled(self, defaults: "Params") -> Self:
        """This value with every `None` replaced by what `defaults` says for the field of the same name."""
        missing = {
            name: value
            for name, value in defaults
            if name in type(self).model_fields and getattr(self, name) is None
        }
        return self.model_copy(update=missing)


_ADAPTER = re.compile(r"(.+?)(?:@sha256:([^:]*))?(?::(-?(?:\d+\.?\d*|\.\d+)))?", re.DOTALL)
"""`name`, `name:weight`, `name@sha256:digest` or `name@sha256:digest:weight`."""


def from_text(text: str) -> object:
    """What a text holds, if it is JSON; else the text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def named_adapter(value: object) -> object:
    """The fields of a `NamedAdapter`, from any way to write one: a text, a path, or an object."""
    if isinstance(value, str) and value.lstrip()[:1] == "{":
        value = from_text(value)
    if isinstance(value, os.PathLike):
        value = {"name": value}
    if isinstance(value, str) and (found := _ADAPTER.fullmatch(value)):
        fields = zip(("name", "digest", "weight"), found.groups(), strict=True)
        value = {field: own for field, own in fields if own is not None}
    if not isinstance(value, Mapping):
        return value
    return {
        field: os.fspath(own) if isinstance(own, os.PathLike) else own
        for field, own in value.items()
        if own is not None
    }


class Sampling(Params):
    """How a picture is sampled."""

    negative_prompt: str | None = Field(default=None, max_length=4000)
    """What the picture should not show."""
    width: int | None = Field(default=None, ge=MIN_SIDE, le=MAX_SIDE)
    """Width in pixels."""
    height: int | None = Field(default=None, ge=MIN_SIDE, le=MAX_SIDE)
    """Height in pixels."""
    num_images: int | None = Field(default=None, ge=1, le=8)
    """How many variants to make."""
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    """Equal requests with equal seeds give equal pictures. Drawn if absent."""
    steps: int | None = Field(default=None, ge=1, le=1000)
    """Denoising steps: more is slower and finer."""
    text_guidance_scale: float | None = Field(default=None, ge=0, le=30)
    """How strongly the text is followed; 1 or less turns this off and halves the work."""
    cfg_range: tuple[Share, Share] | None = None
    """Part of the denoising, from 0 to 1, that is guided; a shorter one is faster."""
    scheduler: Scheduler | None = None
    """The sampler; `dpmsolver++` needs fewer steps."""
    speed: Speed | None = None
    """`balanced` and `fast` compute fewer steps, and differ slightly from `exact`."""

    @field_validator("cfg_range")
    @classmethod
    def _range_is_ordered(cls, cfg_range: tuple[float, float] | None) -> tuple[float, float] | None:
        if cfg_range is not None and cfg_range[0] > cfg_range[1]:
            raise ValueError("must be [start, end] with 0 <= start <= end <= 1")
        return cfg_range


class ReferenceSampling(Sampling):
    """How a picture is sampled when reference images guide it."""

    image_guidance_scale: float | None = Field(default=None, ge=0, le=30)
    """How closely the images are followed; 1 or less turns this off."""


def _undescribed(schema: dict[str, Any]) -> None:
    """Leave the description of an object to the field that holds it."""
    schema.pop("description", None)


class NamedAdapter(Params):
    """A LoRA adapter, and how strongly it is applied."""

    model_config = ConfigDict(json_schema_extra=_undescribed)

    name: str = Field(min_length=1, max_length=4000)
    """Its name, or the path of its file or folder."""
    weight: float = Field(default=1.0, ge=-10, le=10, allow_inf_nan=False)
    """1 as trained, 0 not at all."""
    digest: str | None = Field(default=None, min_length=64, max_length=64)
    """SHA-256 that it must have."""


class Adapters(Params):
    """The adapters with which a picture is made."""

    lora: list[NamedAdapter] | None = Field(
        default=None, max_length=MAX_ADAPTERS, json_schema_extra={OFFERED: "adapters"}
    )
    """LoRA adapters to apply, by name; several add up."""

    @field_validator("lora", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """A lone one is a list of one; a text may stand for one: `name:0.8`, `name@sha256:digest`, JSON."""
        several: list[object] = []
        for own in value if isinstance(value, list | tuple) else [value]:
            listed = from_text(own) if isinstance(own, str) and own.lstrip()[:1] == "[" else own
            several += listed if isinstance(listed, list) else [listed]
        return [named_adapter(own) for own in several if own is not None] or None


class SamplingOptions(TypedDict, total=False):
    """The fields of `ReferenceSampling` as keyword arguments; None is the model's default."""

    negative_prompt: str | None
    width: int | None
    height: int | None
    num_images: int | None
    seed: int | None
    steps: int | None
    text_guidance_scale: float | None
    cfg_range: tuple[float, float] | None
    scheduler: Scheduler | None
    speed: Speed | None
    image_guidance_scale: float | None


class Decoding(Params):
    """How text is written about images."""

    max_tokens: int | None = Field(default=None, ge=1, le=2048)
    """Longest answer, in tokens."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 gives the most likely answer; higher values vary it."""
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED)
    """Number that fixes the answer when the temperature is above 0. Drawn if absent."""
