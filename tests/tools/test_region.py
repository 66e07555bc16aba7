"""Edits that are held to a part of their image: pixels outside, soft borders, sizes, records, repeats."""

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.tools.studio import BY_NAME, Studio
from tools.base import ToolError
from tools.region import softened

pytestmark = pytest.mark.anyio
EDIT: dict[str, Any] = {"instruction": "make it blue", "steps": 2, "seed": 7}


def picture(width: int = 64, height: int = 48, mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(1).integers(0, 255, (height, width, len(mode)), dtype=np.uint8)
    return Image.fromarray(noise, mode)


def mask(opaque: bool, size: tuple[int, int] = (64, 48)) -> Image.Image:
    """A mask of the ellipse from (8, 8) to (40, 32)."""
    drawn = Image.new("L", size)
    ImageDraw.Draw(drawn).ellipse((8, 8, 40, 32), fill=255)
    if opaque:
        return drawn.convert("RGB")
    whole = Image.new("RGBA", size)
    whole.putalpha(drawn.point(lambda value: 255 - value))
    return whole


async def plain(studio: Studio, image: str, **more: Any) -> np.ndarray[Any, Any]:
    made = await studio.call("edit_image", image=image, **EDIT, **more)
    return np.asarray(studio.store.open(made.images[0].id))


@pytest.mark.parametrize("kind", ["region", "opaque mask", "transparent mask"])
async def test_outside_the_part_pixels_are_the_inputs_and_inside_the_edits(studio: Studio, kind: str) -> None:
    original = picture()
    image = str(studio.store.put(original).id)
    inside = np.zeros((48, 64), bool)
    if kind == "region":
        part: dict[str, Any] = {"region": [8, 4, 40, 30]}
        inside[4:34, 8:48] = True
    else:
        part = {"mask": str(studio.store.put(mask(kind.startswith("opaque"))).id)}
        inside = np.asarray(mask(opaque=True))[..., 0] > 0
    made = await studio.call("edit_image", image=image, **EDIT, **part)
    pixels = np.asarray(studio.store.open(made.images[0].id))
    before, edited = np.asarray(original), await plain(studio, image)
    assert (pixels[~inside] == before[~inside]).all()
    centre = (slice(16, 24), slice(20, 28))
    assert (pixels[centre] == edited[centre]).all() and (pixels[centre] != before[centre]).any()
    assert any("soft border of 1 pixels" in note and note.endswith("input's.") for note in made.notes)


async def test_the_record_has_the_part_and_repeats_it(studio: Studio) -> None:
    image, part = studio.store.put(picture()), studio.store.put(mask(opaque=False))
    first = await studio.call("edit_image", image=str(image.id), mask=part.id.hex[:8], **EDIT)
    assert first.parameters["mask"] == str(part.id)
    record = studio.store.get_record(first.record)
    assert record.inputs == (image.id, part.id)  # so neither is collected before its result
    assert record.notes and "only the masked part" in record.notes[-1]
    again = await studio.call("edit_image", **first.parameters)
    assert again.cached and again.images == first.images and again.notes == first.notes
    other = await studio.call("edit_image", image=str(image.id), region=[0, 0, 9, 9], **EDIT)
    assert not other.cached and other.parameters["region"] == [0, 0, 9, 9]


async def test_another_size_scales_the_input_and_says_so(studio: Studio) -> None:
    image = studio.store.put(picture())
    made = await studio.call("edit_image", image=str(image.id), region=[0, 0, 32, 48], width=128, **EDIT)
    pixels = studio.store.open(made.images[0].id)
    assert pixels.size == (128, 96)
    scaled = np.asarray(picture().resize((128, 96), Image.Resampling.LANCZOS))
    assert (np.asarray(pixels)[:, 64:] == scaled[:, 64:]).all()
    assert any(note.endswith("the input's, scaled from 64x48 to 128x96.") for note in made.notes)


async def test_transparency_outside_the_part_is_kept(studio: Studio) -> None:
    original = picture(mode="RGBA")
    image = studio.store.put(original)
    made = await studio.call("edit_image", image=str(image.id), region=[0, 0, 20, 20], **EDIT)
    pixels = np.asarray(studio.store.open(made.images[0].id))
    assert (pixels[20:] == np.asarray(original)[20:]).all() and (pixels[:16, :16, 3] == 255).all()


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"region": [0, 0, 65, 10]}, "region: .* the image has 64x48 pixels"),
        ({"region": [0, 0, 0, 10]}, "region: "),
        ({"mask": mask(True, (32, 32))}, "mask: it has 32x32 pixels; the image has 64x48"),
        ({"mask": Image.new("RGB", (64, 48))}, "mask: nothing in it is transparent or white"),
        ({"mask": mask(True), "region": [0, 0, 9, 9]}, "region: given together with a mask"),
    ],
)
async def test_a_part_that_does_not_fit_is_refused_before_the_model_works(
    studio: Studio, part: dict[str, Any], words: str
) -> None:
    image = studio.store.put(picture())
    given = {
        name: str(studio.store.put(value).id) if isinstance(value, Image.Image) else value
        for name, value in part.items()
    }
    with pytest.raises(ToolError, match=words) as caught:
        await studio.call("edit_image", image=str(image.id), **EDIT, **given)
    assert caught.value.code == "invalid_argument" and caught.value.advice
    assert studio.computed == []


def test_a_border_rises_inside_and_thin_places_are_taken_over_whole() -> None:
    part = np.zeros((40, 60), np.uint8)
    part[10:30, 20:60] = 1  # to the edge of the image
    part[5, :] = 1  # a line
    weights = softened(part, 4)
    assert (weights[part == 0] == 0).all() and (weights[part == 1] > 0).all()
    assert list(weights[20, 20:25]) == [63, 127, 191, 255, 255] and weights[20, 59] == 255
    assert (weights[5] == 255).all()


def test_both_tools_with_a_region_mean_the_same_by_it() -> None:
    schemas = [BY_NAME[name].request.model_json_schema() for name in ("edit_image", "view_image")]
    first, second = ({**schema["properties"]["region"], "description": ""} for schema in schemas)
    assert first == second
