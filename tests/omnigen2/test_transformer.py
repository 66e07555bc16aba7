"""The transformer against the reference, sample by sample and in mixed company."""

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from omnigen2.adapters.apply import Active
from omnigen2.adapters.file import Adapter, WeightedAdapter
from omnigen2.adapters.loaded import LoadedAdapters
from omnigen2.checkpoints.load import load_transformer
from omnigen2.network.blocks import FeedForward
from omnigen2.network.positions import rotations, sample_positions
from omnigen2.network.transformer import OmniGen2Transformer2DModel, patchify, unpatchify
from tests.omnigen2.golden import BAR, PIPELINE, ROOT, STEPS, error, keys, names, needs_steps, tensors


@pytest.fixture(scope="module")
def transformer() -> OmniGen2Transformer2DModel:
    return load_transformer(PIPELINE / "checkpoint", torch.float32).eval()


def run(
    transformer: OmniGen2Transformer2DModel,
    text: list[Tensor],
    references: list[list[Tensor]],
    latents: list[Tensor],
    timestep: Tensor,
    adapters: Active = (),
) -> list[Tensor]:
    """The velocity (C, h, w) of each sample, all of them in one forward."""
    p = transformer.config["patch_size"]
    sizes = [(x.shape[-2], x.shape[-1]) for x in latents]
    with torch.no_grad():
        batch = transformer.condition(text, references, sizes, adapters)
        out = transformer(torch.cat([patchify(x, p) for x in latents]), timestep, batch)
    parts = out.split([h * w // p**2 for h, w in sizes])
    return [unpatchify(part, (h // p, w // p), p) for part, (h, w) in zip(parts, sizes, strict=True)]


@pytest.mark.golden
def test_a_mixed_forward_equals_the_reference(transformer: OmniGen2Transformer2DModel) -> None:
    stored = tensors(PIPELINE / "transformer_forward")
    lengths = stored["text_attention_mask"].sum(1).tolist()
    text = [features[:length] for features, length in zip(stored["text_hidden_states"], lengths, strict=True)]
    references = [
        [stored[f"ref_latents.{n}.{k}"] for k in range(3) if f"ref_latents.{n}.{k}" in stored]
        for n in range(3)
    ]
    latents = [stored[f"latents.{n}"] for n in range(3)]
    for n, ours in enumerate(run(transformer, text, references, latents, stored["timestep"])):
        assert error(ours, stored[f"output.{n}"]) < BAR


@pytest.mark.golden
def test_every_token_of_a_mixed_forward_stands_where_it_did(transformer: OmniGen2Transformer2DModel) -> None:
    stored = tensors(PIPELINE / "transformer_forward")
    axes = transformer.config["axes_dim_rope"]
    lengths = stored["text_attention_mask"].sum(1).tolist()
    for n, length in enumerate(lengths):
        references = [stored[key] for key in sorted(stored) if key.startswith(f"ref_latents.{n}.")]
        sizes = [(x.shape[-2] // 2, x.shape[-1] // 2) for x in (*references, stored[f"latents.{n}"])]
        places = sample_positions(length, sizes[:-1], sizes[-1])
        turns = torch.cat([rotations(part, axes, torch.device("cpu")) for part in places])
        golden = stored["rope.joint.angle"][n, : len(turns)]
        assert error(turns, torch.stack([golden.cos(), golden.sin()], -1)) < BAR


def test_rotary_factors_are_cosine_and_sine_of_every_angle() -> None:
    axes, places = (8, 4, 12), np.concatenate(sample_positions(9, [(2, 1500), (3, 1)], (2, 5)))
    angles = [
        torch.from_numpy(places[:, axis, None]) * 10_000.0 ** -(torch.arange(0, d, 2).double() / d)
        for axis, d in enumerate(axes)
    ]
    angle = torch.cat(angles, dim=1)
    expected = torch.stack([angle.cos(), angle.sin()], dim=-1).float()
    assert torch.equal(rotations(places, axes, torch.device("cpu")), expected)


FORWARDS = [
    (name, call)
    for name in names(STEPS / "cases")
    for call in range(3)
    if f"call.{call}.output" in keys(STEPS / "cases" / name)
]


@pytest.mark.golden
@needs_steps
@pytest.mark.parametrize(("name", "call"), FORWARDS, ids=lambda value: str(value))
def test_the_first_forwards_of_every_case_equal_the_reference(name: str, call: int) -> None:
    stored = {
        key.removeprefix(f"call.{call}."): value
        for key, value in tensors(STEPS / "cases" / name).items()
        if key.startswith(f"call.{call}.")
    }
    model = load_transformer(STEPS / "tiny_omnigen2", torch.float32)
    loaded = LoadedAdapters(model, torch.device("cpu"), torch.float32)
    adapters = loaded.get([WeightedAdapter(Adapter.of(STEPS / "lora"))] if name == "t2i_lora" else [])
    latents = list(stored["hidden_states"])
    lengths = stored["text_attention_mask"].sum(1).tolist()
    text = [features[:length] for features, length in zip(stored["text_hidden_states"], lengths, strict=True)]
    references = [
        [stored[f"ref_latents.{n}.{k}"] for k in range(5) if f"ref_latents.{n}.{k}" in stored]
        for n in range(len(latents))
    ]
    ours = run(model, text, references, latents, stored["timestep"], adapters)
    assert error(torch.stack(ours), stored["output"]) < BAR


def test_parameters_are_those_of_the_published_weights() -> None:
    published = json.loads((ROOT / "full_size_parameters.json").read_text(encoding="utf-8"))
    shapes = {name: list(shape) for name, shape in published["parameters"].items()}
    with torch.device("meta"):
        full = OmniGen2Transformer2DModel(
            hidden_size=2520, num_layers=32, num_attention_heads=21, num_kv_heads=7,
            axes_dim_rope=(40, 40, 40),
            text_feat_dim=2048, timestep_scale=1000.0,
        )  # fmt: skip
    assert {name: list(parameter.shape) for name, parameter in full.named_parameters()} == shapes


def test_company_changes_nothing(transformer: OmniGen2Transformer2DModel) -> None:
    generator = torch.Generator().manual_seed(3)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    channels, features = transformer.config["in_channels"], transformer.config["text_feat_dim"]
    text = [noise(length, features) for length in (5, 31, 12, 12, 1)]
    references = [[noise(channels, 4, 6)] * count for count in (0, 1, 5, 2, 0)]
    latents = [noise(channels, h, w) for h, w in ((8, 8), (2, 20), (6, 4), (8, 8), (14, 2))]
    times = torch.tensor([0.0, 0.3, 0.99, 0.5, 0.7])
    together = run(transformer, text, references, latents, times)
    for n, ours in enumerate(together):
        alone = run(transformer, [text[n]], [references[n]], [latents[n]], times[n : n + 1])[0]
        assert error(ours, alone) < 1e-5


def test_the_order_of_references_matters(transformer: OmniGen2Transformer2DModel) -> None:
    generator = torch.Generator().manual_seed(4)
    text = torch.randn((6, transformer.config["text_feat_dim"]), generator=generator)
    first, second, latents = torch.randn((3, transformer.config["in_channels"], 4, 4), generator=generator)
    time = torch.tensor([0.5])
    ab = run(transformer, [text], [[first, second]], [latents], time)[0]
    ba = run(transformer, [text], [[second, first]], [latents], time)[0]
    assert error(ab, ba) > 1e-3


def test_gradients_reach_every_parameter_with_and_without_checkpointing() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load_transformer(PIPELINE / "checkpoint", torch.float32).train()
        if checkpointing:
            model.enable_gradient_checkpointing()
        generator = torch.Generator().manual_seed(5)
        text = torch.randn((6, model.config["text_feat_dim"]), generator=generator)
        images = list(torch.randn((5, model.config["in_channels"], 4, 4), generator=generator))
        batch = model.condition([text], [images], [(4, 4)])
        model(patchify(images[0]), torch.tensor([0.5]), batch).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    assert not [name for name, gradient in gradients[0].items() if gradient is None]
    assert all(error(gradients[1][name], gradient) < 1e-5 for name, gradient in gradients[0].items())


def test_more_references_than_the_model_knows_are_refused(transformer: OmniGen2Transformer2DModel) -> None:
    image = torch.zeros(transformer.config["in_channels"], 2, 2)
    text = torch.zeros(1, transformer.config["text_feat_dim"])
    with pytest.raises(ValueError, match="references: at most 5 images"):
        transformer.condition([text], [[image] * 6], [(2, 2)])


def test_patchify_puts_patches_row_by_row_and_comes_back() -> None:
    latents = torch.arange(2 * 4 * 6.0).reshape(2, 4, 6)
    tokens = patchify(latents)
    assert tokens.shape == (6, 8)
    assert tokens[1, :2].tolist() == [latents[0, 0, 2], latents[1, 0, 2]]
    assert torch.equal(unpatchify(tokens, (2, 3)), latents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_computed_in_place_are_those_that_training_computes(dtype: torch.dtype) -> None:
    layer = FeedForward(24, 64).to(dtype)
    x = torch.randn(7, 24).to(dtype)
    trained = layer(x)
    trained.sum().backward()
    with torch.inference_mode():
        assert torch.equal(layer(x), trained)
