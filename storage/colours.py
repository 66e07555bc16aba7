"""Pixels of any mode as 8-bit sRGB, RGB or RGBA, and in words what was lost on the way.

Sources: ICC.1:2022 (colour profiles), PNG 3rd edition 4.3 and 11.3.2 (precedence of colour chunks, tRNS),
TIFF 6.0 (photometric interpretation).
"""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from PIL import Image, ImageChops, ImageCms

from storage.errors import ImageRejected

PROFILE_APPLIED = "The colours were converted from the file's colour profile to sRGB."
PROFILE_IGNORED = "The file's colour profile is broken or does not fit its pixels; it was ignored."
NO_CMYK_PROFILE = "The CMYK colours come without a profile; they were converted by the plain formula."
_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}
"""The signature of the colour space that a profile for pixels of this mode has."""
_HIGHEST = 0xFFFF


@dataclass(frozen=True, slots=True)
class Samples:
    """What the file says of its samples and Pillow does not."""

    bits: int = 8
    """Per channel, in the file."""
    white_is_zero: bool = False
    """Whether 16-bit grey is stored inverted (TIFF)."""
    low_bytes: Callable[[], Image.Image] | None = None
    """Reads the low bytes of 16-bit RGB, of which Pillow gives the high ones."""


def flattened(image: Image.Image, samples: Samples) -> tuple[Image.Image, list[str]]:
    """`image` as RGB, or RGBA if any pixel is not opaque, in sRGB; and notes. May return `image` itself.

    Raises:
        ImageRejected: its kind of pixel has no sRGB meaning.
    """
    notes: list[str] = []
    if samples.bits > 8:
        notes.append(f"The picture has {samples.bits} bits per channel; it was reduced to 8.")
    alpha = _alpha(image, samples)
    colours = _in_srgb(_opaque(image, samples), image.info, notes)
    if alpha is not None and alpha.getextrema() != (255, 255):
        if colours is image:
            colours = colours.copy()
        colours.putalpha(alpha)
    return colours, notes


def _opaque(image: Image.Image, samples: Samples) -> Image.Image:
    """The colours without transparency, 8 bits, in mode RGB, L, CMYK or LAB."""
    mode = image.mode
    if mode in ("RGB", "L", "CMYK", "LAB"):
        return image
    if mode.startswith("I"):
        return _reduced(image, samples)
    if mode == "F":
        raise ImageRejected("The image has floating-point pixels.", "Convert it to 8 bits per channel.")
    if mode in ("La", "RGBa"):
        image = image.convert(mode.upper())  # divides by alpha
    return image.convert("L" if mode in ("1", "LA", "La") else "RGB")


def _reduced(image: Image.Image, samples: Samples) -> Image.Image:
    """Grey of up to 16 bits, sometimes carried in 32, as L."""
    import numpy as np  # slow to import, and hardly ever needed

    deep = np.asarray(image)
    least, most = int(deep.min()), int(deep.max())
    if least < 0 or most > _HIGHEST:
        raise ImageRejected(
            f"The image has grey values from {least} to {most}; at most 16 bits are taken.",
            "Convert it to 8 bits per channel.",
        )
    highest = 0xFFF if samples.bits == 12 else _HIGHEST
    table = (np.arange(_HIGHEST + 1, dtype=np.int64).clip(max=highest) * 255 + highest // 2) // highest
    if samples.white_is_zero:
        table = 255 - table
    return Image.fromarray(table.astype(np.uint8)[deep])


def _alpha(image: Image.Image, samples: Samples) -> Image.Image | None:
    """How opaque each pixel is, as L; None if all are."""
    if image.mode in ("RGBA", "LA", "RGBa", "La", "PA"):
        return image.getchannel(image.mode[-1])
    clear = image.info.get("transparency")
    if clear is None:
        return None
    if image.mode == "P":
        return image.convert("RGBA").getchannel("A")
    if image.mode.startswith("I"):
        import numpy as np

        return Image.fromarray(np.where(np.asarray(image) == clear, 0, 255).astype(np.uint8))
    if image.mode == "RGB" and samples.bits == 16 and samples.low_bytes:
        high = _differs(image, tuple(value >> 8 for value in clear))
        return ImageChops.lighter(high, _differs(samples.low_bytes(), tuple(value & 255 for value in clear)))
    if image.mode == "L" and isinstance(clear, int) and samples.bits < 8:
        clear = (clear & (1 << samples.bits) - 1) * 255 // ((1 << samples.bits) - 1)
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "RGB"):
        return None
    return _differs(image, (clear,) if isinstance(clear, int) else tuple(clear))


def _differs(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """255 where a pixel has another colour, 0 where it has this one."""
    found = Image.new("L", image.size, 0)
    for band, value in zip(image.split(), colour, strict=True):
        found = ImageChops.lighter(found, band.point([0 if at == value else 255 for at in range(256)]))
    return found


def _in_srgb(colours: Image.Image, info: Mapping[Any, Any], notes: list[str]) -> Image.Image:
    """`colours` as RGB by their profile, if there is one that can be applied."""
    if "icc_profile" in info:
        try:
            converted = _by_profile(colours, info["icc_profile"])  # None where Pillow could not unpack it
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.append(PROFILE_IGNORED)
        else:
            if converted is not None:
                notes.append(PROFILE_APPLIED)
                return converted
    elif colours.mode == "CMYK":
        notes.append(NO_CMYK_PROFILE)
    if colours.mode == "LAB":
        return cast(Image.Image, ImageCms.applyTransform(colours, _transform(_profile("LAB"), "LAB")))
    return colours if colours.mode == "RGB" else colours.convert("RGB")


def _by_profile(colours: Image.Image, icc: bytes) -> Image.Image | None:
    """`colours` converted to sRGB; None if the profile is sRGB itself. Raises what ImageCms does."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    space = str(cast(Any, profile).profile.xcolor_space)
    if colours.mode == "L" and space == _SPACES["RGB"]:  # grey pixels, described as the RGB they stand for
        colours = colours.convert("RGB")
    if space != _SPACES[colours.mode]:
        raise ValueError("a profile for other pixels")
    transform = _transform(profile, colours.mode)
    if colours.mode == "RGB" and _changes_nothing(transform):
        return None
    return cast(Image.Image, ImageCms.applyTransform(colours, transform))


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform from RGB to RGB moves no channel by more than one level, over a grid of colours."""
    levels = range(0, 256, 15)
    grid = Image.new("RGB", (len(levels) ** 2, len(levels)))
    grid.putdata([(red, green, blue) for blue in levels for green in levels for red in levels])
    after = cast(Image.Image, ImageCms.applyTransform(grid, transform))
    extremes = cast("tuple[tuple[int, int], ...]", ImageChops.difference(grid, after).getextrema())
    return all(most <= 1 for _, most in extremes)


def _transform(profile: ImageCms.ImageCmsProfile, mode: str) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(profile, _profile("sRGB"), mode, "RGB")


def _profile(name: str) -> ImageCms.ImageCmsProfile:
    create = cast("Callable[[str], Any]", vars(ImageCms)["createProfile"])  # untyped in Pillow
    return ImageCms.ImageCmsProfile(create(name))
