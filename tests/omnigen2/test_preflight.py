"""What doctor says about a checkpoint before it is loaded."""

import pytest
import torch

from omnigen2.checkpoints.locate import find
from omnigen2.checkpoints.preflight import preflight
from omnigen2.memory.placement import Placement
from tests.omnigen2.golden import KEPT

CHECKPOINT = find(str(KEPT / "pipeline" / "checkpoint"))


def test_preflight_on_a_cpu_counts_every_weight_in_the_dtype_it_would_have() -> None:
    single = preflight(CHECKPOINT, Placement("cpu", "auto"))
    half = preflight(CHECKPOINT, Placement("cpu", "bfloat16"))
    assert (single.device, single.dtype, single.reason) == ("cpu", "float32", "the settings ask for cpu")
    assert single.needed_bytes["resident"] == pytest.approx(2 * half.needed_bytes["resident"], abs=2)
    assert [*single.needed_bytes.values()] == sorted(single.needed_bytes.values(), reverse=True)
    assert single.memory == "resident"
    assert single.fits and single.torch_version == torch.__version__


def test_model_larger_than_the_free_memory_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnigen2.checkpoints.preflight.free_bytes", lambda _: 1000)
    assert not preflight(CHECKPOINT, Placement("cpu", "auto")).fits


def test_a_model_that_does_not_fit_whole_rests_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    least = preflight(CHECKPOINT, Placement("cpu", "auto")).needed_bytes["stream"]
    monkeypatch.setattr("omnigen2.checkpoints.preflight.free_bytes", lambda _: least)
    seen = preflight(CHECKPOINT, Placement("cpu", "auto"))
    assert (seen.memory, seen.fits) == ("stream", True)
    assert not preflight(CHECKPOINT, Placement("cpu", "auto", "resident")).fits


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_preflight_says_why_no_gpu_is_used() -> None:
    seen = preflight(CHECKPOINT, Placement("auto", "auto"))
    assert seen.device == "cpu" and ("without CUDA" in seen.reason or "sees no GPU" in seen.reason)
    with pytest.raises(ValueError, match="device: 'cuda' was asked for"):
        preflight(CHECKPOINT, Placement("cuda", "auto"))
