"""What a task is estimated to cost: for the queue, and for the engine's token budget."""

from dataclasses import dataclass

import pytest

from omnigen2.checkpoints.card import Limits, published_card
from omnigen2.cost import cost, input_pixels, step_tokens
from omnigen2.factory import OneModel
from omnigen2.manager import Manager
from omnigen2.params import Decoding, ReferenceSampling
from omnigen2.task import ImageTask, Task, TextTask


@dataclass(frozen=True)
class Size:
    """An image of which only the size is known."""

    width: int
    height: int


def image_task(*inputs: Size, text: float = 5, image: float = 2, **asked: object) -> ImageTask:
    known = {
        "width": 1000,
        "height": 1000,
        "steps": 1,
        "num_images": 1,
        "cfg_range": (0, 1),
        "speed": "exact",
    }
    scales = {"text_guidance_scale": text, "image_guidance_scale": image}
    return ImageTask("x", inputs, ReferenceSampling.model_validate(known | scales | asked))


@pytest.mark.parametrize(
    ("text", "image", "megapixels"), [(1, 1, 2), (5, 1, 3), (1, 2, 5), (5, 2, 5), (2, 2, 3)]
)
def test_cost_counts_the_branches_that_guidance_runs(text: float, image: float, megapixels: int) -> None:
    assert cost(image_task(Size(1000, 1000), text=text, image=image)) == megapixels


def test_cost_grows_with_pictures_and_guided_steps() -> None:
    assert cost(image_task(num_images=3)) == 3 * cost(image_task())
    half_guided = image_task(steps=4, cfg_range=(0, 0.25))  # two steps of two branches, two of one
    assert cost(half_guided) == 6


def test_cost_counts_computed_steps_only() -> None:
    assert cost(image_task(steps=50, speed="fast")) == 18 * cost(image_task())


def test_pictures_cost_what_they_are_computed_and_seen_at() -> None:
    limits = Limits(max_pixels=256 * 256, max_input_side=128)
    task = image_task(Size(4000, 4000), width=1024, height=1024, text=1, image=1)
    assert cost(task, limits) == (256 * 256 + 128 * 128) / 1e6
    assert input_pixels(task) == 4000 * 4000


def test_text_costs_its_tokens_and_its_images() -> None:
    asked = Decoding(max_tokens=100, temperature=0.0)
    assert cost(TextTask("what?", (), asked)) == 100
    assert cost(TextTask("what?", (Size(280, 280),), asked)) == 200


def test_tokens_of_a_step_are_patches_and_text_of_every_branch() -> None:
    limits = Limits(max_text_tokens=10)
    task = image_task(Size(160, 160), width=320, height=160, num_images=2)
    assert step_tokens(task, limits, 16) == 2 * (3 * (200 + 10) + 2 * 100)


class Fixed:
    """A plugin's backend that estimates costs itself."""

    card = published_card("fixed")

    def cost(self, task: Task) -> float:
        return 7.0

    def busy(self) -> bool:
        return False

    def close(self) -> None:
        pass


class Silent(Fixed):
    """A plugin's backend that was written before costs were asked for."""

    cost = None  # type: ignore[assignment]


@pytest.mark.parametrize(("kind", "expected"), [(Fixed, 7.0), (Silent, 2.0)])
def test_a_loaded_backend_answers_and_the_default_stands_in(kind: type[Fixed], expected: float) -> None:
    factory = OneModel("fixed", kind.card, lambda device, dtype: kind())  # type: ignore[arg-type,return-value]
    manager = Manager("fixed", factories=[factory])
    assert manager.cost(image_task()) == 2.0  # nothing is loaded yet: text guidance runs two branches
    manager.acquire().result(60)
    assert manager.cost(image_task()) == expected
    manager.close()
