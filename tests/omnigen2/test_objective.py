"""The training objective against the reference's transport."""

import pytest
import torch
from torch import Tensor

from omnigen2.training.objective import (
    FULL_SIZE,
    SHIFTS,
    draw_times,
    noised,
    shifted,
    squared_error,
    velocity,
)
from tests.omnigen2.golden import BAR, STEPS, error, needs_steps, tensors


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return tensors(STEPS / "cases" / "transport")


def latents(stored: dict[str, Tensor], kind: str) -> list[Tensor]:
    return [stored[f"v1.dyn1.{kind}.{n}"] for n in range(3)]


@pytest.mark.golden
@needs_steps
@pytest.mark.parametrize("version", SHIFTS)
def test_times_are_shifted_as_by_the_reference(stored: dict[str, Tensor], version: str) -> None:
    plain = stored[f"{version}.dyn1.u"].sigmoid()
    own = torch.tensor([SHIFTS[version](x.shape[-2] * x.shape[-1]) for x in latents(stored, "x1")])
    assert error(shifted(plain, own), stored[f"{version}.dyn1.t"]) < BAR
    assert error(shifted(plain, SHIFTS[version](FULL_SIZE)), stored[f"{version}.dyn0.t"]) < BAR


@pytest.mark.golden
@needs_steps
def test_inputs_targets_and_losses_are_those_of_the_reference(stored: dict[str, Tensor]) -> None:
    data, noise = latents(stored, "x1"), latents(stored, "x0")
    losses = stored["v1.dyn1.loss_sum_per_sample_model_0.5x-0.2"]
    inputs = [noised(*pair) for pair in zip(data, noise, stored["v1.dyn1.t"], strict=True)]
    targets = [velocity(*pair) for pair in zip(data, noise, strict=True)]
    for n in range(3):
        assert error(inputs[n], stored[f"v1.dyn1.xt.{n}"]) < BAR
        assert error(targets[n], stored[f"v1.dyn1.ut.{n}"]) < BAR
    values = sum(x.numel() for x in data)
    guesses = [0.5 * x - 0.2 for x in inputs]
    assert error(squared_error(guesses, targets) * values, losses.sum()) < BAR
    assert error(squared_error(guesses[:1], targets[:1]) * data[0].numel(), losses[0]) < BAR


def test_a_batch_is_noised_like_its_pictures() -> None:
    data, noise = torch.randn((2, 3, 16, 4, 6), generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.0, 0.4, 1.0])
    together = noised(data, noise, times)
    assert all(torch.equal(together[n], noised(data[n], noise[n], times[n])) for n in range(3))
    assert torch.equal(together[0], noise[0]) and torch.equal(together[2], data[2])


def test_times_are_drawn_between_noise_and_data_and_earlier_for_larger_pictures() -> None:
    small, large = (
        draw_times([pixels] * 1000, "v2", torch.Generator().manual_seed(1)) for pixels in (144, FULL_SIZE)
    )
    assert 0 < large.min() and small.max() < 1
    assert (large < small).all()
    with pytest.raises(ValueError, match="version: 'v3' is unknown; allowed: v1, v2"):
        draw_times([144], "v3")
