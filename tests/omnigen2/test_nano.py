"""nano, the model in the box: what the repository ships does what its card says."""

from pathlib import Path

import pytest
from PIL import Image

import omnigen2
from omnigen2.checkpoints import locate
from omnigen2.checkpoints.card import read_card
from omnigen2.model import OmniGen2
from omnigen2.nano.world import Scene, Thing, example, read_scene, render
from omnigen2.nano.world.evaluate import decibels
from omnigen2.nano.world.words import READ_AS

MOST_BYTES = 20_000_000


@pytest.fixture(scope="module")
def nano() -> OmniGen2:
    return omnigen2.load("nano")


@pytest.fixture(scope="module")
def folder() -> Path:
    return locate.resolve("nano")


def test_it_is_small_and_is_what_its_card_says(folder: Path) -> None:
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MOST_BYTES
    assert read_card(folder, "nano").digest == locate.weights_digest(folder)
    assert (folder.parent / "README.md").is_file()


def test_most_plain_prompts_come_out_right(nano: OmniGen2) -> None:
    wanted = {
        "a red circle on a white background": ("circle", "red"),
        "a large blue square": ("square", "blue"),
        "a yellow star on black": ("star", "yellow"),
        "a green heart on a gray background": ("heart", "green"),
        "a purple triangle on a white background": ("triangle", "purple"),
    }
    pictures = nano.generate(list(wanted), seed=3)
    seen = [read_scene(picture).things for picture in pictures]
    right = sum(
        [(thing.shape, thing.colour) for thing in things] == [kind]
        for things, kind in zip(seen, wanted.values(), strict=True)
    )
    assert right >= 3


def test_a_named_background_is_painted(nano: OmniGen2) -> None:
    pictures = nano.generate(
        [f"a black circle on a {colour} background" for colour in ("red", "blue")], seed=1
    )
    assert [read_scene(picture).background for picture in pictures] == ["red", "blue"]


def test_an_edit_has_its_inputs_size(nano: OmniGen2) -> None:
    picture = Image.fromarray(render(Scene("white", (Thing("circle", "red", "large", 0.5, 0.5),)), 128, 80))
    (edited,) = nano.generate("make the background blue", images=[picture], seed=1)
    assert edited.size == (128, 80)
    assert read_scene(edited).background == "blue"


@pytest.mark.parametrize("size", [(64, 64), (192, 192), (64, 160)])
def test_other_sizes_work(nano: OmniGen2, size: tuple[int, int]) -> None:
    (picture,) = nano.generate("a red circle on a white background", width=size[0], height=size[1], seed=1)
    assert picture.size == size
    assert read_scene(picture).background == "white"


def test_a_prompt_outside_its_world_gets_a_picture_and_a_note(nano: OmniGen2) -> None:
    pictures = nano.generate("a photograph of a zebra", seed=1)
    assert len(pictures) == 1
    assert "zebra" in pictures.notes[0] and "ShapeWorld" in pictures.notes[0]


def test_words_that_are_read_but_not_drawn_get_a_note(nano: OmniGen2) -> None:
    assert nano.card.unknown_words("a cat and a dog beside a house") == ["cat", "dog", "house"]
    assert nano.card.unknown_words("draw a hexagon made of trees") == ["hexagon", "made", "trees"]
    language = nano.pipeline.language
    known = language.tokenizer.get_vocab().keys()
    for task in ("generate", "edit", "compose"):
        prompts = [example(task, "train", number).text for number in range(200)]  # type: ignore[arg-type]
        assert [text for text in prompts if known & nano.card.unknown_words(language.read(text))] == []


def test_what_its_card_advises_it_can_do(nano: OmniGen2) -> None:
    advice = nano.card.advice
    for words in (advice.prompts, advice.edit, advice.compose):
        for quoted in words.split('"')[1::2]:
            assert nano.card.unknown_words(nano.pipeline.language.read(quoted)) == [], quoted


def test_words_that_mean_the_same_are_read_as_one(nano: OmniGen2) -> None:
    language = nano.pipeline.language
    for plain, others in READ_AS.items():
        for other in others:
            assert language.read(other) == plain, "box and code differ, or one wording is in another's way"
        assert not nano.card.unknown_words(plain)
    assert not nano.generate("Design a pair of tiny dots on a blue canvas", seed=1).notes  # pyright: ignore
    assert nano.card.unknown_words(language.read("a pair of hands")) == ["hands"]
    assert nano.card.unknown_words(language.read("the pair")) == ["pair"]


def test_it_says_so_when_it_cannot_tell(nano: OmniGen2) -> None:
    picture = Image.fromarray(render(Scene("white", (Thing("circle", "red", "large", 0.5, 0.5),))))
    assert nano.describe([picture], "Who painted this?") == "I can't tell"


def test_it_names_the_background(nano: OmniGen2) -> None:
    picture = Image.fromarray(render(Scene("green", (Thing("circle", "red", "large", 0.5, 0.5),))))
    assert nano.describe([picture], "What colour is the background?") == "green"


def test_its_autoencoder_is_crisp(nano: OmniGen2) -> None:
    values = decibels(nano.pipeline.autoencoder, "test", 24)
    assert sum(values) / len(values) >= 32
