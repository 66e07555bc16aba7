"""ShapeWorld: what is drawn is read back, what is asked is judged, and the splits keep their promises."""

import hashlib
import json
from dataclasses import astuple, replace

import numpy as np
import pytest
from PIL import Image

from omnigen2.nano.world import (
    SPLITS,
    TASKS,
    Example,
    Scene,
    example,
    judge,
    read_scene,
    render,
    sample_scene,
)
from omnigen2.nano.world.layout import moved
from omnigen2.nano.world.scene import COLOURS, SHAPES
from omnigen2.nano.world.spec import SceneSpec, unchanged_spec
from omnigen2.nano.world.tasks import held_out

PICTURES = ("generate", "edit", "compose")
EXAMPLES = {
    "generate": "1cbc44204b195ced",
    "edit": "230346b627dd69bc",
    "compose": "a6283b5d872f1808",
    "describe": "7978ec8e0e8f95ac",
    "ask": "77bebe1efe4b9f2b",
}
"""The first digits of SHA-256 over 60 examples of each split; nano was trained and measured on these."""
SIZES = [(64, 64), (96, 96), (128, 128), (192, 192), (96, 64), (64, 128)]


def drawn(scene: Scene, size: tuple[int, int] = (96, 96)) -> Image.Image:
    return Image.fromarray(render(scene, *size))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_drawn_scene_is_read_back(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    scenes = [sample_scene(rng) for _ in range(150)]
    right = 0
    for scene in scenes:
        reading = read_scene(drawn(scene, size))
        kinds = sorted((t.shape, t.colour, t.size) for t in reading.things)
        wanted = sorted((t.shape, t.colour, t.size) for t in scene.things)
        right += reading.background == scene.background and kinds == wanted and not reading.doubts
    assert right >= 0.98 * len(scenes)


@pytest.mark.parametrize("task", TASKS)
def test_examples_are_deterministic_and_differ_by_seed(task: str) -> None:
    assert example(task, "test", 5) == example(task, "test", 5)  # type: ignore
    assert len({example(task, "test", seed).text for seed in range(20)}) > 10  # type: ignore


@pytest.mark.parametrize("task", TASKS)
def test_examples_are_those_that_nano_was_trained_on(task: str) -> None:
    digest = hashlib.sha256()
    for split in SPLITS:
        for seed in range(60):
            digest.update(json.dumps(astuple(example(task, split, seed))).encode())  # type: ignore
    assert digest.hexdigest()[:16] == EXAMPLES[task]


@pytest.mark.parametrize("task", TASKS)
def test_held_out_combinations_are_met_in_unseen_only(task: str) -> None:
    for split in SPLITS:
        for seed in range(40):
            met = any(map(held_out, example(task, split, seed).combos))  # type: ignore
            assert met == (split == "unseen")


def test_unknown_tasks_and_splits_are_named() -> None:
    with pytest.raises(ValueError, match="task: 'paint' is unknown; allowed: generate, edit"):
        example("paint", "train", 0)  # type: ignore
    with pytest.raises(ValueError, match="split: 'dev' is unknown; allowed: train, test, unseen"):
        example("edit", "dev", 0)  # type: ignore


@pytest.mark.parametrize("task", PICTURES)
def test_the_target_of_every_example_is_right(task: str) -> None:
    examples = [example(task, "test", seed) for seed in range(150)]  # type: ignore
    verdicts = [judge(each, drawn(each.target)) for each in examples if each.target]
    assert len(verdicts) == len(examples)
    assert sum(verdict.ok for verdict in verdicts) >= 0.98 * len(verdicts)


def wrong_colour(scene: Scene) -> Scene:
    free = next(c for c in COLOURS if c not in {scene.background, scene.things[0].colour})
    return replace(scene, things=(replace(scene.things[0], colour=free), *scene.things[1:]))


def wrong_shape(scene: Scene) -> Scene:
    other = SHAPES[(SHAPES.index(scene.things[0].shape) + 1) % len(SHAPES)]
    return replace(scene, things=(replace(scene.things[0], shape=other), *scene.things[1:]))


def one_less(scene: Scene) -> Scene:
    return replace(scene, things=scene.things[1:])


def wrong_background(scene: Scene) -> Scene:
    used = {scene.background, *(thing.colour for thing in scene.things)}
    return replace(scene, background=next(c for c in COLOURS if c not in used))


@pytest.mark.parametrize("spoil", [wrong_colour, wrong_shape, one_less, wrong_background])
def test_a_near_miss_of_an_edit_is_refused(spoil) -> None:  # type: ignore
    for seed in range(40):
        edit = example("edit", "test", seed)
        assert edit.target is not None
        spec = edit.spec
        assert spec is not None
        if not all(thing.colour and thing.shape for thing in spec.things) or not spec.background:
            continue
        assert not judge(edit, drawn(spoil(edit.target))).ok


def test_a_bystander_that_moved_is_refused() -> None:
    scene = sample_scene(np.random.default_rng(4), 1, 1)
    thing = scene.things[0]
    far = "top left" if thing.x > 0.5 or thing.y > 0.5 else "bottom right"
    x, y = moved(thing, far)

    still = Example(
        "edit", "move", "", (scene,), scene, None, SceneSpec(scene.background, (unchanged_spec(thing),))
    )
    assert judge(still, drawn(scene)).ok
    assert not judge(still, drawn(replace(scene, things=(replace(thing, x=x, y=y),)))).ok


def test_answers_are_judged_up_to_case_and_punctuation() -> None:
    asked = example("describe", "test", 3)
    assert asked.answer is not None
    assert judge(asked, asked.answer.upper() + ".").ok
    assert not judge(asked, asked.answer.replace("background", "ground")).ok
    with pytest.raises(TypeError, match="answered by text"):
        judge(asked, Image.new("RGB", (8, 8)))
    with pytest.raises(TypeError, match="answered by a picture"):
        judge(example("edit", "test", 0), "done")


def test_captions_are_of_a_kind_by_how_many_things_they_name() -> None:
    asked = [example("describe", "train", seed) for seed in range(300)]
    assert {one.kind for one in asked} == {"one", "two", "three", "four", "counted"}
    for one in asked:
        assert one.answer is not None
        named = one.answer.rpartition(" on ")[0].replace(",", " and").split(" and ")
        things = len(one.inputs[0].things)
        expected = ("one", "two", "three", "four")[things - 1] if len(named) == things else "counted"
        assert one.kind == expected, one.answer


def test_questions_have_short_answers_from_a_closed_set() -> None:
    answers = {example("ask", "train", seed).answer for seed in range(2000)}
    assert len(answers) < 50
    assert {"yes", "no", "I can't tell", "red", "circle", "three", "top left", "image 2"} <= answers


def test_importing_the_world_needs_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, omnigen2.nano.world; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
