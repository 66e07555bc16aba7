"""Guidance: which branches run at which step, and what they weigh."""

import pytest
import torch

from omnigen2.checkpoints.card import published_card
from omnigen2.denoise import Denoiser, Sample
from omnigen2.guidance import Branch, Guidance, branch_weights, guide
from omnigen2.params import ReferenceSampling
from omnigen2.task import ImageTask
from tests.omnigen2.golden import PIPELINE, error, model
from tests.omnigen2.test_model import picture

CARD = published_card("test")


def asked(references: int = 1, **given: object) -> list[Guidance]:
    sampling = ReferenceSampling.model_validate({"steps": 10} | given)
    return guide(sampling.filled(CARD.defaults_for(references)), bool(references))


@pytest.mark.parametrize(
    ("text", "image", "references", "weights"),
    [
        (1.0, 1.0, True, {Branch.FULL: 1}),
        (4.0, 1.0, False, {Branch.FULL: 4, Branch.BARE: -3}),
        (4.0, 2.0, False, {Branch.FULL: 4, Branch.BARE: -3}),
        (5.0, 1.0, True, {Branch.FULL: 5, Branch.BARE: -4}),
        (5.0, 2.0, True, {Branch.FULL: 5, Branch.REFERENCES: -3, Branch.BARE: -1}),
        (1.0, 2.0, True, {Branch.FULL: 1, Branch.REFERENCES: 1, Branch.BARE: -1}),
        (2.0, 2.0, True, {Branch.FULL: 2, Branch.BARE: -1}),
    ],
)
def test_branches_have_the_weights_of_the_formula(
    text: float, image: float, references: bool, weights: dict[Branch, float]
) -> None:
    assert branch_weights(text, image, references) == weights
    assert sum(weights.values()) == 1


def test_guidance_applies_in_its_range_only() -> None:
    plan = asked(cfg_range=(0.3, 0.6))
    assert [index for index, step in enumerate(plan) if len(step.weights) > 1] == [3, 4, 5, 6]


def test_nothing_is_run_at_steps_that_are_left_out() -> None:
    plan = asked(steps=50, speed="fast", cfg_range=(0, 0.5))
    assert [len(step.weights) for step in plan[:10]] == [3] * 7 + [0] * 3
    assert [len(step.weights) for step in plan[22:32]] == [3, 0, 0, 0, 1, 1, 0, 0, 0, 1]


def test_faster_pictures_are_close_to_the_exact_one() -> None:
    omnigen = model(PIPELINE / "checkpoint")

    def edit(speed: str) -> torch.Tensor:
        return omnigen.generate(
            "make it green", [picture(32, 32)], steps=30, seed=3, speed=speed, output="latents"
        )

    exact, balanced, fast = edit("exact"), edit("balanced"), edit("fast")
    assert 0 < error(balanced, exact) < error(fast, exact) < 0.3  # the weights are random


def test_speed_is_each_pictures_own_in_mixed_company(monkeypatch: pytest.MonkeyPatch) -> None:
    omnigen = model(PIPELINE / "checkpoint")
    tasks = [
        ImageTask("a circle", (), ReferenceSampling(width=32, height=32, steps=9, seed=2, speed=speed).filled(
            omnigen.card.defaults_for(0)))
        for speed in ("fast", "exact", "balanced")
    ]  # fmt: skip
    together = [omnigen.pipeline.prepare(task)[0][0] for task in tasks]
    alone = [omnigen.pipeline.prepare(task)[0][0] for task in tasks]
    packed = [omnigen.pipeline.prepare(task)[0][0] for task in tasks]
    transformer = omnigen.pipeline.transformer
    ran: list[int] = []  # pictures of each forward
    forward = transformer.forward

    def counted(tokens: torch.Tensor, timestep: torch.Tensor, batch: object) -> torch.Tensor:
        ran.append(len(timestep))
        return forward(tokens, timestep, batch)

    monkeypatch.setattr(transformer, "forward", counted)
    for group in (together, *([sample] for sample in alone)):
        run(Denoiser(transformer), group)
    for one, other in zip(together, alone, strict=True):
        assert torch.equal(one.tokens, other.tokens)
    ran.clear()
    run(Denoiser(transformer, together=True), packed)
    assert ran == [3] * 6 + [2, 1, 1]  # none waits for another where it computes nothing
    for one, other in zip(packed, alone, strict=True):
        assert error(one.tokens, other.tokens) < 1e-5
    ran.clear()
    run(Denoiser(transformer, together=True), [omnigen.pipeline.prepare(tasks[0])[0][0]])
    assert ran == [1] * 6


def run(denoiser: Denoiser, samples: list[Sample]) -> None:
    denoiser.add(samples)
    while denoiser.samples:
        denoiser.step()
