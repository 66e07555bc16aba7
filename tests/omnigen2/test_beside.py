"""How much longer the reference is expected to take: `python -m benchmarks.plan --against`."""

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import gpu_beside, shapes
from benchmarks.beside import Beside, Counted, computed_steps, rows
from benchmarks.counting import GPU, Work, counting
from benchmarks.machines import LAUNCH, MACHINES, SYNC, TERA, Machine
from benchmarks.plan import count
from omnigen2.params import ReferenceSampling

MACHINE = Machine("round", peak=TERA, products=TERA, attention=TERA, memory=TERA, link=TERA)
CHECKOUT = os.environ.get("REFERENCE_CHECKOUT")


def test_a_module_is_counted_by_hand() -> None:
    with counting() as counter:
        with torch.device(GPU):
            module = nn.Sequential(nn.Linear(16, 32, bias=False), nn.SiLU())
        with counter.counted() as work:
            module(torch.empty(8, 16, device=GPU)).mul_(2)
    assert (work.kernels, work.product_flop) == (3, 2 * 8 * 16 * 32)
    assert work.product_bytes == 4 * (8 * 16 + 16 * 32 + 8 * 32)
    assert work.elementwise_bytes == 4 * 8 * 32 * (2 + 2)
    twice = work * 2 + Work(syncs=1, peak_bytes=1)
    assert (twice.kernels, twice.syncs, twice.peak_bytes) == (6, 1, work.peak_bytes)


def test_seconds_are_the_slowest_of_device_host_and_link() -> None:
    device = Work(product_flop=10**12, attention_flop=2 * 10**12, elementwise_bytes=3 * 10**12, kernels=7)
    assert MACHINE.seconds(device) == pytest.approx(6)
    assert MACHINE.seconds(Work(product_bytes=2 * 10**12, product_flop=1)) == pytest.approx(2)
    assert MACHINE.seconds(Work(kernels=100, syncs=3)) == pytest.approx(100 * LAUNCH + 3 * SYNC)
    assert MACHINE.seconds(Work(copied_bytes=10**12)) == pytest.approx(1)


def test_ratios_are_of_whole_requests() -> None:
    ours = Counted((Work(product_flop=10**12),), Work(product_flop=10**12), Work(product_flop=10**11))
    reference = Counted((Work(product_flop=2 * 10**12),), *[Work(product_flop=2 * 10**12)] * 2)
    expected = Beside("edit", 64, "SDPA", ours, reference, {"balanced": 29, "fast": 19}).expected(MACHINE)
    assert expected["reference_s"] == pytest.approx(102)
    assert [expected[f"{name}_s"] for name in ("eager", "compiled", "balanced", "fast")] == [51, 6, 3.9, 2.9]
    assert (expected["eager_ratio"], expected["fast_ratio"]) == (2, pytest.approx(102 / 2.9, abs=0.01))


def test_measured_seconds_stand_beside_the_expected_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_beside, "machine_here", lambda: MACHINES[0])
    work = Work(product_flop=10**14)
    told = Beside("edit", 64, "SDPA", *[Counted((), work, work)] * 2, {"balanced": 25, "fast": 10}).told()
    measured = {"ours_s": 10.0, "reference_s": 20.0, "fast_s": 4.0, "ratio": 2.0, "fast_ratio": 5.0}
    facts = gpu_beside.compared(told, measured, 50)
    assert (facts["ratio"], facts["ratio_expected"]) == (2, 1)
    assert (facts["fast_ratio"], facts["fast_ratio_expected"]) == (5, 5)
    assert facts["ours_utilisation"] == pytest.approx(50 * 1e14 / 10 / MACHINES[0].peak)
    assert "not_compared" in gpu_beside.compared(told, measured, 3)


def test_a_faster_speed_computes_the_steps_of_the_schedule() -> None:
    sampling = ReferenceSampling(
        cfg_range=(0, 1), text_guidance_scale=4, image_guidance_scale=2, negative_prompt=""
    )
    assert computed_steps(sampling, references=True) == {"balanced": 29, "fast": 18}


def test_a_folder_without_the_reference_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no reference implementation"):
        list(rows(tmp_path, [], "tiny", torch.bfloat16, ["SDPA"]))


@pytest.mark.skipif(not CHECKOUT, reason="REFERENCE_CHECKOUT names no checkout of the reference")
def test_the_reference_is_counted() -> None:
    own = count("edit", 128, "resident", "tiny")
    flash, plain = rows(Path(str(CHECKOUT)), [own], "tiny", torch.bfloat16, ["flash_attn", "SDPA"])
    step = plain.reference.step
    text, negative, picture = 300, 100, (128 // 16) ** 2  # tokens, of 2 x 2 x 8 pixels
    branches = [text + 2 * picture, negative + 2 * picture, negative + picture]
    refined = [text, negative, negative, *[picture] * (3 + 2)]
    shape = shapes.TINY_TRANSFORMER
    layers, refiners, width = shape["num_layers"], 2, shape["hidden_size"]
    pairs = layers * sum(n * n for n in branches) + refiners * sum(n * n for n in refined)
    assert step.attention_flop == 4 * width * pairs
    assert own.stages["step"].attention_flop < step.attention_flop
    assert own.stages["step"].product_flop < step.product_flop
    with_flash = flash.reference.step
    assert with_flash.product_flop == step.product_flop
    assert with_flash.attention_flop == step.attention_flop
    assert with_flash.elementwise_bytes < step.elementwise_bytes
    assert with_flash.syncs > step.syncs > 0
