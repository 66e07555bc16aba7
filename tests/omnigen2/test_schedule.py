"""Time grids and samplers against the reference's trajectories."""

import pytest
import torch

from omnigen2.params import Speed
from omnigen2.schedule import computed_steps, plan, time_grid
from tests.omnigen2.golden import BAR, PIPELINE, STEPS, error, keys, names, needs_steps, tensors

NAMES = {"dpm": "dpmsolver++", "dpmsolver++": "dpmsolver++", "euler": "euler"}
RUNS = sorted({tuple(name.split(".")[:3]) for name in keys(PIPELINE / "schedulers")})
TRAJECTORIES = (
    sorted({name.rsplit(".", 1)[0] for name in keys(STEPS / "cases" / "schedulers")})
    if "schedulers" in names(STEPS / "cases")
    else []
)


@pytest.mark.golden
@pytest.mark.parametrize("run", RUNS, ids=".".join)
def test_given_predictions_lead_where_the_reference_goes(run: tuple[str, str, str]) -> None:
    kind, steps, pixels = run
    stored = {
        name.removeprefix(".".join(run) + "."): tensor
        for name, tensor in tensors(PIPELINE / "schedulers").items()
        if name.startswith(".".join(run) + ".")
    }
    planned = plan(NAMES[kind], [True] * int(steps), int(pixels))
    times = torch.tensor([step.time for step in planned])
    assert error(times, stored["timesteps"]) < BAR
    x = recalled = stored["x0"]
    for step, velocity in zip(planned, stored["predictions"], strict=True):
        x, recalled = (
            step.x_coef * x + step.v_coef * velocity + step.history_coef * recalled,
            x + (1 - step.time) * velocity,
        )
    assert error(x, stored["x_final"]) < BAR


@pytest.mark.golden
@needs_steps
@pytest.mark.parametrize("run", TRAJECTORIES)
def test_a_given_field_is_followed_step_by_step(run: str) -> None:
    kind, steps, pixels, shifted = run.split(".")
    if shifted == "dyn0":  # not shifted by the size, which is what happens at 40 x 40 latent pixels
        pixels = "tokens1600"
    stored = tensors(STEPS / "cases" / "schedulers")
    path = stored[f"{run}.trajectory"]
    x = recalled = path[0]
    planned = plan(NAMES[kind], [True] * int(steps.removeprefix("steps")), int(pixels.removeprefix("tokens")))
    assert error(torch.tensor([step.time for step in planned]), stored[f"{run}.timesteps"]) < BAR
    for step, there in zip(planned, path[1:], strict=True):
        mixed = torch.einsum("ij,bjhw->bihw", stored[f"{run}.W"], x)
        velocity = mixed.tanh() + 0.3 * step.time - 0.1 * x
        x, recalled = (
            step.x_coef * x + step.v_coef * velocity + step.history_coef * recalled,
            x + (1 - step.time) * velocity,
        )
        assert error(x, there) < BAR


def test_a_larger_picture_spends_more_steps_near_the_noise() -> None:
    small, large = time_grid(10, 256), time_grid(10, 16384)
    assert small[0] == large[0] == 0 and small[-1] == large[-1] == 1
    assert all(a > b for a, b in zip(small[1:-1], large[1:-1], strict=True))


@pytest.mark.parametrize(
    ("speed", "steps", "computed"),
    [
        *[("exact", 50, 50), ("balanced", 50, 29), ("fast", 50, 18), ("balanced", 12, 8), ("fast", 12, 6)],
        *[("fast", 5, 5), ("fast", 4, 4), ("fast", 1, 1)],
    ],
)
def test_a_speed_computes_the_start_the_end_and_some_of_the_rest(
    speed: Speed, steps: int, computed: int
) -> None:
    runs = computed_steps(speed, [1] * steps)
    assert sum(runs) == computed and all(runs[:4]) and runs[-1]


@pytest.mark.parametrize(("speed", "most"), [("balanced", 0.6), ("fast", 0.4)])
def test_of_many_steps_a_speed_computes_no_more_than_its_share(speed: Speed, most: float) -> None:
    for steps in range(20, 1001, 7):
        assert sum(computed_steps(speed, [1] * steps)) <= most * steps


def test_two_steps_are_computed_where_guidance_changes() -> None:
    runs = computed_steps("fast", [1] * 25 + [0] * 25)
    assert [index for index, own in enumerate(runs) if own][7:14] == [10, 14, 18, 22, 25, 26, 30]


def test_a_velocity_that_is_linear_in_time_is_extrapolated_exactly() -> None:
    steps = plan("euler", computed_steps("fast", [1] * 30), 4096)
    last = before = 0.0
    for step in steps:
        velocity = 3 - 2 * step.time
        if step.ahead is None:
            last, before = velocity, last
        else:
            assert last + step.ahead * (last - before) == pytest.approx(velocity, abs=1e-12)


def test_an_unknown_scheduler_is_named_with_what_is_allowed() -> None:
    with pytest.raises(ValueError, match=r"scheduler: 'ddim' is unknown; allowed: euler, dpmsolver\+\+"):
        plan("ddim", [True] * 4, 64)
