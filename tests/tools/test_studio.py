"""Generate, edit, compose, describe through a real model: effective values, repeats, references, limits."""

import base64
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from omnigen2.checkpoints.card import Limits, published_card
from omnigen2.params import MAX_SEED
from omnigen2.task import NUMERICS_VERSION
from storage.errors import ImageNotFound, InvalidArgument
from tests.tools.studio import BY_NAME, Studio
from tools.base import ToolError, short_id
from tools.recipe import identity

pytestmark = pytest.mark.anyio
QUICK: dict[str, Any] = {"steps": 2, "width": 32, "height": 32, "seed": 7}


def picture(width: int = 32, height: int = 32, seed: int = 0) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def test_only_what_is_made_in_another_way_has_numerics_of_its_own() -> None:
    card = published_card("m")
    large = card.model_copy(update={"limits": Limits.model_construct(max_pixels=2048 * 2048)})
    exact = card.defaults_for(0)
    fast = exact.model_copy(update={"speed": "fast"})
    assert identity(card, exact)["numerics"] == identity(card, card.defaults.describe)["numerics"]
    assert identity(card, exact)["numerics"] == str(NUMERICS_VERSION)
    own = {
        identity(*given)["numerics"] for given in ((card, exact), (card, fast), (large, exact), (large, fast))
    }
    assert len(own) == 4


async def test_a_result_says_what_was_made_and_every_effective_value(studio: Studio) -> None:
    result = await studio.call("generate_image", prompt="a red circle", **QUICK)
    (image,) = result.images
    assert (image.width, image.height, image.seed, image.mime_type) == (32, 32, 7, "image/png")
    assert image.uri == f"image://sha256/{image.id.removeprefix('sha256:')}"
    assert image.bytes == len(studio.store.read(image.id))
    defaults = studio.card(None).defaults.text_to_image.model_dump(mode="json", exclude_none=True)
    del defaults["image_guidance_scale"]  # no parameter of this tool
    assert result.parameters == defaults | {"prompt": "a red circle"} | QUICK
    assert (result.status, result.cached, result.job_id) == ("done", False, "now")
    assert result.model == studio.engine.card.id
    assert result.timings.denoise_ms > 0 and result.timings.queued_ms == 1.0
    assert result.timings.total_ms >= result.timings.denoise_ms
    assert result.linked() == result.previewed() == (image.id,)
    assert f"id {short_id(image.id)}, seed 7" in result.line()
    assert type(result).model_validate_json(result.model_dump_json()) == result


async def test_the_record_tells_the_whole_story(studio: Studio) -> None:
    before = datetime.now(UTC)
    result = await studio.call("generate_image", prompt="a red circle", num_images=2, **QUICK)
    record = studio.store.get_record(result.record)
    assert [str(output) for output in record.outputs] == [image.id for image in result.images]
    assert (record.tool, record.seed, record.principal) == ("generate_image", 7, "tester")
    assert record.parameters | {"seed": 7} == result.parameters
    assert record.model is not None and record.model.id == studio.engine.card.id
    assert record.timings is not None and set(record.timings) == set(type(result.timings).model_fields)
    assert before <= record.time <= datetime.now(UTC)


async def test_an_equal_request_with_a_seed_is_answered_from_the_store(studio: Studio) -> None:
    first = await studio.call("generate_image", prompt="a red circle", **QUICK)
    again = await studio.call("generate_image", prompt="a red circle", num_images=1, background=True, **QUICK)
    assert again.cached and again.job_id is None and again.status == "done"
    assert (again.images, again.record, again.parameters) == (first.images, first.record, first.parameters)
    assert len(studio.computed) == 1
    assert "from the store" in again.line()


async def test_equal_requests_under_way_at_once_have_one_answer(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the model gives other pixels the second time, as a GPU may in other company."""
    whole, tints, results = studio.engine._pipeline.finish, ["red", "blue", "green"], []

    def finish(*given: Any) -> list[Image.Image]:
        return [Image.new("RGB", picture.size, tints.pop()) for picture in whole(*given)]

    async def ask() -> None:
        results.append(await studio.call("generate_image", prompt="a red circle", **QUICK))

    monkeypatch.setattr(studio.engine._pipeline, "finish", finish)
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(ask)
    assert len(studio.computed) == 3  # none of them could be answered from the store when it began
    assert len({result.images[0].id for result in results}) == 1
    assert len({result.record for result in results}) == 1
    again = await studio.call("generate_image", prompt="a red circle", **QUICK)
    assert again.cached and again.images == results[0].images


@pytest.mark.parametrize("change", [{"seed": 8}, {"steps": 3}, {"prompt": "a circle"}, {"num_images": 2}])
async def test_a_request_that_differs_is_computed(studio: Studio, change: dict[str, Any]) -> None:
    await studio.call("generate_image", prompt="a red circle", **QUICK)
    other = await studio.call("generate_image", **{"prompt": "a red circle"} | QUICK | change)
    assert not other.cached


async def test_a_seed_that_is_not_given_is_drawn_and_told(studio: Studio) -> None:
    open_seed = {name: value for name, value in QUICK.items() if name != "seed"}
    first = await studio.call("generate_image", prompt="a star", **open_seed)
    second = await studio.call("generate_image", prompt="a star", **open_seed)
    assert first.parameters["seed"] != second.parameters["seed"] and not second.cached
    again = await studio.call("generate_image", **first.parameters)
    assert again.cached and again.images == first.images


async def test_each_pictures_seed_makes_it_alone(studio: Studio) -> None:
    three = await studio.call("generate_image", prompt="a star", num_images=3, **QUICK)
    assert [image.seed for image in three.images] == [7, 8, 9]
    alone = await studio.call("generate_image", prompt="a star", **QUICK | {"seed": 9})
    together, single = (
        np.asarray(studio.store.open(image.id), int) for image in (three.images[2], alone.images[0])
    )
    assert np.abs(together - single).max() <= 1  # float32 sums depend on the company by a rounding


@pytest.mark.parametrize(
    ("size", "asked", "made"),
    [
        ((48, 32), {}, (48, 32)),
        ((50, 37), {}, (50, 37)),
        ((64, 32), {"width": 32}, (32, 16)),
        ((64, 32), {"height": 64}, (128, 64)),
        ((48, 32), {"width": 32, "height": 32}, (32, 32)),
        ((64, 18), {"width": 32}, (32, 16)),
    ],
)
async def test_an_edit_has_its_inputs_size_unless_another_is_asked_for(
    studio: Studio, size: tuple[int, int], asked: dict[str, int], made: tuple[int, int]
) -> None:
    image = studio.store.put(picture(*size))
    result = await studio.call(
        "edit_image", image=str(image.id), instruction="brighter", steps=1, seed=1, **asked
    )
    assert (result.images[0].width, result.images[0].height) == made
    assert (result.parameters["width"], result.parameters["height"]) == made


async def test_every_way_to_name_an_input_is_the_same_request(studio: Studio) -> None:
    file = studio.folder / "a.png"
    picture().save(file)
    image = studio.store.put(picture())
    data = base64.b64encode(file.read_bytes()).decode()
    spellings = [str(image.id), image.id.hex[:8], image.id.uri, f"data:image/png;base64,{data}", "a.png"]
    results = [
        await studio.call("edit_image", image=spelling, instruction="brighter", **QUICK)
        for spelling in [*spellings, file.as_uri()]
    ]
    assert [result.cached for result in results] == [False] + [True] * 5
    assert {result.parameters["image"] for result in results} == {str(image.id)}


async def test_a_composition_keeps_the_order_of_its_references(studio: Studio) -> None:
    one, two = (str(studio.store.put(picture(seed=seed)).id) for seed in (1, 2))
    forth = await studio.call("compose_from_references", images=[one, two], instruction="both", **QUICK)
    back = await studio.call("compose_from_references", images=[two, one], instruction="both", **QUICK)
    assert not back.cached
    assert [str(x) for x in studio.store.get_record(forth.record).inputs] == [one, two]
    assert [str(x) for x in studio.store.get_record(back.record).inputs] == [two, one]


async def test_a_description_is_text_with_a_record_and_repeats_are_free(studio: Studio) -> None:
    image = str(studio.store.put(picture()).id)
    asked = {"images": [image], "question": "What is it?", "max_tokens": 3}
    first = await studio.call("describe_image", **asked)
    again = await studio.call("describe_image", **asked, seed=5)
    assert first.text == studio.store.get_record(first.record).text
    assert first.timings.write_ms > 0 and first.linked() == ()
    assert again.cached and again.text == first.text and "seed" not in again.parameters
    varied = await studio.call("describe_image", **asked, temperature=1.0)
    other = await studio.call("describe_image", **asked, temperature=1.0)
    assert not other.cached and varied.parameters["seed"] != other.parameters["seed"]
    repeated = await studio.call("describe_image", **varied.parameters)
    assert repeated.cached and repeated.text == varied.text


async def test_what_the_model_remarks_reaches_the_caller_also_from_the_store(studio: Studio) -> None:
    words = "circle " * 1100
    first = await studio.call("generate_image", prompt=words, **QUICK)
    again = await studio.call("generate_image", prompt=words, **QUICK)
    assert "ignored" in first.notes[0] and first.notes[0] in first.summary()
    assert again.cached and again.notes == first.notes


async def test_what_was_changed_about_the_inputs_of_a_call_is_said_also_of_a_repeat(studio: Studio) -> None:
    frames = [picture(1100, 32, seed=seed) for seed in (1, 2)]
    frames[0].save(studio.folder / "two.gif", save_all=True, append_images=frames[1:])
    asked = {"instruction": "brighter", "steps": 1, "seed": 3, "cfg_range": (0.0, 0.0)}
    first = await studio.call("edit_image", image="two.gif", **asked)
    again = await studio.call("edit_image", image="two.gif", **asked)
    stored = await studio.call("edit_image", image=first.parameters["image"], **asked)
    queued = await studio.call("edit_image", image="two.gif", background=True, **asked | {"seed": 4})
    assert any("frame" in note for note in queued.notes)
    assert (first.images[0].width, first.images[0].height) == (1100, 32)
    assert any("frame" in note for note in first.notes)
    assert "The image was reduced from 1100x32 to 1024x16 for the model." in first.notes
    assert "The result was computed at 1088x32 and enlarged to 1100x32." in first.notes
    assert again.cached and set(again.notes) == set(first.notes)
    assert stored.cached and set(stored.notes) == {note for note in first.notes if "frame" not in note}


async def test_of_several_images_a_note_says_which(studio: Studio) -> None:
    clear = picture()
    clear.putalpha(Image.linear_gradient("L").resize((32, 32)))
    clear.save(studio.folder / "clear.png")
    picture(1100, 32).save(studio.folder / "long.png")
    images = ["clear.png", "long.png"]
    made = await studio.call("compose_from_references", images=images, instruction="both", **QUICK)
    assert made.notes == (
        "Image 1 has 32x32 pixels, Image 2 has 1100x32 pixels; "
        "OmniGen2 works best with 512 and more per side.",
        "Image 1 has transparent parts; they were put on white.",
        "Image 2 was reduced from 1100x32 to 1024x16 for the model.",
    )
    told = await studio.call("describe_image", images=images, question="what?", max_tokens=2, seed=1)
    assert told.notes[0].startswith("seed changed nothing") and told.notes[1] == made.notes[1]
    assert told.notes[2] == "Image 2 was reduced from 1100x32 to 1024x29 for the model."
    assert (await studio.call("describe_image", images=images, question="what?", max_tokens=2)).cached


async def test_a_parameter_without_effect_is_named(studio: Studio) -> None:
    asked = {"prompt": "a star", **QUICK}
    quiet = await studio.call("generate_image", **asked, text_guidance_scale=1.0)
    loud = await studio.call("generate_image", **asked, text_guidance_scale=1.0, negative_prompt="blur")
    assert quiet.notes == () and "negative_prompt changed nothing" in loud.notes[0]
    used = await studio.call("generate_image", **asked, negative_prompt="blur")
    assert used.notes == () and used.images[0].id != quiet.images[0].id


async def test_a_background_job_answers_at_once_and_is_followed_by_its_id(studio: Studio) -> None:
    studio.hold_jobs = True
    accepted = await studio.call("generate_image", prompt="a star", background=True, **QUICK)
    assert (accepted.status, accepted.images, accepted.record) == ("queued", [], None)
    assert accepted.parameters["seed"] == 7 and accepted.job_id in accepted.line()
    waiting = await studio.call("get_job", job_id=accepted.job_id)
    assert (waiting.status, waiting.result) == ("queued", None)
    done = await studio.call("get_job", job_id=accepted.job_id, wait_seconds=5)
    assert done.status == "done" and done.linked() == done.previewed() == done.result.linked()
    assert done.model_dump(mode="json")["result"]["images"][0]["seed"] == 7
    assert done.line() == f"Job {accepted.job_id} is done. {done.result.summary()}"


async def test_a_cancelled_job_stores_nothing(studio: Studio) -> None:
    studio.hold_jobs = True
    accepted = await studio.call("generate_image", prompt="a star", background=True, **QUICK)
    cancelled = await studio.call("cancel_job", job_id=accepted.job_id)
    assert cancelled.status == "cancelled" and cancelled.error.code == "cancelled"
    assert "cancelled" in cancelled.line()
    assert (await studio.call("list_images")).images == []


async def test_a_lora_is_part_of_the_recipe_by_its_content(studio: Studio) -> None:
    file = studio.folder / "style.safetensors"
    save_lora(studio, file, scale=0.0)
    asked = {"prompt": "a star", **QUICK}
    plain = await studio.call("generate_image", **asked)
    first = await studio.call("generate_image", **asked, lora="style.safetensors")
    again = await studio.call("generate_image", **asked, lora=str(studio.folder))
    assert not first.cached and again.cached
    assert first.images[0].id == plain.images[0].id  # an adapter of zeros changes nothing
    digest = sha256(file.read_bytes()).hexdigest()
    assert first.parameters["lora"] == [{"name": str(file), "weight": 1.0, "digest": digest}]
    as_recorded_before = await studio.call("generate_image", **asked, lora=f"{file}@sha256:{digest}")
    assert as_recorded_before.cached
    assert (await studio.call("generate_image", **first.parameters)).cached
    save_lora(studio, file, scale=1.0)
    with pytest.raises(ToolError, match=r"lora: .* is not the file with the SHA-256"):
        await studio.call("generate_image", **first.parameters)
    anew = await studio.call("generate_image", **asked, lora="style.safetensors")
    assert not anew.cached and anew.images[0].id != first.images[0].id
    assert anew.parameters["lora"] != first.parameters["lora"]


def save_lora(studio: Studio, file: Path, scale: float) -> None:
    """An adapter for one attention projection."""
    name = "layers.0.attn.to_q"
    out, into = studio.engine._pipeline.transformer.get_submodule(name).weight.shape  # type: ignore[union-attr]
    a, b = np.ones((2, int(into)), np.float32), np.full((int(out), 2), scale, np.float32)
    save_file({f"transformer.{name}.lora_A.weight": a, f"transformer.{name}.lora_B.weight": b}, file)


@pytest.mark.parametrize(
    ("tool", "arguments", "code", "words"),
    [
        ("generate_image", {"prompt": "x", "seed": MAX_SEED, "num_images": 2}, "invalid_argument", "seed: "),
        ("generate_image", {"prompt": "x", "model": "other"}, "invalid_argument", "model: "),
        (
            "generate_image",
            {"prompt": "x", "lora": "none.safetensors"},
            "invalid_argument",
            "lora: .* cannot be read",
        ),
        ("generate_image", {"prompt": "x", "lora": "."}, "invalid_argument", "lora: .* 0 safetensors"),
        ("generate_image", {"prompt": "x", "lora": "../../etc"}, "forbidden", "lora: "),
        ("edit_image", {"image": "../a.png", "instruction": "x"}, "forbidden", "image: "),
        ("edit_image", {"image": "http://a/b", "instruction": "x"}, "invalid_argument", "image: "),
        (
            "compose_from_references",
            {"images": ["s3://a/b"], "instruction": "x"},
            "invalid_argument",
            r"images\.0: ",
        ),
        ("get_job", {"job_id": "none"}, "invalid_argument", "job_id: "),
    ],
)
async def test_what_cannot_be_done_names_the_field(
    studio: Studio, tool: str, arguments: dict[str, Any], code: str, words: str
) -> None:
    with pytest.raises(ToolError, match=words) as caught:
        await studio.call(tool, **arguments)
    assert caught.value.code == code
    assert studio.computed == []


async def test_a_picture_larger_than_the_model_makes_is_refused(studio: Studio) -> None:
    limits = studio.engine.card.limits.model_copy(update={"max_side": 64, "max_references": 1})
    studio.card = lambda model: studio.engine.card.model_copy(update={"limits": limits})  # type: ignore[method-assign]
    with pytest.raises(ToolError, match="width: 80 pixels"):
        await studio.call("generate_image", prompt="x", width=80)
    image = str(studio.store.put(picture(160, 80)).id)
    with pytest.raises(ToolError, match="2 given"):
        await studio.call("compose_from_references", images=[image, image], instruction="x")
    edited = await studio.call("edit_image", image=image, instruction="x", steps=1)
    assert (edited.images[0].width, edited.images[0].height) == (64, 32)


async def test_errors_of_the_store_pass_through_as_they_are(studio: Studio) -> None:
    with pytest.raises(ImageNotFound):
        await studio.call("edit_image", image="sha256:" + "0" * 64, instruction="x")
    with pytest.raises(InvalidArgument, match="cursor"):
        await studio.call("list_images", cursor="?")
    assert studio.computed == []


@pytest.mark.parametrize(
    "arguments",
    [{"image_guidance_scale": 2}, {"prompt": "\ud800"}, {"text_guidance_scale": float("nan")}, {"model": ""}],
)
def test_what_no_record_could_hold_is_no_request(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        BY_NAME["generate_image"].request.model_validate({"prompt": "x"} | arguments)
