"""A picture from words."""

from omnigen2.checkpoints.card import ModelCard
from omnigen2.params import Sampling
from tools.base import Context, Tool
from tools.fields import ImageRequest, Prompted
from tools.recipe import make_recipe
from tools.results import ImagesResult
from tools.studio import make_images


class GenerateImage(ImageRequest, Prompted):
    """What to make, and how."""


async def run(request: GenerateImage, context: Context) -> ImagesResult:
    """Decide what is open, then make the pictures."""
    return await make_images(await make_recipe(TOOL.name, request, context), context)


def defaults(card: ModelCard) -> Sampling:
    """What the model decides here."""
    return card.defaults.text_to_image


TOOL = Tool(
    name="generate_image",
    command="generate",
    title="Generate an image",
    description=(
        "Make one or more new images from a text prompt. Use it when there is no input image; to change an "
        "image use edit_image, to combine images use compose_from_references. Only the prompt is needed; the "
        "defaults are good. The result has an id for each image, to be named in later calls."
    ),
    request=GenerateImage,
    result=ImagesResult,
    run=run,
    defaults=defaults,
)
