"""Adapters: which files are read, which are refused, and that the bare model is left as it was."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from omnigen2 import adapter, lora
from omnigen2.adapter import Adapter
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
    file = write(tmp_path / adapter.FILE, prefix + LAYER, 96, 96, suffix=suffix)
    before = omnigen.generate("a circle", **QUICK)
    adapted = omnigen.generate("a circle", lora=tmp_path, **QUICK)
    assert torch.equal(omnigen.generate("a circle", **QUICK), before)
    down, up = (lora.read(Adapter.of(file))[LAYER + side] for side in (lora.A, lora.B))
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
        ("layers.99.attn.to_q", 96, r"layers\.99\.attn\.to_q is not a layer of this model"),
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


def adapter_file(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    return write(path, LAYER, 96, 96)


def test_a_file_written_anew_is_read_anew(omnigen: OmniGen2, tmp_path: Path) -> None:
    file = adapter_file(tmp_path / "style.safetensors", 1)
    before = omnigen.generate("a circle", lora=file, **QUICK)
    was = file.stat()
    adapter_file(file, 2)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))  # as a copy that keeps times; the size is equal
    after = omnigen.generate("a circle", lora=file, **QUICK)
    assert error(after, before) > 1e-3
    other = adapter_file(tmp_path / "other.safetensors", 2)
    assert torch.equal(omnigen.generate("a circle", lora=other, **QUICK), after)


def test_names_that_differ_by_punctuation_are_two_adapters(omnigen: OmniGen2, tmp_path: Path) -> None:
    made = [
        omnigen.generate("a circle", lora=adapter_file(tmp_path / f"{name}.safetensors", seed), **QUICK)
        for seed, name in enumerate(("style_v1.0", "style_v1_0", "style-v1.0"))
    ]
    assert all(error(made[i], made[j]) > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_equal_files_are_one_adapter_and_only_those_used_last_stay_loaded(
    omnigen: OmniGen2, tmp_path: Path
) -> None:
    first = adapter_file(tmp_path / "0.safetensors", 0)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(first.read_bytes())
    assert Adapter.of(first) == Adapter.of(copy) and len({Adapter.of(first), Adapter.of(copy)}) == 1
    made = omnigen.generate("a circle", lora=first, **QUICK)
    for seed in range(1, 2 * lora.KEPT):
        omnigen.generate("a circle", lora=adapter_file(tmp_path / f"{seed}.safetensors", seed), **QUICK)
        if seed < lora.KEPT:  # used between the others, it is never the one used longest ago
            assert torch.equal(omnigen.generate("a circle", lora=copy, **QUICK), made)
    loaded = omnigen.pipeline.transformer.peft_config
    assert len(loaded) == lora.KEPT and Adapter.of(first).digest not in loaded
    layer = omnigen.pipeline.transformer.get_submodule(LAYER)
    assert set(layer.lora_A) == set(loaded), "the weights go with the name"
    assert torch.equal(omnigen.generate("a circle", lora=first, **QUICK), made)


def test_a_file_that_changes_between_asking_and_loading_is_refused(tmp_path: Path) -> None:
    asked = Adapter.of(adapter_file(tmp_path / "style.safetensors", 1))
    adapter_file(asked.path, 2)
    with pytest.raises(ValueError, match="changed after it was asked for"):
        lora.read(asked)
    asked.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"lora: style\.safetensors cannot be read"):
        lora.read(asked)


def test_pipes_folders_and_giants_are_no_adapters(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ValueError, match="not a regular file"):
        Adapter.of(tmp_path)
    (tmp_path / "pipe.safetensors").unlink()
    with pytest.raises(ValueError, match="holds 0 safetensors files"):
        Adapter.of(tmp_path)
    for name in ("a", "b"):
        adapter_file(tmp_path / f"{name}.safetensors", 1)
    with pytest.raises(ValueError, match="holds 2 safetensors files"):
        Adapter.of(tmp_path)
    with (tmp_path / "giant.safetensors").open("wb") as file:
        file.truncate(adapter.MAX_BYTES + 1)
    with pytest.raises(ValueError, match="at most"):
        Adapter.of(tmp_path / "giant.safetensors")
