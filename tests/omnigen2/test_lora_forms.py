"""Forms of LoRA files: those that are read, each as the reference's, and those that are refused, by name."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from omnigen2.adapters.file import FILE, PEFT_CONFIG, PEFT_FILE, Adapter
from omnigen2.adapters.forms import read
from omnigen2.model import OmniGen2
from tests.omnigen2.golden import PIPELINE, model

QUICK = {"steps": 2, "width": 32, "height": 32, "seed": 7, "output": "latents"}
SHAPES = {
    "layers.0.attn.to_q": (96, 96),
    "layers.0.attn.to_out.0": (96, 96),
    "layers.1.feed_forward.linear_1": (384, 96),
    "noise_refiner.0.norm1.linear": (384, 96),
}
"""Layers of the tiny model."""
RANK = 4


def matrices() -> dict[str, tuple[Tensor, Tensor]]:
    """`down` and `up` of each layer."""
    generator = torch.Generator().manual_seed(5)
    return {
        layer: (torch.randn(RANK, into, generator=generator), torch.randn(out, RANK, generator=generator))
        for layer, (out, into) in SHAPES.items()
    }


FORMS = {
    "the reference's trainer": "transformer.{layer}.lora_A.weight",
    "bare": "{layer}.lora_A.weight",
    "bare with the adapter's name": "{layer}.lora_A.default.weight",
    "another adapter's name": "transformer.{layer}.lora_A.pink.weight",
    "ai-toolkit": "diffusion_model.{layer}.lora_A.weight",
    "a checkpoint of ComfyUI": "model.diffusion_model.{layer}.lora_A.weight",
    "PEFT": "base_model.model.{layer}.lora_A.weight",
    "PEFT of a pipeline": "base_model.model.transformer.{layer}.lora_A.weight",
    "kohya": "lora_unet_{flat}.lora_down.weight",
    "kohya with dots": "diffusion_model.{layer}.lora_down.weight",
    "LyCORIS": "lycoris_{flat}.lora_down.weight",
    "lora.down": "transformer.{layer}.lora.down.weight",
    "_lora.down": "transformer.{processor}_lora.down.weight",
    "lora_linear_layer": "{layer}.lora_linear_layer.down.weight",
}
"""The key of a layer's first matrix."""


def keys(form: str, layer: str) -> tuple[str, str]:
    """The keys of a layer's two matrices."""
    before_peft = layer.replace(".to_out.0", ".to_out").replace(".attn.", ".attn.processor.")
    down = FORMS[form].format(layer=layer, flat=layer.replace(".", "_"), processor=before_peft)
    return down, down.replace("lora_A", "lora_B").replace("down", "up")


def named(form: str) -> dict[str, Tensor]:
    """The tensors of a file."""
    return {
        key: own
        for layer, sides in matrices().items()
        for key, own in zip(keys(form, layer), sides, strict=True)
    }


def layers() -> Mapping[str, tuple[int, int]]:
    from omnigen2.adapters.loaded import linear_layers

    return linear_layers(model(PIPELINE / "checkpoint").pipeline.transformer)


def products(path: Path) -> dict[str, Tensor]:
    """What an adapter adds to the weight of each layer."""
    return {name: own.up @ own.down for name, own in read(Adapter.of(path), layers()).items()}


def expected(scale: float = 1.0) -> dict[str, Tensor]:
    return {layer: scale * up @ down for layer, (down, up) in matrices().items()}


def assert_equal(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for layer, own in wanted.items():
        assert torch.allclose(found[layer], own, rtol=1e-5, atol=1e-6), layer


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_picture_of_the_reference_form(form: str, tmp_path: Path) -> None:
    omnigen: OmniGen2 = model(PIPELINE / "checkpoint")
    save_file(named("the reference's trainer"), tmp_path / FILE)
    save_file(named(form), tmp_path / "other.safetensors")
    wanted = omnigen.generate("a circle", lora=tmp_path / FILE, **QUICK)
    assert torch.equal(omnigen.generate("a circle", lora=tmp_path / "other.safetensors", **QUICK), wanted)
    assert not torch.equal(omnigen.generate("a circle", **QUICK), wanted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_precision_of_the_file_does_not_matter(dtype: torch.dtype, tmp_path: Path) -> None:
    stored = {key: own.to(dtype) for key, own in named("bare").items()}
    save_file(stored, tmp_path / FILE)
    rounded = {
        layer: up.to(dtype).float() @ down.to(dtype).float() for layer, (down, up) in matrices().items()
    }
    assert_equal(products(tmp_path / FILE), rounded)


@pytest.mark.parametrize("form", ["kohya", "bare", "_lora.down", "lora_linear_layer"])
def test_a_tensor_alpha_scales_its_layer(form: str, tmp_path: Path) -> None:
    stored = named(form)
    for layer, value in zip(SHAPES, (2.0, 8.0, 1.0, 4.0), strict=True):
        stem = keys(form, layer)[0].removesuffix(".weight").removesuffix("lora_A").removesuffix("lora_down")
        stored[f"{stem.removesuffix('down').removesuffix('.')}.alpha"] = torch.tensor(value)
    save_file(stored, tmp_path / FILE)
    wanted = {
        layer: own * value / RANK
        for (layer, own), value in zip(expected().items(), (2.0, 8.0, 1.0, 4.0), strict=True)
    }
    assert_equal(products(tmp_path / FILE), wanted)


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_alpha_beside_the_file_is_heeded_as_peft_heeds_it(tmp_path: Path, rank_stabilised: bool) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for layer, (out, into) in SHAPES.items():
                parent: Any = self
                *path, last = layer.split(".")
                for name in path:
                    if not hasattr(parent, name):
                        parent.add_module(name, nn.Module())
                    parent = getattr(parent, name)
                parent.add_module(last, nn.Linear(into, out, bias=False))

    config = LoraConfig(
        r=RANK, lora_alpha=6, alpha_pattern={"attn.to_q": 10}, use_rslora=rank_stabilised,
        target_modules=list(SHAPES), init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(3)
    base = Nested()
    kept = {layer: base.get_submodule(layer).weight.detach().clone() for layer in SHAPES}  # type: ignore
    peft: PeftModel = get_peft_model(base, config)  # type: ignore[arg-type]
    peft.save_pretrained(tmp_path)
    merged: Any = peft.merge_and_unload()
    wanted = {layer: merged.get_submodule(layer).weight.detach() - kept[layer] for layer in SHAPES}
    assert_equal(products(tmp_path), wanted)

    plain = Adapter.of(tmp_path).digest
    path = tmp_path / PEFT_CONFIG
    path.write_text(path.read_text().replace('"lora_alpha": 6', '"lora_alpha": 12'))
    assert Adapter.of(tmp_path).digest != plain, "another alpha gives another picture"
    path.unlink()
    assert Adapter.of(tmp_path).digest == Adapter.of(tmp_path / PEFT_FILE).file_digest


def test_alpha_in_the_header_is_heeded(tmp_path: Path) -> None:
    said = {"transformer.r": RANK, "transformer.lora_alpha": 2, "transformer.use_rslora": False}
    header = {"lora_adapter_metadata": json.dumps(said), "format": "pt"}
    save_file(named("the reference's trainer"), tmp_path / FILE, header)
    assert_equal(products(tmp_path / FILE), expected(2 / RANK))


def test_a_configuration_beside_another_file_says_nothing_of_it(tmp_path: Path) -> None:
    (tmp_path / PEFT_CONFIG).write_text(json.dumps({"r": RANK, "lora_alpha": 40}))
    save_file(named("bare"), tmp_path / "style.safetensors")
    assert_equal(products(tmp_path / "style.safetensors"), expected())


X = torch.zeros(2, 2)
LAYER, FLAT = "layers.0.attn.to_q", "lora_unet_layers_0_attn_to_q"
PAIR = {f"{LAYER}.lora_A.weight": torch.ones(RANK, 96), f"{LAYER}.lora_B.weight": torch.ones(96, RANK)}
REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "nothing": ({}, "is not a LoRA for the transformer; it holds nothing"),
    "other weights": ({"x.weight": X}, "is not a LoRA for the transformer; it holds x.weight"),
    "DoRA": (PAIR | {f"{LAYER}.dora_scale": X}, r"is a DoRA \(layers.0.attn.to_q.dora_scale\); only plain"),
    "DoRA of PEFT": (PAIR | {f"{LAYER}.lora_magnitude_vector.weight": X}, "is a DoRA"),
    "LoKr": ({f"{FLAT}.lokr_w1": X, f"{FLAT}.alpha": torch.tensor(1.0)}, "is a LoKr"),
    "LoHa": ({f"{FLAT}.hada_w1_a": X}, "is a LoHa"),
    "OFT": ({f"{LAYER}.oft_blocks": X}, "is an OFT"),
    "whole weights": (PAIR | {f"{LAYER}.diff": X}, "is one with whole weights"),
    "half": ({f"{LAYER}.lora_A.weight": torch.ones(RANK, 96)}, f"of {LAYER}, one of its two matrices is"),
    "two of them": (PAIR | {f"{LAYER}.lora_A.b.weight": torch.ones(RANK, 96)}, "several adapters"),
    "another size": (
        {f"{LAYER}.lora_A.weight": torch.ones(RANK, 104), f"{LAYER}.lora_B.weight": torch.ones(96, RANK)},
        r"layers\.0\.attn\.to_q was made for a layer of \(96, 104\), this model's is \(96, 96\)",
    ),
    "no rank": (PAIR | {f"{LAYER}.lora_B.weight": torch.ones(96, 3)}, "no rank in common"),
    "another depth": (
        {key.replace("layers.0", "layers.99"): own for key, own in PAIR.items()},
        r"layers\.99\.attn\.to_q is not a layer of this model",
    ),
    "text encoder": ({"lora_te_text_model.lora_down.weight": X}, "belongs to a text encoder, and is not a"),
    "not finite": (
        PAIR | {f"{LAYER}.lora_B.weight": torch.full((96, RANK), torch.inf)}, "some values are not finite",
    ),
    "no alpha": (PAIR | {f"{LAYER}.alpha": torch.ones(3)}, "the alpha of layers.0.attn.to_q is not a number"),
}  # fmt: skip


@pytest.mark.parametrize(("stored", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_adapter_is_refused_by_name(
    stored: dict[str, Tensor], message: str, tmp_path: Path
) -> None:
    save_file(stored, tmp_path / "it.safetensors")
    with pytest.raises(ValueError, match=rf"lora: it\.safetensors.*{message}"):
        read(Adapter.of(tmp_path), layers())


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "it.safetensors").write_bytes(b"junk" * 100)
    with pytest.raises(ValueError, match=r"lora: it\.safetensors is damaged or not a safetensors file"):
        read(Adapter.of(tmp_path), layers())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"use_dora": true}', "is a DoRA, by its configuration"),
        ('{"peft_type": "LOHA"}', "is of the kind LOHA"),
        ("{", "is not JSON"),
        ("[]", "is not one of PEFT's"),
        ('{"lora_alpha": "much"}', "is not a number"),
        ('{"lora_alpha": NaN}', "is not a number"),
        (" " * 2**17, "more than 65536 bytes"),
    ],
)
def test_a_configuration_of_something_else_is_refused(config: str, message: str, tmp_path: Path) -> None:
    save_file(named("bare"), tmp_path / PEFT_FILE)
    (tmp_path / PEFT_CONFIG).write_text(config)
    with pytest.raises(ValueError, match=f"lora: .*{message}"):
        read(Adapter.of(tmp_path), layers())
