"""What doctor says about a checkpoint before it is loaded."""

import pytest
import torch

from omnigen2.checkpoints import fit
from omnigen2.checkpoints.locate import find
from omnigen2.checkpoints.preflight import preflight
from omnigen2.memory.choice import MODES, MemoryChoice
from omnigen2.memory.placement import UNQUANTIZED, Placement, Quantization
from tests.omnigen2.golden import KEPT

CHECKPOINT = find(str(KEPT / "pipeline" / "checkpoint"))


def test_preflight_on_a_cpu_counts_every_weight_in_the_dtype_it_would_have() -> None:
    single = preflight(CHECKPOINT, Placement("cpu", "auto"))
    half = preflight(CHECKPOINT, Placement("cpu", "bfloat16"))
    assert (single.device, single.dtype, single.reason) == ("cpu", "float32", "the settings ask for cpu")
    needed, halved = single.memory.needs, half.memory.needs
    assert needed["resident"].device_bytes == pytest.approx(2 * halved["resident"].device_bytes, abs=2)
    sizes = [needed[mode].device_bytes for mode in MODES]
    assert sizes == sorted(sizes, reverse=True)
    assert {need.host_bytes for need in needed.values()} == {0}  # what rests stays in its files
    assert (single.memory.mode, single.memory.fits) == ("resident", True)
    assert "the quickest mode fits: it needs" in single.memory.reason
    assert single.torch_version == torch.__version__


def test_model_larger_than_the_free_memory_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omnigen2.checkpoints.fit.free_bytes", lambda _: 1000)
    seen = preflight(CHECKPOINT, Placement("cpu", "auto")).memory
    assert not seen.fits and seen.reason.startswith("no mode fits: it needs")


def test_a_model_that_does_not_fit_whole_rests_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    least = preflight(CHECKPOINT, Placement("cpu", "auto")).memory.needs["stream"].device_bytes
    monkeypatch.setattr("omnigen2.checkpoints.fit.free_bytes", lambda _: least)
    seen = preflight(CHECKPOINT, Placement("cpu", "auto")).memory
    assert (seen.mode, seen.fits) == ("stream", True)
    assert seen.reason.startswith("the quickest that fits: it needs") and "offload needs" in seen.reason
    asked = preflight(CHECKPOINT, Placement("cpu", "auto", "resident")).memory
    assert (asked.mode, asked.reason, asked.fits) == ("resident", "set by the host", False)


def test_a_gpu_keeps_resting_weights_in_the_memory_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, half = torch.device("cuda"), torch.bfloat16

    def chosen(on_gpu: int, on_host: int, quantize: Quantization = UNQUANTIZED) -> MemoryChoice:
        free = {"cuda": on_gpu, "cpu": on_host}
        monkeypatch.setattr(fit, "free_bytes", lambda device: free[device.type])
        return fit.choose_memory(CHECKPOINT, half, gpu, "auto", quantize)

    needed = chosen(0, 0).needs
    assert needed["resident"].host_bytes == 0 < needed["offload"].host_bytes == needed["stream"].host_bytes
    least = needed["offload"].device_bytes
    assert chosen(least, 0).mode == "offload"  # what the host has no room for comes from the files
    assert "on the host, where" in chosen(least, 0).reason
    int8 = Quantization("int8", "int8")
    assert chosen(least, 10**12, int8).fits and not chosen(1000, 10**12, int8).fits
    small = chosen(least, 10**12, int8).needs["stream"]
    assert small.host_bytes < needed["stream"].host_bytes
    assert not chosen(small.device_bytes, small.host_bytes - 1, int8).fits  # no file holds quantised weights
    assert chosen(small.device_bytes, small.host_bytes, int8).fits


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_preflight_says_why_no_gpu_is_used() -> None:
    seen = preflight(CHECKPOINT, Placement("auto", "auto"))
    assert seen.device == "cpu" and ("without CUDA" in seen.reason or "sees no GPU" in seen.reason)
    with pytest.raises(ValueError, match="device: 'cuda' was asked for"):
        preflight(CHECKPOINT, Placement("cuda", "auto"))
