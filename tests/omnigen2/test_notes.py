"""What is not used, or not made, as it was given is told; sizes are decided in one place."""

import pytest
import torch
from PIL import Image

import omnigen2
from omnigen2.checkpoints.card import NEGATIVE_PROMPT, published_card
from omnigen2.completion import complete_sampling
from omnigen2.engine.engine import Engine
from omnigen2.model import OmniGen2
from omnigen2.params import Decoding, ReferenceSampling
from omnigen2.task import ImageTask, TextTask


@pytest.fixture(scope="module")
def nano() -> OmniGen2:
    return omnigen2.load(device="cpu", dtype="float32")


def gradient(width: int, height: int) -> Image.Image:
    return Image.radial_gradient("L").resize((width, height)).convert("RGB")


@pytest.mark.parametrize(
    ("given", "asked", "made"),
    [
        ((384, 96), (None, None), (384, 96)),
        ((100, 75), (None, None), (100, 75)),
        ((1200, 900), (None, None), (1024, 768)),
        ((384, 96), (64, None), (64, 16)),
        ((96, 384), (None, 64), (16, 64)),
        ((384, 96), (64, 64), (64, 64)),
    ],
)
def test_library_engine_and_tools_make_an_edit_of_one_size(
    nano: OmniGen2, given: tuple[int, int], asked: tuple[int | None, int | None], made: tuple[int, int]
) -> None:
    width, height = asked
    asked_for = {"width": width, "height": height, "steps": 1, "seed": 1}
    edited = nano.generate("make the circle red", [gradient(*given)], **asked_for)
    assert edited[0].size == made
    sampling = complete_sampling(ReferenceSampling(**asked_for), [given], nano.card).params
    assert (sampling.width, sampling.height) == made
    engine = Engine(nano)
    try:
        task = ImageTask("make the circle red", (gradient(*given),), sampling)
        assert engine.submit(task).future.result(60).pictures[0].tobytes() == edited[0].tobytes()
    finally:
        engine.close()


def test_a_size_other_than_the_inputs_is_explained(nano: OmniGen2) -> None:
    edited = nano.generate("make the circle red", [gradient(1200, 900)], steps=1)
    assert edited.notes == (
        "The image has 1200x900 pixels, and the result 1024x768: a side may have at most 1024.",
        "The image was reduced from 1200x900 to 192x144 for the model.",
        "The result was computed at 208x160 and enlarged to 1024x768.",
    )
    with pytest.raises(ValueError, match="height: 2000 pixels asked for; this model makes at most 1024"):
        nano.generate("a circle", height=2000)


def test_a_picture_that_is_used_and_made_as_it_is_has_no_notes(nano: OmniGen2) -> None:
    opaque = gradient(96, 64)
    opaque.putalpha(255)
    assert nano.generate("make the circle red", [opaque], steps=1).notes == ()
    assert nano.generate("a red circle", steps=1).notes == ()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_and_frames_are_told(nano: OmniGen2, mode: str) -> None:
    clear = gradient(64, 64).convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize((64, 64)))
    image = clear.convert(mode)
    if mode == "P":
        image.info["transparency"] = 0
    made = nano.generate("make the circle red", [image, gradient(64, 64)], steps=1)
    assert made.notes == ("Image 1 has transparent parts; they were put on white.",)


def test_a_negative_prompt_that_is_cut_or_not_used_is_told(nano: OmniGen2) -> None:
    cut = nano.generate("a circle", negative_prompt="red star " * 400, steps=1)
    assert "The negative prompt was longer than 256 tokens; what came after was ignored." in cut.notes
    idle = nano.generate("a circle", negative_prompt="red star " * 400, text_guidance_scale=1.0, steps=1)
    assert len(idle.notes) == 1 and idle.notes[0].startswith("negative_prompt changed nothing")
    few = nano.generate("a circle", speed="fast", steps=4)
    assert few.notes == ("speed changed nothing: of 4 steps none is left out.",)
    guided = nano.generate("a circle", image_guidance_scale=2.0, steps=1)
    assert guided.notes == ("image_guidance_scale has no effect without images.",)


def test_a_described_picture_is_reduced_to_what_the_model_takes(
    nano: OmniGen2, monkeypatch: pytest.MonkeyPatch
) -> None:
    large, looked_at = gradient(600, 300), list[Image.Image]()
    real = nano.pipeline.language.question_inputs

    def record(images: list[Image.Image], question: str) -> dict[str, torch.Tensor]:
        looked_at[:] = images
        return real(images, question)

    monkeypatch.setattr(nano.pipeline.language, "question_inputs", record)
    engine = Engine(nano)
    try:
        ask = TextTask("How many circles are there?", (large,), Decoding(max_tokens=6, temperature=0.0))
        outcome = engine.submit(ask).future.result(60)
    finally:
        engine.close()
    assert outcome.notes == ("The image was reduced from 600x300 to 192x96 for the model.",)
    (seen,) = looked_at
    assert seen.tobytes() == large.resize((192, 96), Image.Resampling.LANCZOS).tobytes()
    assert outcome.text == nano.describe([seen], ask.question, max_tokens=6)


def test_the_published_models_defaults_are_its_authors() -> None:
    defaults = published_card("any").defaults
    for own in (defaults.text_to_image, defaults.edit, defaults.compose):
        assert own.negative_prompt == NEGATIVE_PROMPT and NEGATIVE_PROMPT.startswith("(((deformed))), blurry")
        assert (own.steps, own.scheduler, own.speed) == (50, "euler", "exact")
        assert (own.text_guidance_scale, own.cfg_range) == (5.0, (0, 1))
    assert (defaults.edit.image_guidance_scale, defaults.compose.image_guidance_scale) == (2.0, 2.5)
    asked = ReferenceSampling(negative_prompt="")
    assert asked.filled(defaults.edit).negative_prompt == ""
