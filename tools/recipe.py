"""A recipe says what will be done: everything decided, nothing left to defaults.

Made from a request in exactly one place, `make_recipe`: what was asked, then the size of the input, then the
model's defaults. The same values are the key under which an equal request is found, the body of the record,
and the arguments that make the result again.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from anyio import to_thread
from pydantic import JsonValue

from omnigen2.adapters.file import WeightedAdapter
from omnigen2.checkpoints.card import Limits, ModelCard
from omnigen2.completion import complete_decoding, complete_sampling
from omnigen2.params import Decoding, InvalidTask, ReferenceSampling, Sampling
from omnigen2.sizes import WHOLE_PIXELS, Size
from omnigen2.task import NUMERICS_VERSION, SPEEDS_VERSION, HasSize, ImageTask, Task, TextTask
from storage import Model, StoredImage
from tools.adapters import find_adapters
from tools.base import Context, Request, ToolError
from tools.fields import ImageIn, ImageRequest, ImagesIn, PartIn, TextRequest
from tools.region import check_part

_ADVICE = {"images": "Use fewer images, or another model.", "seed": "Give a smaller seed."}
"""What to do about a wrong field; for any other one it is the size that is wrong."""

Q = TypeVar("Q", bound=Request)


@dataclass(frozen=True)
class Recipe:
    """What a tool will have the model do."""

    tool: str
    request: ImageRequest | TextRequest
    """What was asked, completed: no default is left open, every image is named by its id."""
    params: ReferenceSampling | Decoding
    """What the model is given."""
    inputs: tuple[StoredImage, ...]
    card: ModelCard
    """Of the model, with the digest of its weights."""
    adapters: tuple[WeightedAdapter, ...] = ()
    notes: tuple[str, ...] = ()
    """Notes on the parameters and inputs of this call; an equal call may have others."""
    fixed: bool = False
    """Whether the request itself fixes the outcome, so that an earlier one answers it."""

    @property
    def parameters(self) -> dict[str, JsonValue]:
        """Every effective value but the seed and the model, which stand beside it."""
        apart = {"seed", "model", "background"}
        return self.request.model_dump(mode="json", exclude_none=True, exclude=apart)

    @property
    def key(self) -> dict[str, Any]:
        """What makes another request equal to this one, as the store's `find_equal` and `record` take it."""
        return {
            "tool": self.tool,
            "parameters": self.parameters,
            "inputs": [image.id for image in self.inputs],
            "seed": self.params.seed,
            **identity(self.card, self.params),
        }

    @property
    def seen(self) -> tuple[StoredImage, ...]:
        """The inputs that the model sees."""
        return _seen(self.request, self.inputs)

    @property
    def part(self) -> PartIn | None:
        """The request, if it holds an edit to a part of its image."""
        return self.request if isinstance(self.request, PartIn) and self.request.holds else None

    def task(self, pictures: Sequence[HasSize]) -> Task:
        """The task for the model; `pictures` are the inputs that it sees, or have their sizes."""
        words, images = self.request.words, tuple(pictures)
        if isinstance(self.params, Decoding):
            return TextTask(words, images, self.params)
        return ImageTask(words, images, self.params, self.adapters)


def identity(card: ModelCard, params: ReferenceSampling | Decoding) -> dict[str, Any]:
    """What the key of a request and the record of its outcome say of the model: weights and arithmetic."""
    limits, published = card.limits, Limits.model_construct()
    numerics = str(NUMERICS_VERSION)
    if limits != published:  # a picture reduced to other bounds is another picture
        numerics += f" {limits.max_pixels} {limits.max_input_side} {limits.max_text_tokens}"
    if limits.max_pixels > WHOLE_PIXELS:
        numerics += " strips"
    if isinstance(params, ReferenceSampling) and params.speed != "exact":
        numerics += f" {params.speed} {SPEEDS_VERSION}"
    if card.quantize != "none":
        numerics += f" {card.quantize}"
    return {"model": Model(id=card.id, digest=card.digest), "numerics": numerics}


async def make_recipe(tool: str, request: ImageRequest | TextRequest, context: Context) -> Recipe:
    """Resolve the images, then decide everything that the request left open.

    Raises:
        ToolError: an image, the adapter or the model is not to be had, or the model cannot do it.
    """
    card, known, inputs = await context.look_up(
        request.model, _references(request), wait=not request.background
    )
    named = _with_ids(request, inputs)
    if isinstance(named, PartIn) and named.holds:
        await to_thread.run_sync(check_part, named, inputs, context.store)
    if isinstance(named, ImageRequest):
        recipe = await _image_recipe(tool, named, inputs, card, context)
    else:
        recipe = _text_recipe(tool, named, inputs, card)
    return recipe if known else replace(recipe, fixed=False)  # weights unknown: not answered from the store


def _references(request: Request) -> dict[str, str]:
    """The image references of a request, by field."""
    if isinstance(request, ImageIn):
        mask = request.mask if isinstance(request, PartIn) else None
        return {"image": request.image} | ({"mask": mask} if mask else {})
    if isinstance(request, ImagesIn):
        return {f"images.{place}": reference for place, reference in enumerate(request.images)}
    return {}


def _seen(request: Request, inputs: tuple[StoredImage, ...]) -> tuple[StoredImage, ...]:
    """The inputs that the model sees: all but a mask."""
    return inputs[:1] if isinstance(request, PartIn) else inputs


def _with_ids(request: Q, images: Sequence[StoredImage]) -> Q:
    """The request with ids in the place of references."""
    ids = [str(image.id) for image in images]
    if isinstance(request, ImageIn):
        return request.model_copy(update=dict(zip(("image", "mask"), ids, strict=False)))
    return request.model_copy(update={"images": ids}) if isinstance(request, ImagesIn) else request


async def _image_recipe(
    tool: str, request: ImageRequest, inputs: tuple[StoredImage, ...], card: ModelCard, context: Context
) -> Recipe:
    kind = ReferenceSampling if isinstance(request, ReferenceSampling) else Sampling
    with _refusing():
        asked, seen = request.part(kind), _sizes(_seen(request, inputs))
        completed = complete_sampling(asked, seen, card, prompt=request.words)
    found = await find_adapters(request.lora or (), context)
    lora = [named for _, named in found] or None
    return Recipe(
        tool,
        request.model_copy(update={**dict(completed.params.part(kind)), "lora": lora}),
        completed.params,
        inputs,
        card,
        tuple(adapter for adapter, _ in found),
        notes=(*_taken_in(_seen(request, inputs)), *completed.notes),
        fixed=completed.repeatable,
    )


def _text_recipe(tool: str, request: TextRequest, inputs: tuple[StoredImage, ...], card: ModelCard) -> Recipe:
    with _refusing():
        completed = complete_decoding(request.part(Decoding), _sizes(inputs), card)
    return Recipe(
        tool,
        request.model_copy(update=dict(completed.params)),
        completed.params,
        inputs,
        card,
        notes=(*_taken_in(inputs), *completed.notes),
        fixed=completed.repeatable,
    )


def _sizes(inputs: Sequence[StoredImage]) -> list[Size]:
    return [(image.width, image.height) for image in inputs]


@contextmanager
def _refusing() -> Generator[None]:
    """Convert an `InvalidTask` raised in the block to a `ToolError` with advice."""
    try:
        yield
    except InvalidTask as error:
        advice = _ADVICE.get(error.field, "Ask for a smaller picture.")
        raise ToolError("invalid_argument", f"{error}.", advice) from error


def _taken_in(inputs: Sequence[StoredImage]) -> list[str]:
    """What the store says of images that came with this call, by their place among several."""
    return [
        f"Image {number}: {note}" if len(inputs) > 1 else note
        for number, image in enumerate(inputs, 1)
        for note in image.notes
    ]
