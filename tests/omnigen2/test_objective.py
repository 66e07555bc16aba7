"""The training objective against the reference's transport."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from omnigen2.network.packing import Segments
from omnigen2.training.objective import (
    FULL_SIZE,
    SHIFTS,
    VelocityLoss,
    draw_times,
    noised,
    shifted,
    velocity,
)
from tests.omnigen2.golden import BAR, STEPS, error, needs_steps, tensors


@pytest.fixture(scope="module")
def stored() -> dict[str, Tensor]:
    return tensors(STEPS / "cases" / "transport")


class Linear(nn.Module):
    """Stands for a transformer: predicts half of its input less 0.2, as the stored losses do."""

    config = {"patch_size": 2}  # noqa: RUF012

    def condition(self, texts: Any, references: Any, sizes: Any) -> Any:
        lengths = tuple(height * width // 4 for height, width in sizes)
        return SimpleNamespace(pictures=Segments(lengths, torch.device("cpu")))

    def forward(self, patches: Tensor, time: Tensor, packed: Any) -> Tensor:
        return 0.5 * patches - 0.2


def batch_of(data: list[Tensor], noise: list[Tensor], time: Tensor) -> dict[str, Any]:
    return {"texts": [], "references": [], "data": data, "noise": noise, "time": time}


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
    batch = batch_of(data, noise, stored["v1.dyn1.t"]) | {"tasks": ["first", "others"], "counts": [1, 2]}
    values = [x.numel() for x in data]
    found = VelocityLoss(Linear())(batch)  # pyright: ignore[reportArgumentType]
    assert error(found["velocity"] * sum(values), losses.sum()) < BAR
    assert error(found["first"] * values[0], losses[0]) < BAR
    assert error(found["others"] * sum(values[1:]), losses[1:].sum()) < BAR
    assert len({x.shape for x in data}) > 1, "pictures of several sizes"


def test_a_batch_is_noised_like_its_pictures() -> None:
    data, noise = torch.randn((2, 3, 16, 4, 6), generator=torch.Generator().manual_seed(0))
    times = torch.tensor([0.0, 0.4, 1.0])
    together = noised(data, noise, times)
    assert all(torch.equal(together[n], noised(data[n], noise[n], times[n])) for n in range(3))
    assert torch.equal(together[0], noise[0]) and torch.equal(together[2], data[2])


def test_times_are_drawn_between_noise_and_data_and_earlier_for_larger_pictures() -> None:
    small, large = (
        draw_times([pixels] * 1000, np.random.default_rng(1), "v2") for pixels in (144, FULL_SIZE)
    )
    assert 0 < large.min() and small.max() < 1
    assert (large < small).all()
    with pytest.raises(ValueError, match="version: 'v3' is unknown; allowed: v1, v2"):
        draw_times([144], np.random.default_rng(1), "v3")


def test_the_error_of_a_place_is_multiplied_by_its_weight() -> None:
    noise = [torch.zeros(1, 4, 4), torch.zeros(1, 2, 2)]
    data = [torch.ones_like(own) for own in noise]
    weights = [torch.full((4, 4), 3.0), torch.ones(2, 2)]
    batch = batch_of(data, noise, torch.zeros(2))
    loss = VelocityLoss(Linear())  # pyright: ignore[reportArgumentType]
    # Every value is predicted as -0.2 and should be 1; of 20 values, 16 weigh three times.
    assert float(loss(batch)["velocity"]) == pytest.approx(1.44)
    assert float(loss(batch | {"weights": weights})["velocity"]) == pytest.approx(1.44 * (16 * 3 + 4) / 20)
