"""Copies of stored images as files: of another size, in the formats of the web, with their history inside."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from PIL import Image

from storage import codec
from storage.budget import PixelBudget
from storage.codec import Limits
from storage.decoder import PIXELS_AT_ONCE
from storage.digest import Digest
from storage.embedding import embed, metadata
from storage.errors import InvalidArgument
from storage.records import Record
from storage.results import StoredImage
from storage.transfer import history_of, with_history

if TYPE_CHECKING:
    from storage.view import StoreView

Fit = Literal["contain", "cover", "stretch"]
Colour = tuple[int, int, int]
Size = tuple[int, int]

WHITE: Colour = (255, 255, 255)
AT_ONCE = 2
"""Number of small copies made at once, and of large ones."""
_LARGE = 4_000_000
"""Pixels from which on AVIF is encoded faster and larger."""
_budget = PixelBudget(PIXELS_AT_ONCE, AT_ONCE)


@dataclass(frozen=True, slots=True)
class Format:
    """A format of image files."""

    name: str
    """As Pillow has it."""
    mime_type: str
    transparent: bool
    """Whether it has transparency."""
    side: int
    """Longest side in pixels."""
    quality: int | None = None
    """By default; None: it keeps every pixel."""
    xmp: int | None = None
    """Maximum number of bytes of XMP; None: no limit."""


_JPEG = Format("JPEG", "image/jpeg", False, 65_500, 90, 65_502)
_ALL = {
    ".png": Format("PNG", codec.MIME_TYPE, True, 1 << 24),
    ".jpg": _JPEG,
    ".jpeg": _JPEG,
    ".webp": Format("WEBP", "image/webp", True, 16_383, 90),
    ".avif": Format("AVIF", "image/avif", True, 65_536, 80),
}
_LOSSLESS_WEBP = 100
"""Quality at which WebP keeps every pixel."""


def formats() -> dict[str, Format]:
    """The formats that this build of Pillow writes, by the endings of their files."""
    Image.init()
    return {ending: kind for ending, kind in _ALL.items() if kind.name in Image.SAVE}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a copy will be."""

    kind: Format
    source: Size
    size: Size
    """Width and height of the copy in pixels."""
    fit: Fit
    quality: int | None
    background: Colour | None
    """Behind transparent parts; None keeps them transparent."""

    @property
    def resized(self) -> bool:
        """Whether it has another size than its source."""
        return self.size != self.source

    @property
    def lossless(self) -> bool:
        """Whether each pixel is kept, apart from its size."""
        return self.kind.quality is None or (self.kind.name == "WEBP" and self.quality == _LOSSLESS_WEBP)

    @property
    def inner(self) -> Size:
        """Size of the picture in the copy; smaller than the copy if there are bars beside it."""
        if self.fit != "contain" or not self.resized:
            return self.size
        (width, height), (most_across, most_down) = self.source, self.size
        scale = min(most_across / width, most_down / height)
        across, down = max(1, round(width * scale)), max(1, round(height * scale))
        return min(across, most_across), min(down, most_down)

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The part of the source that is shown: left, upper, right, lower."""
        width, height = self.source
        if self.fit != "cover" or not self.resized:
            return 0, 0, width, height
        scale = max(self.size[0] / width, self.size[1] / height)
        across, down = min(width, self.size[0] / scale), min(height, self.size[1] / scale)
        left, upper = (width - across) / 2, (height - down) / 2
        return left, upper, left + across, upper + down


def plan(
    image: StoredImage,
    kind: Format,
    limits: Limits,
    *,
    width: int | None = None,
    height: int | None = None,
    fit: Fit = "contain",
    quality: int | None = None,
    background: Colour | None = None,
) -> Plan:
    """What a copy of `image` will be. Of `width` and `height`, one alone keeps the proportions.

    With both, the copy has exactly that size: `contain` shows the whole picture between bars, `cover` cuts
    off what is over, `stretch` changes the proportions.

    Raises:
        InvalidArgument: it would be larger than `limits` or the format allows.
    """
    source = image.width, image.height
    size = (
        width or _along(height, image.height, image.width),
        height or _along(width, image.width, image.height),
    )
    if max(size) > kind.side or size[0] * size[1] > limits.pixels:
        raise InvalidArgument(
            f"width, height: the file would have {size[0]}x{size[1]} pixels; at most {limits.pixels:,} are "
            f"allowed, and {kind.side:,} a side in this format.",
            "Ask for a smaller size.",
        )
    behind = background or (None if kind.transparent else WHITE)
    if width is None or height is None:
        fit = "stretch"  # by less than a pixel
    return Plan(kind, source, size, fit, kind.quality and (quality or kind.quality), behind)


def make(store: "StoreView", image: Digest, wanted: Plan, step: Record) -> tuple[bytes, tuple[str, ...]]:
    """The bytes of a copy, and sentences on what differs from the image. `step` is the record of the copying.

    Raises:
        ImageNotFound, Corrupt: the image cannot be read.
        StoreBusy: too many copies are being made.
    """
    kind, pixels = wanted.kind, wanted.size[0] * wanted.size[1]
    if kind.quality is None and not wanted.resized and wanted.background is None:
        return with_history(store, image, ancestors=True), ()
    png = store.read(image)
    with _budget.taken(pixels + wanted.source[0] * wanted.source[1]):
        picture, notes = _drawn(codec.open_stored(png, store.limits), wanted)
        records = [step, *history_of(store, image, ancestors=True)]
        data, left = _encoded(picture, wanted, image, records)
    if left:
        notes.append(f"There was no room in the file for the {left} oldest steps of its history.")
    return data, tuple(notes)


def _along(given: int | None, other: int, side: int) -> int:
    """A side of the copy from the one that is given, which is `other` in the source."""
    return side if given is None else max(1, round(side * given / other))


def _drawn(image: Image.Image, wanted: Plan) -> tuple[Image.Image, list[str]]:
    """The pixels of a copy, and notes."""
    notes: list[str] = []
    if wanted.resized:
        image = image.resize(wanted.inner, Image.Resampling.LANCZOS, box=wanted.box)
        notes += _changes(wanted)
    if wanted.inner != wanted.size:
        filling = (*wanted.background, 255) if wanted.background else (0, 0, 0, 0)
        frame = Image.new("RGBA", wanted.size, filling)
        (width, height), (across, down) = wanted.size, wanted.inner
        frame.paste(image, ((width - across) // 2, (height - down) // 2))
        notes.append(f"The bars beside the picture are {_named(wanted.background)}.")
        image = frame if wanted.background is None or _is_clear(image) else frame.convert("RGB")
    if wanted.background and _is_clear(image):
        under = Image.new("RGBA", image.size, (*wanted.background, 255))
        image = Image.alpha_composite(under, image).convert("RGB")
        notes.append(f"Transparent parts are {_named(wanted.background)} in the file.")
    return image, notes


def _changes(wanted: Plan) -> list[str]:
    """Sentences on what another size does to the picture."""
    (width, height), (left, upper, right, lower) = wanted.source, wanted.box
    across, down = right - left, lower - upper
    by = wanted.inner[0] / across, wanted.inner[1] / down
    verb = "Enlarged" if max(by) > 1.001 else "Resized"
    notes = [f"{verb} from {width}x{height} to {wanted.inner[0]}x{wanted.inner[1]} pixels."]
    if verb == "Enlarged":
        notes.append("That adds no detail.")
    if (cut := 1 - across * down / (width * height)) > 0.001:
        notes.append(f"To fill the frame, {100 * cut:.0f} % of the picture were cut off at its sides.")
    if min(abs(across * by[1] - wanted.inner[0]), abs(down * by[0] - wanted.inner[1])) >= 1:
        notes.append("Its proportions changed.")
    return notes


def _encoded(
    image: Image.Image, wanted: Plan, source: Digest, records: Sequence[Record]
) -> tuple[bytes, int]:
    """The bytes of a file, and the number of records for which it has no room."""
    out = io.BytesIO()
    if wanted.kind.name == "PNG":
        return embed(codec.encode(image), source, records, copy=True), 0
    told = metadata(source, records, wanted.kind.xmp)
    image.save(out, wanted.kind.name, xmp=told.xmp, exif=told.exif, **_options(wanted))
    return out.getvalue(), told.left_out


def _options(wanted: Plan) -> dict[str, Any]:
    quality, fine = wanted.quality, (wanted.quality or 0) >= 90
    match wanted.kind.name:
        case "JPEG":
            return {"quality": quality, "subsampling": 0 if fine else 2, "optimize": True}
        case "WEBP":
            return {"quality": quality, "lossless": wanted.lossless, "exact": wanted.lossless}
        case _:
            speed = 8 if wanted.size[0] * wanted.size[1] > _LARGE else 6
            chroma = "4:4:4" if fine else "4:2:0"
            return {"quality": quality, "subsampling": chroma, "speed": speed, "max_threads": 1}


def _is_clear(image: Image.Image) -> bool:
    return image.mode == "RGBA"


def _named(colour: Colour | None) -> str:
    return "transparent" if colour is None else "#{:02x}{:02x}{:02x}".format(*colour)
