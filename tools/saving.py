"""An image as a file: where a person, a project or a page needs it."""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Annotated

from anyio import to_thread
from PIL import ImageColor
from pydantic import Field, JsonValue

from storage import StoredImage
from storage.copies import Colour, Fit, Format, Plan, formats, make, plan
from storage.records import Record, make_record
from storage.safe_files import NotRegular
from tools.base import Context, NewFile, Result, Tool, ToolError, short_id
from tools.fields import ImageIn
from tools.references import shown
from tools.studio import code_version

SAVE = "save_image"
_Pixels = Annotated[int | None, Field(ge=1, le=16_384)]


class SaveImage(ImageIn):
    """Which image to save, where and how."""

    path: str = Field(min_length=1, max_length=4096)
    """File to write, such as assets/logo.webp; the ending (png, jpg, webp, avif) says the format."""
    width: _Pixels = None
    """Pixels; without height, the proportions stay."""
    height: _Pixels = None
    """Pixels; without width, the proportions stay."""
    fit: Fit = "contain"
    """With both sides given: contain adds bars, cover cuts off what is over, stretch distorts."""
    quality: int | None = Field(default=None, ge=1, le=100)
    """1 to 100, for jpg, webp and avif; webp keeps every pixel at 100."""
    background: str | None = Field(default=None, min_length=1, max_length=40)
    """Colour of transparent parts and bars, such as white or #ff8800."""
    overwrite: bool = False
    """Replace the file if it exists; otherwise that is refused."""


class SaveResult(Result):
    """The file that was written."""

    path: str
    """Where it is, from the root of the file system."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    mime_type: str
    bytes: int
    """Size of the file."""
    image: str
    """Id of the image that was saved."""

    def line(self) -> str:
        size = f"{self.width}x{self.height}, {self.bytes:,} bytes"
        return f"Saved {short_id(self.image)} as {self.path}: {self.mime_type}, {size}."


async def save_image(request: SaveImage, context: Context) -> SaveResult:
    """Find out whether the file can be written, look up the image, and write the file."""
    kind, background = _format(request.path), _colour(request.background)
    await to_thread.run_sync(_check, request, context)
    image = await context.resolve(request.image, "image")
    wanted = plan(
        image,
        kind,
        context.store.limits,
        width=request.width,
        height=request.height,
        fit=request.fit,
        quality=request.quality,
        background=background,
    )
    return await to_thread.run_sync(partial(_save, image, wanted, request, context))


def _format(path: str) -> Format:
    """The format of a file by its ending."""
    if not path.isprintable():
        message = f"path: {shown(path)} has characters that cannot be shown."
        raise ToolError("invalid_argument", message, "Leave them out.")
    known, ending = formats(), Path(path).suffix.lower()
    if ending not in known or path.endswith("/"):
        said = f"ends in {ending[:20]}" if ending else "has no ending"
        raise ToolError(
            "invalid_argument",
            f"path: {shown(path)} {said}; files are written as {', '.join(known)}.",
            "Give a path such as picture.png: the ending says the format.",
        )
    return known[ending]


def _colour(text: str | None) -> Colour | None:
    if text is None:
        return None
    try:
        red, green, blue, *alpha = ImageColor.getrgb(text)
    except ValueError:
        alpha = [0]
        red = green = blue = 0
    if alpha not in ([], [255]):
        raise ToolError(
            "invalid_argument",
            f"background: {shown(text)} is no opaque colour.",
            "Give a name such as white, or #rrggbb; leave it out to keep transparent parts.",
        )
    return red, green, blue


def _check(request: SaveImage, context: Context) -> None:
    """Raise ToolError if the file cannot be written."""
    try:
        with _new_file(request, context):
            pass
    except OSError as error:
        raise _unwritable(request, error) from error


def _save(image: StoredImage, wanted: Plan, request: SaveImage, context: Context) -> SaveResult:
    data, notes = make(context.store, image.id, wanted, _step(image, wanted, context))
    try:
        with _new_file(request, context) as (path, write):
            write(data)
    except OSError as error:
        raise _unwritable(request, error) from error
    width, height = wanted.size
    return SaveResult(
        path=str(path),
        width=width,
        height=height,
        mime_type=wanted.kind.mime_type,
        bytes=len(data),
        image=str(image.id),
        notes=(*image.notes, *notes, *_losses(wanted, request)),
    )


def _step(image: StoredImage, wanted: Plan, context: Context) -> Record:
    """The record of the saving, for the history in the file. The store has no use for it."""
    asked: dict[str, JsonValue] = {
        "image": str(image.id),
        "format": wanted.kind.name.lower(),
        "width": wanted.size[0],
        "height": wanted.size[1],
        "fit": wanted.fit,
        "quality": wanted.quality,
        "background": wanted.background and "#{:02x}{:02x}{:02x}".format(*wanted.background),
    }
    given = {name: value for name, value in asked.items() if value is not None}
    who, code = context.principal, code_version()
    return make_record(tool=SAVE, parameters=given, inputs=[image.id], principal=who, code=code)


def _losses(wanted: Plan, request: SaveImage) -> tuple[str, ...]:
    """Notes on what the format does to the pixels, and to the request."""
    if wanted.kind.quality is None:
        return () if request.quality is None else ("quality was ignored: png keeps every pixel.",)
    if wanted.lossless:
        return ()
    how = f"{wanted.kind.name.lower()}, quality {wanted.quality}"
    return (f"The file is lossy ({how}); the stored image stays as it is.",)


def _new_file(request: SaveImage, context: Context) -> AbstractContextManager[NewFile]:
    path = str(Path(request.path).expanduser()) if request.path.startswith("~/") else request.path
    return context.new_file(path, "path", replace=request.overwrite)


def _unwritable(request: SaveImage, error: OSError) -> ToolError:
    """What keeps a file from being written, in words."""
    path = Path(request.path)
    advice = "Choose another path."
    match error:
        case FileExistsError():
            reason, advice = "exists already", "Choose another path, or set overwrite to replace it."
        case FileNotFoundError():
            reason = f"cannot be written: there is no folder {shown(str(path.parent))}"
            advice = "Make the folder first, or choose another path; no folder is made for you."
        case NotRegular():
            reason = "is not a regular file"
        case _:
            reason = f"cannot be written: {error.strerror or type(error).__name__}"
    return ToolError("invalid_argument", f"path: {shown(request.path)} {reason}.", advice)


SAVE_IMAGE = Tool(
    name=SAVE,
    command="save",
    title="Save an image",
    description=(
        "Write a stored image to a file of the person's project or page: in the size and format that is "
        "needed, with its history inside. Use it when somebody wants a file; the image itself stays stored."
    ),
    request=SaveImage,
    result=SaveResult,
    run=save_image,
    destructive=True,
)
"""Not for reading only: it may replace a file, if it is told to."""
