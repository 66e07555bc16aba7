"""A plugin with one tool: `mirror_image` turns a stored image into its mirror image."""

from collections.abc import Callable
from typing import Any, Literal

from anyio import to_thread
from PIL import Image, ImageOps

from server.hookspecs import hookimpl
from storage import StoredImage
from tools.base import Context, Result, Tool
from tools.fields import ImageIn
from tools.results import ImageInfo

FLIP: dict[str, Callable[[Image.Image], Image.Image]] = {
    "horizontal": ImageOps.mirror,
    "vertical": ImageOps.flip,
}


class MirrorImage(ImageIn):
    """Which image to mirror, and how. Inherits the parameter `image`, with its words."""

    axis: Literal["horizontal", "vertical"] = "horizontal"
    """`horizontal` swaps left and right, `vertical` swaps top and bottom."""


class MirrorResult(Result):
    """The new image. A result holds facts; previews and links are made from the ids it names."""

    image: ImageInfo

    def line(self) -> str:
        return f"Mirrored: {self.image.id}, {self.image.width}x{self.image.height}."

    def linked(self) -> tuple[str, ...]:
        return (self.image.id,)

    def previewed(self) -> tuple[str, ...]:
        return self.linked()


async def mirror(request: MirrorImage, context: Context) -> MirrorResult:
    """Resolve the reference, then do the work in a thread: nothing may block the event loop."""
    source = await context.resolve(request.image, "image")
    return await to_thread.run_sync(_mirror, source, request, context)


def _mirror(source: StoredImage, request: MirrorImage, context: Context) -> MirrorResult:
    picture = FLIP[request.axis](context.store.open(source.id))
    record = context.store.put_made(
        [picture],
        tool=TOOL.name,
        parameters=request.model_dump(mode="json", exclude={"image"}),
        inputs=[source.id],
        principal=context.principal,
    )
    return MirrorResult(image=ImageInfo.of(context.store.get(record.outputs[0])))


TOOL = Tool(
    name="mirror_image",
    command="mirror",
    title="Mirror an image",
    description=(
        "Mirror one image, left to right or top to bottom, without the model. Gives a new image; the old one "
        "stays as it is."
    ),
    request=MirrorImage,
    result=MirrorResult,
    run=mirror,
    idempotent=True,
)


@hookimpl
def register_tools(register: Callable[[Tool[Any, Any]], None]) -> None:
    """Offer the tool; it appears over MCP, REST, on the command line and in the reference."""
    register(TOOL)
