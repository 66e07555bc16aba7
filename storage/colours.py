"""Converts pixels of any Pillow mode to 8-bit sRGB, and reports what was lost.

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
NO_CMYK_PROFILE = "The CMYK colours have no profile; they were converted without colour management."
_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}
"""ICC colour space signature of profiles for each mode."""
_HIGHEST = 0xFFFF


@dataclass(frozen=True, slots=True)
class Samples:
    """Facts on the samples in the file that Pillow does not report."""

    bits: int = 8
    """Bits per channel in the file."""
    white_is_zero: bool = False
    """Whether 16-bit grey is inverted (TIFF WhiteIsZero)."""
    low_bytes: Callable[[], Image.Image] | None = None
    """Returns the low bytes of 16-bit RGB; Pillow decodes only the high ones."""


def flattened(image: Image.Image, samples: Samples) -> tuple[Image.Image, list[str]]:
    """`image` in sRGB as RGB, or RGBA if any pixel is not opaque, and notes. May return `image` itself.

    Raises:
        ImageRejected: its pixel format cannot be converted to sRGB.
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
    """The colour channels without alpha, 8 bits, in mode RGB, L, CMYK or LAB."""
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
    """Grey of up to 16 bits, possibly in 32-bit samples, as L."""
    import numpy as np  # slow to import, and rarely needed

    deep = np.asarray(image)
    least, most = int(deep.min()), int(deep.max())
    if least < 0 or most > _HIGHEST:
        raise ImageRejected(
            f"The image has grey values from {least} to {most}; at most 16 bits are supported.",
            "Convert it to 8 bits per channel.",
        )
    highest = 0xFFF if samples.bits == 12 else _HIGHEST
    table = (np.arange(_HIGHEST + 1, dtype=np.int64).clip(max=highest) * 255 + highest // 2) // highest
    if samples.white_is_zero:
        table = 255 - table
    return Image.fromarray(table.astype(np.uint8)[deep])


def _alpha(image: Image.Image, samples: Samples) -> Image.Image | None:
    """The alpha channel as L; None if there is none."""
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
    """A mask in mode L: 0 where a pixel has `colour`, else 255."""
    found = Image.new("L", image.size, 0)
    for band, value in zip(image.split(), colour, strict=True):
        found = ImageChops.lighter(found, band.point([0 if at == value else 255 for at in range(256)]))
    return found


def _in_srgb(colours: Image.Image, info: Mapping[Any, Any], notes: list[str]) -> Image.Image:
    """`colours` as RGB, by their ICC profile if it can be applied."""
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
    """`colours` converted to sRGB; None if the profile is equivalent to sRGB. Raises as ImageCms."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    space = str(cast(Any, profile).profile.xcolor_space)
    if colours.mode == "L" and space == _SPACES["RGB"]:  # grey pixels with an RGB profile
        colours = colours.convert("RGB")
    if space != _SPACES[colours.mode]:
        raise ValueError("the profile is for another mode")
    transform = _transform(profile, colours.mode)
    if colours.mode == "RGB" and _changes_nothing(transform):
        return None
    return cast(Image.Image, ImageCms.applyTransform(colours, transform))


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether an RGB transform changes no channel by more than one level, tested on a grid of colours."""
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
