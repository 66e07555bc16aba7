"""What goes into the transformer, and what comes out of the autoencoder, in every case of `steps/`."""

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from omnigen2.adapters.file import Adapter, WeightedAdapter
from omnigen2.network.autoencoder import to_pixels
from omnigen2.network.language import question_chat
from omnigen2.network.positions import rotations, sample_positions, text_positions
from tests.omnigen2.golden import (
    BAR,
    STEPS,
    described,
    error,
    keys,
    model,
    names,
    needs_steps,
    tensors,
)

pytestmark = [pytest.mark.golden, needs_steps]

EVERY = names(STEPS / "cases", approximate=True)
CASES = [name for name in EVERY if "latents.init" in keys(STEPS / "cases" / name)]
CHATS = [name for name in CASES if name.startswith("chat")]
PROMPTED = [name for name in CASES if name not in CHATS]
WITH_PICTURES = [name for name in CASES if "ref.0.pixels" in keys(STEPS / "cases" / name)]
CALLS = [
    (name, call)
    for name in CASES
    for call in range(3)
    if f"call.{call}.rope.joint" in keys(STEPS / "cases" / name)
]


def valid(stored: dict[str, Tensor], prefix: str) -> list[Tensor]:
    """The text features of each row, without padding."""
    lengths = stored[f"{prefix}.text_attention_mask"].sum(1).tolist()
    return [row[:length] for row, length in zip(stored[f"{prefix}.text_hidden_states"], lengths, strict=True)]


def pictures(case: dict[str, Any]) -> list[Image.Image]:
    """The pictures of all samples of a case, in order."""
    lists = case["images"] if isinstance(case["args"]["prompt"], list) else [case["images"]]
    return [Image.open(STEPS / "images" / f"{name}.png") for own in lists for name in own or ()]


@pytest.mark.parametrize("name", PROMPTED)
def test_prompts_become_the_features_of_the_reference(name: str) -> None:
    language = model(STEPS / "tiny_omnigen2").pipeline.language
    stored, asked = tensors(STEPS / "cases" / name), described(STEPS / "cases" / name)["args"]
    prompts = asked["prompt"] if isinstance(asked["prompt"], list) else [asked["prompt"]]
    rows = valid(stored, "call.0")
    for row, features in enumerate(rows):
        ours = language.encode(prompts[row * len(prompts) // len(rows)], 1024).features
        assert error(ours, features) < BAR
    if "negative.text_hidden_states" in stored:
        ours = language.encode(asked["negative_prompt"], 1024).features
        assert error(ours, valid(stored, "negative")[0]) < BAR


@pytest.mark.parametrize("name", CHATS)
def test_a_conversation_becomes_the_features_of_the_reference(name: str) -> None:
    language = model(STEPS / "tiny_omnigen2").pipeline.language
    case, stored = described(STEPS / "cases" / name), tensors(STEPS / "cases" / name)
    shown = pictures(case)
    assert question_chat(case["args"]["prompt"], len(shown)) == case["prompt_text"]
    inputs = language.question_inputs(shown, case["args"]["prompt"])
    with torch.no_grad():
        features = language.mllm.model(**inputs).last_hidden_state[0]
    kept = inputs["input_ids"][0] != language.mllm.config.image_token_id
    # The picture reaches the text through an 8-bit resize that differs between versions of the library.
    assert error(features[kept], valid(stored, "call.0")[0]) < (1e-2 if shown else BAR)


@pytest.mark.parametrize("name", WITH_PICTURES)
def test_pictures_become_the_latents_of_the_reference(name: str) -> None:
    autoencoder = model(STEPS / "tiny_omnigen2").pipeline.autoencoder
    case, stored = described(STEPS / "cases" / name), tensors(STEPS / "cases" / name)
    bounds = (
        case["args"].get("max_pixels", 1024 * 1024),
        case["args"].get("max_input_image_side_length", 1024),
    )
    shown = pictures(case)
    assert len(shown) == sum(key.endswith(".pixels") for key in stored)
    for index, picture in enumerate(shown):
        size = autoencoder.fit(*picture.size, *bounds)
        fitted = to_pixels(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))
        assert error(fitted, stored[f"ref.{index}.pixels"][0]) < BAR
        mean = stored[f"ref.{index}.vae_mean"][0]
        assert (
            error(autoencoder.encode(picture, *bounds), (mean - autoencoder.shift) * autoencoder.scale) < BAR
        )


@pytest.mark.parametrize("name", CASES)
def test_the_last_latents_become_the_picture_of_the_reference(name: str) -> None:
    autoencoder = model(STEPS / "tiny_omnigen2").pipeline.autoencoder
    stored = tensors(STEPS / "cases" / name)
    last = max(key for key in stored if key.startswith("step.") and key.endswith(".latents"))
    for latents, golden in zip(stored[last], stored["image"], strict=True):
        ours = to_pixels(autoencoder.decode(latents, (golden.shape[-1], golden.shape[-2]))) / 2 + 0.5
        assert (ours - golden).abs().max() < 0.5 / 255 + 1e-4  # rounded to 8 bits


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_every_token_stands_where_it_stood_in_the_reference(name: str, call: int) -> None:
    transformer = model(STEPS / "tiny_omnigen2").pipeline.transformer
    stored = {
        key.removeprefix(f"call.{call}."): value
        for key, value in tensors(STEPS / "cases" / name).items()
        if key.startswith(f"call.{call}.")
    }
    patch, axes = transformer.config["patch_size"], transformer.config["axes_dim_rope"]

    def turn(places: Any) -> Tensor:
        return rotations(places, axes, torch.device("cpu"))

    for n, length in enumerate(stored["text_attention_mask"].sum(1).tolist()):
        references = [stored[key] for key in sorted(stored) if key.startswith(f"ref_latents.{n}.")]
        grids = [(x.shape[-2] // patch, x.shape[-1] // patch) for x in references]
        h, w = stored["hidden_states"].shape[-2:]
        parts = [turn(part) for part in sample_positions(length, grids, (h // patch, w // patch))]
        joint = torch.cat(parts)
        assert error(joint, stored["rope.joint"][n, : len(joint)]) < BAR
        assert error(turn(text_positions(length)), stored["rope.context"][n, :length]) < BAR
        assert error(parts[-1], stored["rope.noise"][n, : len(parts[-1])]) < BAR
        if references:
            own = torch.cat(parts[1:-1])
            assert error(own, stored["rope.ref"][n, : len(own)]) < BAR


@pytest.mark.parametrize(("name", "call"), CALLS)
def test_refined_captions_are_those_of_the_reference(name: str, call: int) -> None:
    pipeline = model(STEPS / "tiny_omnigen2").pipeline
    wanted = [WeightedAdapter(Adapter.of(STEPS / "lora"))] if name == "t2i_lora" else []
    adapters, transformer = pipeline.adapters.get(wanted), pipeline.transformer
    stored = tensors(STEPS / "cases" / name)
    text = valid(stored, f"call.{call}")
    with torch.no_grad():
        conditions = transformer.conditions(text, [[]] * len(text), [(2, 2)] * len(text), adapters)
    for condition, golden in zip(conditions, stored[f"call.{call}.context_refined"], strict=True):
        assert error(condition.text, golden[: len(condition.text)]) < BAR
