"""The images there are: take one in, find some, look at one."""

from datetime import datetime
from functools import partial

from anyio import to_thread
from pydantic import AwareDatetime, Field, JsonValue

from storage import StoredImage, StoreView
from storage.history import HISTORY, claims_in
from storage.records import IMPORT
from tools.base import Context, Picture, Request, Result, Tool, short_id
from tools.fields import ImageIn, Region
from tools.references import names_stored, source_of
from tools.region import check_region
from tools.results import ImageInfo

EXCERPT = 200
"""Characters of a prompt that a list repeats."""


# -- import -------------------------------------------------------------------------------------------


class ImportImage(ImageIn):
    """Which image to take in."""

    label: str | None = Field(default=None, min_length=1, max_length=500)
    """A name to find it by; a labelled image is never cleaned up."""


class ImportResult(Result):
    """The image, as it is stored."""

    image: ImageInfo
    label: str | None

    def line(self) -> str:
        return f"Image {sized(self.image)}{named(self.label)}."

    def linked(self) -> tuple[str, ...]:
        return (self.image.id,)

    def previewed(self) -> tuple[str, ...]:
        return self.linked()


async def import_image(request: ImportImage, context: Context) -> ImportResult:
    """Store the image, label it, and remember where it came from."""
    image = await context.resolve(request.image, "image")
    return await to_thread.run_sync(partial(_take_in, image, request, context))


def _take_in(image: StoredImage, request: ImportImage, context: Context) -> ImportResult:
    store, notes = context.store, [*image.notes]
    if names_stored(request.image, context.own_addresses):
        store.check([image.id])  # the answer says that it is here
    else:
        notes += _remember(image, request, context)
    if request.label is not None:
        image = store.label(image.id, request.label)
    return ImportResult(image=ImageInfo.of(image), label=image.label, notes=tuple(notes))


def _remember(image: StoredImage, request: ImportImage, context: Context) -> tuple[str, ...]:
    """Record where an image came from, unless it is known; notes on the history in its file."""
    origin = context.store.origin(image.id).record
    claims, left = claims_in(image.history)
    if origin is None:
        source: dict[str, JsonValue] = {"source": source_of(request.image)}
        told: dict[str, JsonValue] = {HISTORY: claims} if claims else {}
        who, notes = context.principal, (*image.notes, *left)
        context.store.record(
            tool=IMPORT,
            parameters=source | told,
            outputs=[image.id],
            principal=who,
            notes=notes or None,
        )
    elif claims and origin.parameters.get(HISTORY) != claims:
        return (*left, "The image was stored before; the history in the file was not added to its own.")
    return left


IMPORT_IMAGE = Tool(
    name=IMPORT,
    command="import",
    title="Import an image",
    description=(
        "Take an image into the store and get its id, size and a preview, optionally under a label. Not "
        "needed before an edit, as every tool takes files and addresses too; use it to keep an image, or to "
        "give one a name."
    ),
    request=ImportImage,
    result=ImportResult,
    run=import_image,
    idempotent=True,
)


# -- list ---------------------------------------------------------------------------------------------


class ListImages(Request):
    """Which images to list."""

    query: str | None = Field(default=None, min_length=1, max_length=500)
    """Words that all occur in the prompt, instruction or label."""
    tool: str | None = Field(default=None, min_length=1, max_length=100)
    """Only images made by the tool of this name."""
    since: AwareDatetime | None = None
    """Only images stored at or after this time (ISO 8601 with a time zone)."""
    limit: int = Field(default=20, ge=1, le=100)
    """Most images to give at once."""
    cursor: str | None = Field(default=None, min_length=1, max_length=100)
    """The cursor of an earlier answer: goes on after its last image."""


class ListedImage(ImageInfo):
    """An image, and what it is."""

    created: datetime
    label: str | None
    tool: str | None
    """The tool that made it."""
    words: str | None
    """Beginning of the prompt or instruction that made it."""


class ImageList(Result):
    """Images, newest first."""

    images: list[ListedImage]
    cursor: str | None
    """Give it back to get the images after these; absent at the end."""

    def line(self) -> str:
        if not self.images:
            return "No images."
        lines = [f"{sized(image)}, {image.created:%Y-%m-%d %H:%M}{_about(image)}" for image in self.images]
        more = [f"More: cursor {self.cursor}"] if self.cursor else []
        return "\n".join([*lines, *more])

    def named(self) -> tuple[str, ...]:
        return tuple(image.id for image in self.images)


async def list_images(request: ListImages, context: Context) -> ImageList:
    """Find images and say of each what it is."""
    return await to_thread.run_sync(_listed, request, context.store)


def _listed(request: ListImages, store: StoreView) -> ImageList:
    page = store.list(**dict(request))
    return ImageList(images=[_listed_image(store, image) for image in page.images], cursor=page.cursor)


def _listed_image(store: StoreView, image: StoredImage) -> ListedImage:
    record = store.origin(image.id).record
    return ListedImage.of(
        image,
        created=image.created,
        label=image.label,
        tool=record.tool if record else None,
        words=(record.searched_text() if record else "")[:EXCERPT] or None,
    )


def _about(image: ListedImage) -> str:
    made = f", {image.tool}" if image.tool else ""
    return f"{made}: {image.words}{named(image.label)}" if image.words else f"{made}{named(image.label)}"


def sized(image: ImageInfo) -> str:
    """An image in a text: its short id and its size."""
    return f"{short_id(image.id)}, {image.width}x{image.height}"


def named(label: str | None) -> str:
    """What a text adds for a label."""
    return f", labelled {label!r}" if label else ""


LIST_IMAGES = Tool(
    name="list_images",
    command="list",
    title="List images",
    description=(
        "Find images made or imported before, newest first, by words of their prompt or label, by the tool "
        "that made them, or by time. Gives ids and facts without previews; look at one with view_image."
    ),
    request=ListImages,
    result=ImageList,
    run=list_images,
    read_only=True,
    idempotent=True,
)


# -- view ---------------------------------------------------------------------------------------------


class ViewImage(ImageIn):
    """What to look at."""

    region: Region | None = None
    """Part to look at, [x, y, width, height] in pixels of the full image; leave it out to see all of it."""
    max_side: int = Field(default=512, ge=16, le=1024)
    """Longest side in pixels of what you see; take a region instead to see details."""


class ViewResult(Result):
    """A look at an image. The picture is beside this, not in it."""

    image: ImageInfo
    region: Region
    """The part that is shown, [x, y, width, height] in pixels of the full image."""
    shown: Picture = Field(exclude=True)

    def line(self) -> str:
        x, y, width, height = self.region
        whole = (width, height) == (self.image.width, self.image.height)
        part = "all of it" if whole else f"the {width}x{height} pixels at ({x}, {y})"
        return f"Image {sized(self.image)}: {part}."

    def pictures(self) -> tuple[Picture, ...]:
        return (self.shown,)


async def view_image(request: ViewImage, context: Context) -> ViewResult:
    """Cut the region out and make it small enough to look at."""
    image = await context.resolve(request.image, "image")
    region = request.region or (0, 0, image.width, image.height)
    check_region(region, image)
    look = partial(context.store.preview, image.id, request.max_side, region=region)
    shown = Picture(*await to_thread.run_sync(look))
    return ViewResult(image=ImageInfo.of(image), region=region, shown=shown)


VIEW_IMAGE = Tool(
    name="view_image",
    command="view",
    title="View an image",
    description=(
        "Look at an image yourself, small enough to see at once, or at a region of it in detail. Use it to "
        "check a result before you go on; for the local model's words about an image use describe_image."
    ),
    request=ViewImage,
    result=ViewResult,
    run=view_image,
    read_only=True,
    idempotent=True,
)
