"""Words about pictures."""

from omnigen2.checkpoints.card import ModelCard
from omnigen2.params import Decoding
from tools.base import Context, Tool
from tools.fields import Asked, ImagesIn, TextRequest
from tools.recipe import make_recipe
from tools.results import TextResult
from tools.studio import write_text


class DescribeImage(TextRequest, Asked, ImagesIn):
    """What to find out about which images."""


async def run(request: DescribeImage, context: Context) -> TextResult:
    """Decide what is open, then write the text."""
    return await write_text(await make_recipe(TOOL.name, request, context), context)


def defaults(card: ModelCard) -> Decoding:
    """What the model decides here."""
    return card.defaults.describe


TOOL = Tool(
    name="describe_image",
    command="describe",
    title="Describe images",
    description=(
        "Ask the local model a question about one to five images and get text: a description, what is where, "
        "how many, which colour, how two images differ. The answer is the local model's reading, and may be "
        "wrong; to look at an image yourself, use view_image."
    ),
    request=DescribeImage,
    result=TextResult,
    run=run,
    defaults=defaults,
    open_world=True,
)
