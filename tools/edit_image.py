"""A picture changed as told."""

from omnigen2.checkpoints.card import ModelCard
from omnigen2.params import ReferenceSampling
from tools.base import Context, Tool
from tools.fields import ImageIn, ImageRequest, Instructed
from tools.recipe import make_recipe
from tools.results import ImagesResult
from tools.studio import make_images


class EditImage(ImageRequest, ReferenceSampling, Instructed, ImageIn):
    """What to change in which image, and how."""


async def run(request: EditImage, context: Context) -> ImagesResult:
    """Decide what is open, then make the pictures."""
    return await make_images(await make_recipe(TOOL.name, request, context), context)


def defaults(card: ModelCard) -> ReferenceSampling:
    """What the model decides here; the size is the input's."""
    return card.defaults.edit


TOOL = Tool(
    name="edit_image",
    command="edit",
    title="Edit an image",
    description=(
        "Change one image as an instruction says and keep the rest of it: recolour, add, remove or replace "
        "something, change the style or the background. Gives a new image of the same size; the input stays "
        "as it was. Make one change per call and edit the result again: every image keeps its history."
    ),
    request=EditImage,
    result=ImagesResult,
    run=run,
    defaults=defaults,
    open_world=True,
)
