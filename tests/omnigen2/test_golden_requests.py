"""Whole requests through the public API, against the reference: latents of every step, and the picture."""

import pytest
import torch
from PIL import Image
from torch import Tensor

from omnigen2.network.autoencoder import to_pixels
from omnigen2.network.language import Caption
from tests.omnigen2.golden import BAR, PIPELINE, STEPS, described, error, model, names, needs_steps, tensors

PIPELINE_CASES = names(PIPELINE, "pipeline_")
STEP_CASES = [
    name for name in names(STEPS / "cases") if not name.startswith(("chat_text", "schedulers", "transport"))
]


MEMORY = ("resident", "offload", "stream", "ahead")
_exact: dict[str, Tensor] = {}


def equals_resident(name: str, latents: Tensor) -> None:
    """Every mode gives the same bits as the first one, `resident`."""
    assert torch.equal(latents, _exact.setdefault(name, latents))


@pytest.mark.golden
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", PIPELINE_CASES)
def test_a_request_ends_where_the_reference_ends(name: str, memory: str) -> None:
    omnigen = model(PIPELINE / "checkpoint", memory)
    stored, case = tensors(PIPELINE / name), described(PIPELINE / "cases")["cases"][name]
    images = [Image.open(PIPELINE / "images" / image) for image in case["images"]]
    arguments = {
        "images": images,
        "negative_prompt": case["negative_prompt"],
        "width": case.get("width"),
        "height": case.get("height"),
        "steps": case["num_inference_steps"],
        "noise": stored["noise"],
        "text_guidance_scale": case["text_guidance_scale"],
        "image_guidance_scale": case.get("image_guidance_scale"),
        "cfg_range": tuple(case.get("cfg_range", (0.0, 1.0))),
        "scheduler": case["scheduler"],
        "max_pixels": case["max_pixels"],
        "max_input_side": case["max_input_image_side_length"],
    }
    latents = omnigen.generate(case["prompt"], **arguments, output="latents")
    assert error(latents, stored["final_latents"]) < BAR
    equals_resident(name, latents)
    pictures = omnigen.generate(case["prompt"], **arguments)
    ours = torch.stack([to_pixels(picture) for picture in pictures]) / 2 + 0.5
    assert (ours - stored["image"]).abs().max() < 1 / 255 + 1e-3


@pytest.mark.golden
@needs_steps
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("name", STEP_CASES)
def test_every_step_is_where_the_reference_was(
    name: str, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    omnigen = model(STEPS / "tiny_omnigen2", memory)
    stored, case = tensors(STEPS / "cases" / name), described(STEPS / "cases" / name)
    asked = case["args"]
    several = isinstance(asked["prompt"], list)
    images = _open(case["images"] if several else [case["images"]])
    _show_sampled_references(omnigen, stored, monkeypatch)
    if name.startswith("chat"):  # conditioned on a conversation, which is no request of ours
        features = {
            True: stored["call.0.text_hidden_states"][0],
            False: stored["negative.text_hidden_states"][0],
        }
        monkeypatch.setattr(
            omnigen.pipeline,
            "caption",
            lambda text, limits: Caption(features[text == asked["prompt"]], cut=False),
        )
    aligned = asked.get("align_res", True) and len(images) == 1 and len(images[0]) == 1
    steps: list[Tensor] = []
    latents = omnigen.generate(
        asked["prompt"],
        images if several else images[0],
        negative_prompt=asked["negative_prompt"],
        width=None if aligned else asked["width"],
        height=None if aligned else asked["height"],
        steps=asked["num_inference_steps"],
        noise=stored["latents.init"],
        text_guidance_scale=asked["text_guidance_scale"],
        image_guidance_scale=asked["image_guidance_scale"],
        cfg_range=tuple(asked.get("cfg_range", (0.0, 1.0))),
        scheduler="dpmsolver++" if "dpm" in case.get("scheduler", "euler") else "euler",
        lora=STEPS / "lora" if case.get("lora") else None,
        max_pixels=asked.get("max_pixels"),
        max_input_side=asked.get("max_input_image_side_length"),
        output="latents",
        on_step=lambda index, total, latents: steps.append(latents),
    )
    assert len(steps) == asked["num_inference_steps"]
    for index, ours in enumerate(steps):
        assert error(ours, stored[f"step.{index:02d}.latents"]) < BAR
    assert torch.equal(latents, steps[-1])
    if memory in MEMORY:
        equals_resident(name, latents)


@pytest.mark.golden
@needs_steps
@pytest.mark.parametrize("name", STEP_CASES)
def test_every_step_is_there_by_compiled_code(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor's own code does the same: `python -m benchmarks.compiled`."""
    test_every_step_is_where_the_reference_was(name, "compiled", monkeypatch)


def _open(names: "list[list[str] | None]") -> list[list[Image.Image]]:
    return [[Image.open(STEPS / "images" / f"{name}.png") for name in own or ()] for own in names]


def _show_sampled_references(
    omnigen: object, stored: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference samples the latents of reference images; these cases store what it drew."""
    drawn = iter(
        [
            [
                stored[f"call.0.ref_latents.{n}.{k}"]
                for k in range(5)
                if f"call.0.ref_latents.{n}.{k}" in stored
            ]
            for n in range(len(stored["latents.init"]))
        ]
    )
    monkeypatch.setattr(omnigen.pipeline, "encode_references", lambda images, limits: next(drawn))  # type: ignore
