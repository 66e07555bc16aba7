"""Auxiliary losses on hidden states, and the weights of the velocity loss of faint things."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import omnigen2
from omnigen2.nano.stages.auxiliary_losses import (
    AUXILIARY,
    EMPTY,
    IGNORED,
    TAKEN,
    AuxiliaryHeads,
    cell_labels,
    equal_labels,
    plan_labels,
)
from omnigen2.nano.stages.config import Stage
from omnigen2.nano.stages.generation import GenerationTask
from omnigen2.nano.stages.loss_weights import MAX_WEIGHT, loss_weights
from omnigen2.nano.stages.understanding import conversations, examples_of
from omnigen2.nano.world import COLOURS, SHAPES, Scene, Thing, example
from omnigen2.nano.world.words import caption
from omnigen2.network.transformer import unpatchify

SCENE = Scene(
    "white",
    (
        Thing("star", "blue", "small", 0.9, 0.1),
        Thing("heart", "red", "large", 0.1, 0.1),
        Thing("star", "blue", "small", 0.1, 0.9),
    ),
)
STAR = (SHAPES.index("star"), 2, 0)
"""Class indices of the small blue star: shape, colour and size."""
HEART = (SHAPES.index("heart"), 0, 2)


def test_visual_tokens_know_their_row_column_and_picture() -> None:
    language = omnigen2.load("nano").pipeline.language
    asked = next(one for one in (example("ask", "train", n) for n in range(99)) if len(one.inputs) == 2)
    rng = np.random.default_rng(1)
    made = conversations(language, [asked, example("describe", "train", 0)], (96,), rng)
    visual = made["inputs"]["input_ids"] == language.mllm.config.image_token_id
    cells = [(row, column) for row in range(6) for column in range(6)]
    places = made["auxiliary"]["places"]
    assert places[0][visual[0]].tolist() == [[*cell, n] for n in range(2) for cell in cells]
    assert places[1][visual[1]].tolist() == [[*cell, 0] for cell in cells]
    assert (made["auxiliary"]["cells"][visual][:, 0] != IGNORED).all()
    assert all((made["auxiliary"][name][~visual] == IGNORED).all() for name in ("cells", "places", "equals"))


def test_cell_labels_are_those_of_the_thing_in_the_cell() -> None:
    cells = cell_labels(SCENE, (4, 4))
    background, nothing = 6, [IGNORED] * 3
    assert cells.shape == (16, 5)
    assert cells[0].tolist() == [TAKEN, *HEART, background]
    assert cells[3].tolist() == cells[12].tolist() == [TAKEN, *STAR, background]
    assert cells[1].tolist() == [EMPTY, *nothing, background]


def test_a_thing_counts_its_equals_among_those_before_it() -> None:
    equals = equal_labels(SCENE, (4, 4)).flatten().tolist()
    assert (equals[0], equals[3], equals[12]) == (0, 0, 1)
    assert equals.count(IGNORED) == 13


def test_a_caption_plans_the_kind_that_it_names_next() -> None:
    words = caption(SCENE).split()
    assert " ".join(words) == "a large red heart and two small blue stars on a white background"
    # Before the first word and after each of the four of the heart; from "and" on the stars, until "on".
    assert plan_labels(SCENE, words).tolist() == [[0, *HEART]] * 5 + [[1, *STAR]] * 5


def test_only_captions_have_plans_and_they_stand_one_before_their_words() -> None:
    language = omnigen2.load("nano").pipeline.language
    asked = [example("describe", "train", 3), example("ask", "train", 3)]
    made = conversations(language, asked, (96,), np.random.default_rng(1))
    planned = (made["auxiliary"]["plans"] != IGNORED).all(-1)
    assert not planned[1].any()
    first = int((made["labels"][0] != IGNORED).nonzero()[0])
    assert int(planned[0].nonzero()[0]) == first - 1
    scene = asked[0].inputs[0]
    assert made["auxiliary"]["plans"][0, first - 1].equal(plan_labels(scene, caption(scene).split())[0])


def test_new_heads_send_no_gradient_to_the_states() -> None:
    states = torch.randn(2, 3, 8, requires_grad=True)
    classes = AUXILIARY["places"].classes
    labels = torch.full((2, 3, len(classes)), IGNORED)
    labels[0, 1] = 1
    predicted = AuxiliaryHeads(8)("places", states, labels)
    assert {name: logits.shape for name, (logits, _) in predicted.items()} == {
        f"places_{name}": (1, count) for name, count in classes.items()
    }
    torch.stack([logits.square().sum() + logits.sum() for logits, _ in predicted.values()]).sum().backward()
    assert states.grad is not None and not states.grad.any()


def drawn(scene: Scene, values: dict[str, float]) -> Tensor:
    """(1, 8, 8): "latents" of a scene, each thing a box of its colour's value."""
    picture = torch.zeros(1, 8, 8)
    for thing in scene.things:
        rows, columns = (slice(int(8 * (at - thing.radius)), int(8 * (at + thing.radius)) + 1)
                         for at in (thing.y, thing.x))  # fmt: skip
        picture[:, rows, columns] = values[thing.colour]
    return picture


VALUES = {"red": 2.0, "gray": 1.0}
PAIR = Scene(
    "purple", (Thing("square", "red", "large", 0.25, 0.25), Thing("square", "gray", "large", 0.75, 0.75))
)


def test_a_faint_thing_weighs_as_much_as_one_of_mean_contrast() -> None:
    data = drawn(PAIR, VALUES)[None]
    weights = loss_weights([PAIR], [()], data, [[]])[0]
    assert weights[2, 2] == 1
    assert weights[6, 6] == pytest.approx((4.0 + 1.0) / 2)
    assert weights[6, 2] == 1


def test_what_an_edit_takes_away_weighs_too_and_what_stays_does_not_twice() -> None:
    left = Scene("purple", PAIR.things[:1])
    before, after = drawn(PAIR, VALUES), drawn(left, VALUES)[None]
    weights = loss_weights([left], [(PAIR,)], after, [[before]])[0]
    assert weights[2, 2] == 1
    assert 1 < weights[6, 6] <= MAX_WEIGHT


def test_a_batch_may_ask_for_things_that_hardly_stand_out() -> None:
    found = examples_of("edit:faint", 7, 8)
    assert len(found) == 8 and {one.task for one in found} == {"edit"}
    for one in found:
        assert one.target is not None
        pairs = [
            (thing.colour, scene.background) for scene in (*one.inputs, one.target) for thing in scene.things
        ]
        assert min(math.dist(COLOURS[a], COLOURS[b]) for a, b in pairs) < 130
    assert len({one.kind for one in found}) > 1, "several kinds of edits"


def test_a_misspelt_kind_is_an_error_and_not_an_endless_search(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnigen2.nano.stages.understanding.SEARCHED", 50)
    with pytest.raises(ValueError, match="'edit:fiant'"):
        examples_of("edit:fiant", 7, 2)


def test_the_packed_loss_is_that_of_its_pictures_one_by_one(tmp_path: Path) -> None:
    parts = omnigen2.load("nano").pipeline
    stage = Stage(steps=1, rate=1e-3, batch={"generate": 2, "edit:several": 2, "compose": 1})
    task = GenerationTask(parts.transformer, parts.autoencoder, parts.language, stage, 1, tmp_path)
    batch = task.batch(0)
    per_picture = ("texts", "references", "data", "noise", "time", "weights")
    errors = []
    with torch.inference_mode():
        packed = task.module(batch)
        for n in range(5):
            one = {key: batch[key][n : n + 1] for key in per_picture}
            _, predicted = task.module.predict(one)
            error = (unpatchify(predicted, (6, 6)) - (one["data"][0] - one["noise"][0])).square().mean(dim=0)
            blocks = one["weights"][0].reshape(6, 2, 6, 2).mean(dim=(1, 3))
            errors.append(float((error.reshape(6, 2, 6, 2).mean(dim=(1, 3)) * blocks).mean()))
    assert float(packed["velocity"]) == pytest.approx(sum(errors) / 5, rel=1e-5)
    assert float(packed["edit:several"]) == pytest.approx((errors[2] + errors[3]) / 2, rel=1e-5)


def test_weights_count_in_the_loss_and_a_batch_may_ask_for_one_kind(tmp_path: Path) -> None:
    parts = omnigen2.load("nano").pipeline
    stage = Stage(steps=1, rate=1e-3, batch={"generate": 1, "edit:several": 2})
    task = GenerationTask(parts.transformer, parts.autoencoder, parts.language, stage, 1, tmp_path)
    batch = task.batch(0)
    with torch.inference_mode():
        once, twice = (task.module(batch | {"weights": n * torch.ones(3, 12, 12)}) for n in (1, 2))
        weighed = task.module(batch)
    assert set(once) == {"velocity", "generate", "edit:several"}
    assert all(twice[name] == pytest.approx(2 * float(once[name])) for name in once)
    assert weighed["velocity"] > once["velocity"]
