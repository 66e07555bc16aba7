"""The library and the server complete equal requests equally, and refuse the same ones in the same words."""

from collections.abc import Callable, Sequence
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from omnigen2.checkpoints.card import Advice, published_card
from omnigen2.completion import DRAWN_SEEDS, complete_decoding, complete_sampling
from omnigen2.model import OmniGen2
from omnigen2.params import MAX_SEED, Decoding, ReferenceSampling, Sampling
from omnigen2.sizes import edited_image
from omnigen2.task import ImageTask, TextTask
from tests.tools.studio import BY_NAME, Studio
from tools.base import ToolError
from tools.recipe import Recipe, make_recipe

SIZES = [(32, 48), (1500, 40), (4500, 20), (16, 16)]
TOOLS = ["generate_image", "edit_image", "compose_from_references"]
Complete = Callable[[dict[str, Any], Sequence[int]], tuple[Any, tuple[str, ...]]]

sides = st.none() | st.sampled_from([16, 100, 4096])
scales = st.none() | st.sampled_from([0.0, 1.0, 2.5])
sampling = st.fixed_dictionaries(
    {"seed": st.sampled_from([0, 5, MAX_SEED])},
    optional={
        "negative_prompt": st.sampled_from(["", "blurry"]),
        "width": sides,
        "height": sides,
        "num_images": st.none() | st.integers(1, 3),
        "steps": st.none() | st.integers(1, 4),
        "text_guidance_scale": scales,
        "image_guidance_scale": scales,
        "cfg_range": st.none() | st.sampled_from([(0.0, 1.0), (0.4, 0.45)]),
        "scheduler": st.none() | st.sampled_from(["euler", "dpmsolver++"]),
        "speed": st.none() | st.sampled_from(["exact", "fast"]),
    },
)
decoding = st.fixed_dictionaries(
    {"temperature": st.none() | st.sampled_from([0.0, 0.7]), "seed": st.integers(0, 9)},
    optional={"max_tokens": st.none() | st.integers(1, 9)},
)
PROPERTY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def pictures(chosen: Sequence[int]) -> list[Image.Image]:
    return [Image.new("RGB", SIZES[index]) for index in chosen]


@pytest.fixture
def by_library(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Complete:
    """What the library completes a request to; the pipeline only notes it."""
    model = OmniGen2(studio.engine._pipeline)
    seen: list[Any] = []

    def run(tasks: list[ImageTask], *rest: Any) -> None:
        seen.append((tasks[0].sampling, tuple(rest[2])))

    def write(task: TextTask) -> str:
        seen.append((task.decoding, ()))
        return ""

    monkeypatch.setattr(model, "_run", run)
    monkeypatch.setattr(model.pipeline, "write", write)

    def complete(asked: dict[str, Any], chosen: Sequence[int]) -> tuple[Any, tuple[str, ...]]:
        if "temperature" in asked:
            model.describe(pictures(chosen), "what?", **asked)
        else:
            model.generate("x", pictures(chosen), **asked)
        return seen.pop()

    return complete


@pytest.fixture
def by_server(studio: Studio) -> Callable[..., Recipe]:
    """The recipe that a tool makes of a request."""
    ids = [str(studio.store.put(Image.new("RGB", size)).id) for size in SIZES]

    def complete(tool: str, asked: dict[str, Any], chosen: Sequence[int]) -> Recipe:
        words = {"generate_image": "prompt", "describe_image": "question"}.get(tool, "instruction")
        images: dict[str, Any] = {"image": ids[chosen[0]]} if tool == "edit_image" else {}
        if tool in ("compose_from_references", "describe_image"):
            images = {"images": [ids[index] for index in chosen]}
        request = BY_NAME[tool].request.model_validate({words: "x"} | images | asked)
        return anyio.run(make_recipe, tool, request, studio)

    return complete


def outcome(complete: Callable[..., Any], *given: Any) -> Any:
    try:
        return complete(*given)
    except ToolError as error:
        return error.message.removesuffix(".")
    except ValueError as error:
        return str(error)


@PROPERTY
@given(asked=sampling, chosen=st.lists(st.sampled_from(range(len(SIZES))), max_size=2))
def test_requests_for_pictures(
    by_library: Complete, by_server: Callable[..., Recipe], asked: dict[str, Any], chosen: list[int]
) -> None:
    if not chosen:
        asked = {name: value for name, value in asked.items() if name != "image_guidance_scale"}
    theirs = outcome(by_server, TOOLS[len(chosen)], asked, chosen)
    if isinstance(theirs, Recipe):
        theirs = (theirs.params, theirs.notes)
    assert outcome(by_library, asked, chosen) == theirs


@PROPERTY
@given(asked=decoding, chosen=st.lists(st.sampled_from(range(len(SIZES))), min_size=1, max_size=3))
def test_questions(
    by_library: Complete, by_server: Callable[..., Recipe], asked: dict[str, Any], chosen: list[int]
) -> None:
    assert by_library(asked, chosen)[0] == by_server("describe_image", asked, chosen).params


def test_a_seed_is_drawn_where_none_was_given(studio: Studio) -> None:
    card = studio.engine.card
    made = [complete_sampling(Sampling(), [], card) for _ in range(20)]
    seeds = {each.params.seed for each in made}
    assert len(seeds) > 1 and all(seed is not None and seed < DRAWN_SEEDS for seed in seeds)
    assert not any(each.repeatable for each in made)
    assert complete_sampling(Sampling(seed=1), [], card).repeatable
    varied = complete_decoding(Decoding(temperature=1.0), [], card)
    assert varied.params.seed is not None and not varied.repeatable
    certain = complete_decoding(Decoding(temperature=0.0, seed=3), [], card)
    assert certain.params.seed is None and certain.repeatable and len(certain.notes) == 1


@pytest.mark.parametrize(
    ("words", "index"),
    [
        ("Edit the first image: put the hat of the second image on the man", 0),
        ("edit image 2: use the light of image 1", 1),
        ("Edit the third picture.", 2),
        ("Edit the fourth image: x", None),
        ("Put the hat on the first image", None),
        ("Editing the first image", None),
    ],
)
def test_an_instruction_may_say_which_image_it_edits(words: str, index: int | None) -> None:
    assert edited_image(words, 3) == index
    assert edited_image(words, 1) is None


def test_the_edited_one_of_several_images_gives_the_size() -> None:
    sizes, card = [(800, 600), (640, 960)], published_card("x")
    edit = "Edit the second image: give it the sky of the first image."
    made = complete_sampling(ReferenceSampling(), sizes, card, prompt=edit)
    assert (made.params.width, made.params.height) == (640, 960)
    assert made.notes == ("The size is that of image 2, which is edited.",)
    wide = complete_sampling(ReferenceSampling(width=320), sizes, card, prompt=edit)
    assert (wide.params.width, wide.params.height, wide.notes) == (320, 480, ())
    asked = complete_sampling(ReferenceSampling(width=320, height=320), sizes, card, prompt=edit)
    assert (asked.params.width, asked.params.height) == (320, 320)
    other = complete_sampling(ReferenceSampling(), sizes, card, prompt="Both side by side")
    assert (other.params.width, other.params.height) == (1024, 1024)


def test_small_inputs_get_one_note_where_the_model_wants_larger_ones() -> None:
    card = published_card("x")
    (note,) = complete_sampling(ReferenceSampling(), [(2000, 511), (512, 512), (64, 64)], card).notes
    assert note.startswith(
        "Image 1 has 2000x511 pixels, Image 3 has 64x64 pixels; OmniGen2 works best with 512"
    )
    (one,) = complete_sampling(ReferenceSampling(), [(100, 900)], card).notes
    assert one.startswith("The image has 100x900 pixels; ")
    wanting = card.model_copy(update={"advice": Advice()})
    assert complete_sampling(ReferenceSampling(), [(8, 8)], wanting).notes == ()
