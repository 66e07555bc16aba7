"""Adapters: which files are read, which are refused, and that the bare model is left as it was."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from omnigen2 import lora
from omnigen2.model import OmniGen2
from tests.omnigen2.golden import PIPELINE, error, model

QUICK = {"steps": 2, "width": 32, "height": 32, "seed": 7, "output": "latents"}
LAYER = "layers.0.attn.to_q"


@pytest.fixture
def omnigen() -> OmniGen2:
    return model(PIPELINE / "checkpoint")


def write(path: Path, layer: str, down: int, up: int, rank: int = 4, suffix: str = "") -> Path:
    matrices = torch.randn((rank, down)), torch.randn((up, rank))
    names = (f"{layer}.lora_{side}{suffix}.weight" for side in "AB")
    save_file(dict(zip(names, matrices, strict=True)), path)
    return path


@pytest.mark.parametrize(("prefix", "suffix"), [("transformer.", ""), ("", ""), ("transformer.", ".default")])
def test_an_adapter_adds_the_product_of_its_matrices_and_goes_without_trace(
    omnigen: OmniGen2, tmp_path: Path, prefix: str, suffix: str
) -> None:
    torch.manual_seed(1)
    file = write(tmp_path / lora.FILE, prefix + LAYER, 96, 96, suffix=suffix)
    before = omnigen.generate("a circle", **QUICK)
    adapted = omnigen.generate("a circle", lora=tmp_path, **QUICK)
    assert torch.equal(omnigen.generate("a circle", **QUICK), before)
    down, up = (lora.read(file)[LAYER + side] for side in (lora.A, lora.B))
    layer = omnigen.pipeline.transformer.get_submodule(LAYER)
    weight = getattr(layer, "base_layer", layer).weight
    kept = weight.data.clone()
    try:
        weight.data += up @ down
        assert error(omnigen.generate("a circle", **QUICK), adapted) < 1e-5
    finally:
        weight.data = kept
    assert error(adapted, before) > 1e-3


def test_an_adapter_for_another_model_is_refused_by_name(omnigen: OmniGen2, tmp_path: Path) -> None:
    for layer, down, message in (
        (
            LAYER,
            104,
            r"layers\.0\.attn\.to_q was made for a layer of \(96, 104\), this model's is \(96, 96\)",
        ),
        ("layers.99.attn.to_q", 96, r"layers\.99\.attn\.to_q is no layer of this model"),
    ):
        file = write(tmp_path / f"{down}.safetensors", f"transformer.{layer}", down, 96)
        with pytest.raises(ValueError, match=message):
            omnigen.generate("a circle", lora=file, **QUICK)


def test_what_is_no_adapter_is_refused(omnigen: OmniGen2, tmp_path: Path) -> None:
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 100)
    save_file({"x.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    save_file({f"{LAYER}.lora_A.weight": torch.zeros(4, 96)}, tmp_path / "half.safetensors")
    for name, message in (("junk", "damaged"), ("other", "it holds x.weight"), ("half", "is missing")):
        with pytest.raises(ValueError, match=f"lora: .*{message}"):
            omnigen.generate("a circle", lora=tmp_path / f"{name}.safetensors", **QUICK)
