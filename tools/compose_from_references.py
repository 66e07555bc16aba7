"""A new picture from several."""

from omnigen2.checkpoints.card import ModelCard
from omnigen2.params import ReferenceSampling
from tools.base import Context, Tool
from tools.fields import ImageRequest, ImagesIn, Instructed
from tools.recipe import make_recipe
from tools.results import ImagesResult
from tools.studio import make_images


class ComposeFromReferences(ImageRequest, ReferenceSampling, Instructed, ImagesIn):
    """What to make of which images, and how."""


async def run(request: ComposeFromReferences, context: Context) -> ImagesResult:
    """Decide what is open, then make the pictures."""
    return await make_images(await make_recipe(TOOL.name, request, context), context)


def defaults(card: ModelCard) -> ReferenceSampling:
    """What the model decides here."""
    return card.defaults.compose


TOOL = Tool(
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
    run=run,
    defaults=defaults,
    open_world=True,
)
