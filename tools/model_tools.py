"""The four tools that need the model: generate, edit, compose, describe.

Each is a request put together from mix-ins, the model's defaults for it, and words for a language model.
"""

from functools import partial

from omnigen2.checkpoints.card import ModelCard
from omnigen2.params import Decoding, ReferenceSampling, Sampling
from tools.base import Context, Tool
from tools.fields import Asked, ImageIn, ImageRequest, ImagesIn, Instructed, PartIn, Prompted, TextRequest
from tools.recipe import make_recipe
from tools.results import ImagesResult, TextResult
from tools.studio import make_images, write_text


class GenerateImage(ImageRequest, Prompted):
    """What to make, and how."""


class EditImage(ImageRequest, ReferenceSampling, PartIn, Instructed, ImageIn):
    """What to change in which image, and how."""


class ComposeFromReferences(ImageRequest, ReferenceSampling, Instructed, ImagesIn):
    """What to make of which images, and how."""


class DescribeImage(TextRequest, Asked, ImagesIn):
    """What to find out about which images."""


async def _images(tool: str, request: ImageRequest, context: Context) -> ImagesResult:
    return await make_images(await make_recipe(tool, request, context), context)


async def _text(tool: str, request: TextRequest, context: Context) -> TextResult:
    return await write_text(await make_recipe(tool, request, context), context)


def _generate_defaults(card: ModelCard) -> Sampling:
    return card.defaults.text_to_image


def _edit_defaults(card: ModelCard) -> ReferenceSampling:
    return card.defaults.edit  # its size is the input's


def _compose_defaults(card: ModelCard) -> ReferenceSampling:
    return card.defaults.compose


def _describe_defaults(card: ModelCard) -> Decoding:
    return card.defaults.describe


def _generate_advice(card: ModelCard) -> str:
    return card.advice.text_to_image


def _edit_advice(card: ModelCard) -> str:
    return card.advice.edit


def _compose_advice(card: ModelCard) -> str:
    return card.advice.compose


def _describe_advice(card: ModelCard) -> str:
    return card.advice.describe


GENERATE_IMAGE = Tool(
    name="generate_image",
    command="generate",
    title="Generate an image",
    description=(
        "Make one or more new images from a text prompt. Use it when there is no input image; to change an "
        "image use edit_image, to combine images use compose_from_references. Only the prompt is needed; the "
        "defaults are good."
    ),
    request=GenerateImage,
    result=ImagesResult,
    run=partial(_images, "generate_image"),
    defaults=_generate_defaults,
    advice=_generate_advice,
)

EDIT_IMAGE = Tool(
    name="edit_image",
    command="edit",
    title="Edit an image",
    description=(
        "Change one image as an instruction says and keep the rest of it: recolour, add, remove or replace "
        "something, change the style or the background. Gives a new image of the same size; the input stays "
        "as it was. Make one change per call and edit the result again. To keep everything outside a part "
        "exactly as it is, give that part as a region or a mask."
    ),
    request=EditImage,
    result=ImagesResult,
    run=partial(_images, "edit_image"),
    defaults=_edit_defaults,
    advice=_edit_advice,
)

COMPOSE_FROM_REFERENCES = Tool(
    name="compose_from_references",
    command="compose",
    title="Compose an image from references",
    description=(
        "Make a new image out of one to five reference images: put their subjects into one scene, place an "
        "object into a setting, carry a character over. Say in the instruction what comes from which, by "
        'order: "the cat of the first image on the sofa of the second image". To change a single image and '
        "keep the rest of it, use edit_image."
    ),
    request=ComposeFromReferences,
    result=ImagesResult,
    run=partial(_images, "compose_from_references"),
    defaults=_compose_defaults,
    advice=_compose_advice,
)

DESCRIBE_IMAGE = Tool(
    name="describe_image",
    command="describe",
    title="Describe images",
    description=(
        "Ask the local model about one to five images and get text: what is where, how many, which colour, "
        "how two images differ. The answer is the model's reading, and may be wrong; to look at an image "
        "yourself, use view_image."
    ),
    request=DescribeImage,
    result=TextResult,
    run=partial(_text, "describe_image"),
    defaults=_describe_defaults,
    advice=_describe_advice,
)
