"""The images there are: take one in, find some, look at one, ask how one came about."""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import ClassVar

from anyio import to_thread
from pydantic import AwareDatetime, Field, JsonValue

from storage import Ancestor, Record, StoredImage, StoreView
from tools.base import Context, Picture, Request, Result, Tool, short_id
from tools.fields import ImageIn, Region
from tools.references import names_stored, source_of
from tools.region import check_region
from tools.results import Facts, ImageInfo, effective

IMPORT = "import_image"
EXCERPT = 200
"""Characters of a prompt that a list repeats."""
IMAGE_ID = re.compile(r"sha256:[0-9a-f]{64}")
WORDS = ("prompt", "instruction")
"""Arguments that say what a picture is of."""
MAX_STEPS = 100
"""Most images of a lineage in one answer."""


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
        return f"Image {_sized(self.image)}{_named(self.label)}."

    def linked(self) -> tuple[str, ...]:
        return (self.image.id,)

    def previewed(self) -> tuple[str, ...]:
        return self.linked()


async def import_image(request: ImportImage, context: Context) -> ImportResult:
    """Store the image, label it, and remember where it came from."""
    image = await context.resolve(request.image, "image")
    return await to_thread.run_sync(partial(_take_in, image, request, context))


def _take_in(image: StoredImage, request: ImportImage, context: Context) -> ImportResult:
    store, notes = context.store, image.notes
    if names_stored(request.image, context.own_addresses):
        store.check([image.id])  # the answer says that it is here
    elif store.origin(image.id).record is None:
        source: dict[str, JsonValue] = {"source": source_of(request.image)}
        who = context.principal
        store.record(tool=IMPORT, parameters=source, outputs=[image.id], principal=who, notes=notes or None)
    if request.label is not None:
        image = store.label(image.id, request.label)
    return ImportResult(image=ImageInfo.of(image), label=image.label, notes=notes)


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
    open_world=True,
)


# -- list ---------------------------------------------------------------------------------------------


class ListImages(Request):
    """Which images to list."""

    query: str | None = Field(default=None, min_length=1, max_length=500)
    """Words that all occur in the prompt, instruction or label; in scripts without spaces, any part of it."""
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
        lines = [f"{_sized(image)}, {image.created:%Y-%m-%d %H:%M}{_about(image)}" for image in self.images]
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
    return f"{made}: {image.words}{_named(image.label)}" if image.words else f"{made}{_named(image.label)}"


def _sized(image: ImageInfo) -> str:
    return f"{short_id(image.id)}, {image.width}x{image.height}"


def _named(label: str | None) -> str:
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
        return f"Image {_sized(self.image)}: {part}."

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
    open_world=True,
)


# -- history ------------------------------------------------------------------------------------------


class ImageHistory(ImageIn):
    """Whose history."""


class Call(Facts):
    """A call that can be made as it stands."""

    tool: str
    arguments: dict[str, JsonValue]


class Step(Facts):
    """An image of the lineage, and how it came about."""

    image: ImageInfo
    label: str | None
    tool: str | None
    """The tool that made it; absent if it came from outside."""
    inputs: list[str]
    """Ids of the images it was made from."""
    model: str | None
    created: datetime
    record: str | None
    """Id of the provenance record."""
    replay: Call | None
    """Make this call to make the image again; absent if it came from outside."""


class History(Result):
    """The lineage of an image, oldest first; the image itself is last."""

    detailed: ClassVar[bool] = True

    steps: list[Step]

    def line(self) -> str:
        return "\n".join(f"{place}. {_line(step)}" for place, step in enumerate(self.steps, 1))

    def named(self) -> tuple[str, ...]:
        return tuple(step.image.id for step in self.steps)


async def image_history(request: ImageHistory, context: Context) -> History:
    """The nearest ancestors, `MAX_STEPS` at most, and the record that made each."""
    image = await context.resolve(request.image, "image")
    lineage = await to_thread.run_sync(context.store.lineage, image.id, MAX_STEPS)
    return History(steps=[_step(ancestor) for ancestor in lineage], notes=_left_out(lineage))


def _left_out(lineage: Sequence[Ancestor]) -> tuple[str, ...]:
    """Where a lineage goes on that was cut off."""
    listed = {ancestor.image.id for ancestor in lineage}
    inputs = [(step, digest) for step in lineage if step.record for digest in step.record.inputs]
    cut = next((step.image.id for step, digest in inputs if digest not in listed), None)
    if len(listed) < MAX_STEPS or cut is None:
        return ()
    return (
        f"Only the {len(listed)} nearest images are listed; for older ones ask for the history of {cut}.",
    )


def _step(ancestor: Ancestor) -> Step:
    record = ancestor.record
    return Step(
        image=ImageInfo.of(ancestor.image),
        label=ancestor.image.label,
        tool=record.tool if record else None,
        inputs=[str(digest) for digest in record.inputs] if record else [],
        model=record.model.id if record and record.model else None,
        created=record.time if record else ancestor.image.created,
        record=str(ancestor.record_id) if ancestor.record_id else None,
        replay=replay(record) if record else None,
    )


def replay(record: Record) -> Call | None:
    """The call that a record is the outcome of; None for an import, whose source may be gone."""
    if record.tool == IMPORT:
        return None
    model: dict[str, JsonValue] = {"model": record.model.id} if record.model else {}
    return Call(tool=record.tool, arguments=effective(record.parameters, record.seed) | model)


def _line(step: Step) -> str:
    made = f"{_sized(step.image)}{_named(step.label)}"
    if step.replay is None:
        return f"{made}, from outside"
    words_first = sorted(step.replay.arguments.items(), key=lambda one: one[0] not in WORDS)
    arguments = {name: _shortened(value) for name, value in words_first}
    return f"{made}, by {step.replay.tool} {json.dumps(arguments, ensure_ascii=False)}"


def _shortened(value: JsonValue) -> JsonValue:
    """An argument with short ids in the place of ids."""
    if isinstance(value, list):
        return [_shortened(one) for one in value]
    return short_id(value) if isinstance(value, str) and IMAGE_ID.fullmatch(value) else value


IMAGE_HISTORY = Tool(
    name="image_history",
    command="history",
    title="Image history",
    description=(
        "How an image came about: the images it was made from, oldest first, each with the tool, all "
        "parameters, the seed and the model, as a call that makes it again. Use it to repeat, to vary one "
        "step, or to say where a picture comes from."
    ),
    request=ImageHistory,
    result=History,
    run=image_history,
    read_only=True,
    idempotent=True,
    open_world=True,
)
