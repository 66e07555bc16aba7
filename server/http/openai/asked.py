"""A request of OpenAI's images API as the call of a tool.

What only OpenAI has is a field of `Options`; everything else is passed on to the tool, which knows its
parameters itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Field
from starlette.requests import Request as HttpRequest

from server.arguments import read_arguments
from server.http.forms import MULTIPART, FormField, form_fields
from server.http.rest import json_object
from tools.base import Request, ToolError
from tools.fields import Reference

MAX_FILES = 16
"""Pictures in a form, as many as OpenAI takes; the model takes fewer, and says so itself."""
Quality = Literal["low", "medium", "high", "xhigh", "max", "auto", "standard", "hd"]
SPEED: Mapping[str, str] = {"low": "fast", "medium": "balanced", "high": "exact", "hd": "exact",
                                "xhigh": "exact", "max": "exact"}  # fmt: skip
"""What a quality is here. The others leave the decision to the model."""
WITHOUT_EFFECT = {
    "style": "say it in the prompt.",
    "moderation": "nothing is moderated here.",
    "input_fidelity": "image_guidance_scale says how closely the images are followed.",
    "complexity": "steps says how much is computed.",
}
"""OpenAI's parameters that have no counterpart, and what to do instead."""
NAMES = {"instruction": "prompt", "num_images": "n", "images": "image"}
"""What OpenAI calls a parameter of the tools."""


class Options(Request):
    """What OpenAI's requests have and no tool has, or has under another name."""

    model_config = ConfigDict(extra="allow")

    prompt: str = Field(min_length=1, max_length=32_000)
    """What the picture should show; for edits, what to change."""
    model: str | None = Field(default=None, max_length=300)
    """Name of a model, as GET /v1/models lists it; the default one if absent."""
    n: Annotated[int, Field(ge=1, le=10)] | None = None
    """Number of pictures."""
    size: str | None = Field(default=None, pattern=r"^([1-9]\d{0,4}x[1-9]\d{0,4}|auto)$", max_length=11)
    """WIDTHxHEIGHT in pixels, or `auto`: the model's size, or the input's."""
    quality: Quality | None = None
    """`low` is the parameter speed `fast`, `medium` is `balanced`, `high` and above are `exact`."""
    background: bool | Literal["opaque", "auto", "transparent"] | None = None
    """`opaque` or `auto`: pictures have no transparency. True answers at once with a job_id."""
    response_format: Literal["b64_json", "url"] | None = None
    """Whether the answer has the pictures themselves (the default), or their addresses."""
    output_format: Literal["png", "jpeg", "webp"] | None = None
    """Format of the pictures in the answer; stored is the PNG."""
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = None
    """Quality of JPEG and WebP, up to 100."""
    stream: bool | None = None
    """Answer with events instead of one document."""
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = None
    """Previews on the way, in a stream."""
    user: str | None = Field(default=None, max_length=1000)
    """Ignored."""
    safety_identifier: str | None = Field(default=None, max_length=1000)
    """Ignored."""


class EditOptions(Options):
    """`Options`, and the pictures."""

    image: list[Reference] = Field(min_length=1, max_length=MAX_FILES)
    """Pictures: files in a form; in JSON data: URIs, ids of stored images, or what else the tools take."""


@dataclass(frozen=True)
class Asked:
    """A call to be made, and how to answer it."""

    tool: str
    arguments: dict[str, Any]
    options: Options
    notes: list[str] = field(default_factory=list[str])


async def generation(request: HttpRequest) -> Asked:
    """The call for a request to make pictures of words. Raises ToolError."""
    options, notes = read_arguments(Options, await fields(request))
    assert isinstance(options, Options)
    asked = _asked("generate_image", options, notes)
    asked.arguments["prompt"] = options.prompt
    return asked


async def edit(request: HttpRequest) -> Asked:
    """The call for a request to change or combine pictures. Raises ToolError."""
    options, notes = read_arguments(EditOptions, await fields(request))
    assert isinstance(options, EditOptions)
    several = len(options.image) > 1
    for part in ("mask", "region"):
        if several and (options.model_extra or {}).get(part) is not None:
            message = f"{part}: given for {len(options.image)} images."
            raise ToolError("invalid_argument", message, "Send the one image that it belongs to.")
    asked = _asked("compose_from_references" if several else "edit_image", options, notes)
    images = {"images": options.image} if several else {"image": options.image[0]}
    asked.arguments.update(images, instruction=options.prompt)
    return asked


async def fields(request: HttpRequest) -> dict[str, Any]:
    """The fields of a request's body, JSON or a form; pictures in it are references. Raises ToolError."""
    if not request.headers.get("content-type", "").lower().startswith(MULTIPART):
        body = await json_object(request)
        return {name: _references(value) for name, value in body.items()}
    return _read(await form_fields(request, MAX_FILES + 1))


def _read(fields: list[FormField]) -> dict[str, Any]:
    """The fields of a form: `name[]`, or a name that comes twice, is a list."""
    read: dict[str, Any] = {}
    for given, text, _ in fields:
        name = given.removesuffix("[]")
        if name != given or name in read:
            before = read.get(name, [])
            read[name] = [*(cast("list[str]", before) if isinstance(before, list) else [before]), text]
        else:
            read[name] = text
    return read


def _references(value: Any) -> Any:
    """A picture of a JSON body as a reference: OpenAI writes `{"image_url": ...}` or `{"file_id": ...}`."""
    match value:
        case list():
            return [_references(item) for item in cast("list[Any]", value)]
        case {"image_url": str(named)} | {"file_id": str(named)}:
            return named
        case _:
            return value


def _asked(tool: str, options: Options, notes: tuple[str, ...]) -> Asked:
    """The call of a tool with all that does not depend on which tool it is."""
    arguments: dict[str, Any] = dict(options.model_extra or {})
    said = [
        f"{name} has no effect: {instead}"
        for name, instead in WITHOUT_EFFECT.items()
        if arguments.pop(name, None) is not None
    ]
    if options.model:
        arguments["model"] = options.model
    if options.n is not None:
        arguments["num_images"] = options.n
    if options.size and options.size != "auto":
        width, height = options.size.split("x")
        arguments |= {"width": int(width), "height": int(height)}
    if options.quality and options.quality in SPEED:
        arguments.setdefault("speed", SPEED[options.quality])
    if options.background == "transparent":
        raise ToolError(
            "invalid_argument",
            "background: transparent pictures cannot be made by this model.",
            'Leave background out, or give "opaque".',
        )
    if options.background is True and options.stream:
        raise ToolError("invalid_argument", "stream: a background job has no stream here.", "See /v1/jobs.")
    if isinstance(options.background, bool):
        arguments["background"] = options.background
    return Asked(tool, arguments, options, [*notes, *said])
