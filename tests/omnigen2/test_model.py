"""What `generate` and `describe` promise their callers."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import omnigen2
from omnigen2.model import OmniGen2
from tests.omnigen2.golden import PIPELINE, error, model

FOLDER = PIPELINE / "checkpoint"
QUICK = {"steps": 3, "width": 32, "height": 32, "seed": 7}


@pytest.fixture(scope="module")
def omnigen() -> OmniGen2:
    return model(FOLDER)


def picture(width: int = 32, height: int = 48, seed: int = 0) -> Image.Image:
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(noise.byte().numpy())


MIXED: list[tuple[str, list[Image.Image], dict[str, Any]]] = [
    ("a red circle", [], {"width": 32, "height": 48, "text_guidance_scale": 4.0}),
    ("make it green", [picture()], {"text_guidance_scale": 5.0, "image_guidance_scale": 2.0}),
    ("both, side by side", [picture(48, 32), picture(16, 64, 1)], {"width": 64, "height": 32}),
    (
        "a blue star, very small, at the lower left",
        [],
        {"width": 48, "height": 16, "text_guidance_scale": 1.0},
    ),
    (
        "all",
        [picture(seed=n) for n in range(5)],
        {"width": 32, "height": 32, "cfg_range": (0.2, 0.6), "scheduler": "dpmsolver++"},
    ),
]


def test_pictures_of_one_call_are_those_of_several(omnigen: OmniGen2) -> None:
    prompts = ["a red circle", "make it green", "both"]
    images = [[], [picture(32, 32)], [picture(16, 64), picture(48, 32)]]
    together = omnigen.generate(prompts, images, **QUICK, output="latents")
    for index, (prompt, own) in enumerate(zip(prompts, images, strict=True)):
        alone = omnigen.generate(prompt, own, **QUICK, output="latents")
        assert error(together[index], alone[0]) < 1e-5


def test_several_prompts_with_several_pictures_each_are_right(omnigen: OmniGen2) -> None:
    together = omnigen.generate(["a circle", "a star"], num_images=2, **QUICK, output="latents")
    alone = [
        omnigen.generate(prompt, num_images=2, **QUICK, output="latents") for prompt in ("a circle", "a star")
    ]
    assert error(together, torch.cat(alone)) < 1e-5


def test_each_of_several_pictures_can_be_made_alone(omnigen: OmniGen2) -> None:
    both = omnigen.generate("a circle", num_images=2, **QUICK, output="latents")
    second = omnigen.generate("a circle", **QUICK | {"seed": QUICK["seed"] + 1}, output="latents")
    assert error(both[1], second[0]) < 1e-5
    assert error(both[0], both[1]) > 0.1


@pytest.mark.parametrize("case", MIXED, ids=lambda case: case[0][:12])
def test_equal_requests_give_equal_pictures(omnigen: OmniGen2, case: Any) -> None:
    prompt, images, asked = case
    first, again = (omnigen.generate(prompt, images, steps=3, seed=5, **asked) for _ in range(2))
    assert first.seed == again.seed == 5
    assert first[0].tobytes() == again[0].tobytes()


def test_an_edit_has_the_size_of_its_input(omnigen: OmniGen2) -> None:
    assert omnigen.generate("make it green", [picture(40, 56)], steps=1)[0].size == (32, 48)
    assert omnigen.generate("make it green", [picture(32, 64)], steps=1, width=64)[0].size == (64, 128)
    assert omnigen.generate("make it green", [picture(32, 64)], steps=1, height=32)[0].size == (16, 32)


def test_a_drawn_seed_is_told_and_repeats_the_picture(omnigen: OmniGen2) -> None:
    first = omnigen.generate("a circle", steps=2, width=32, height=32)
    again = omnigen.generate("a circle", steps=2, width=32, height=32, seed=first.seed)
    assert first[0].tobytes() == again[0].tobytes()


def test_image_guidance_without_text_guidance_contrasts_with_no_image(omnigen: OmniGen2) -> None:
    def edit(**scales: float) -> torch.Tensor:
        return omnigen.generate("make it green", [picture(32, 32)], **QUICK, **scales, output="latents")

    plain = edit(text_guidance_scale=1.0, image_guidance_scale=1.0)
    assert error(edit(text_guidance_scale=1.0, image_guidance_scale=2.0), plain) > 1e-2
    assert error(edit(text_guidance_scale=0.0, image_guidance_scale=0.5), plain) < 1e-6


def test_a_listener_is_told_every_step_and_may_cancel(omnigen: OmniGen2) -> None:
    seen: list[tuple[int, int]] = []

    def listen(index: int, total: int, latents: torch.Tensor) -> None:
        assert latents.shape == (1, 16, 4, 4)
        seen.append((index, total))
        if index == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        omnigen.generate("a circle", **QUICK | {"steps": 9}, on_step=listen)
    assert seen == [(0, 9), (1, 9)]


def test_a_long_prompt_is_cut_and_the_result_says_so(omnigen: OmniGen2) -> None:
    pictures = omnigen.generate("a red circle " * 500, **QUICK)
    assert any("longer than 1024 tokens" in note for note in pictures.notes)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ""}, "prompt: '' given"),
    ({"prompt": "  \n"}, "prompt: "),
    ({"prompt": 3}, "prompt: "),
    ({"width": 0}, r"width: .*greater than or equal to 16 \(given: 0\)"),
    ({"height": -5}, "height: "),
    ({"width": 5000, "height": 5000}, "width: .*4096"),
    ({"width": "wide"}, "width: "),
    ({"steps": 0}, "steps: "),
    ({"scheduler": "ddim"}, "scheduler: .*'euler' or 'dpmsolver"),
    ({"speed": "warp"}, "speed: .*'exact'"),
    ({"cfg_range": (0.9, 0.1)}, "cfg_range"),
    ({"seed": -1}, "seed: "),
    ({"images": [Image.new("RGB", (16, 16))] * 6}, "images: 6 given; at most 5"),
    ({"images": ["cat.png"]}, "images: str given"),
    ({"noise": torch.zeros(1, 16, 3, 3)}, "noise: shape"),
    ({"noise": torch.zeros(16)}, "noise: shape"),
    ({"output": "png"}, "output: 'png' is unknown; allowed: pil, latents"),
    ({"lora": "/nowhere"}, "lora: "),
]


@pytest.mark.parametrize(("wrong", "message"), WRONG, ids=lambda value: str(value)[:30])
def test_bad_input_is_named_with_what_is_allowed(
    omnigen: OmniGen2, wrong: dict[str, Any], message: str
) -> None:
    asked = {"prompt": "a circle", "steps": 1, "width": 32, "height": 32} | wrong
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        omnigen.generate(asked.pop("prompt"), asked.pop("images", ()), **asked)


def test_a_broken_image_is_refused(omnigen: OmniGen2) -> None:
    whole = io.BytesIO()
    picture(64, 64).save(whole, "PNG")
    broken = Image.open(io.BytesIO(whole.getvalue()[:900]))
    with pytest.raises(ValueError, match="images: an image cannot be read"):
        omnigen.generate("make it green", [broken], steps=1)


def test_questions_are_answered_about_several_images(omnigen: OmniGen2) -> None:
    images = [picture(64, 64), picture(56, 112)]
    assert omnigen.describe(images, "which has a circle?", max_tokens=5) == omnigen.describe(
        images, "which has a circle?", max_tokens=5
    )
    with pytest.raises(ValueError, match="question: '' given"):
        omnigen.describe(images, "")
    with pytest.raises(ValueError, match="images: 6 given"):
        omnigen.describe([picture()] * 6, "which?")
    with pytest.raises(ValueError, match="max_tokens: "):
        omnigen.describe(images, "which?", max_tokens=0)


# -- checkpoints ---


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FOLDER, tmp_path / "model"))


def weights_of(part: Path) -> Path:
    return next(part.glob("*.safetensors"))


@pytest.mark.parametrize("part", ["transformer", "vae", "mllm"])
def test_wrong_weights_are_named(copy: Path, part: str) -> None:
    file = weights_of(copy / part)
    weights = load_file(file)
    matrices = sorted(name for name, tensor in weights.items() if tensor.ndim == 2)
    missing, misshapen = matrices[0], matrices[1]
    del weights[missing]
    weights["something.else"] = torch.zeros(3)
    weights[misshapen] = weights[misshapen][:-1].clone()
    save_file(weights, file, {"format": "pt"})
    with pytest.raises(ValueError) as raised:
        omnigen2.load(str(copy))
    for problem in ("missing", "surplus something.else", "misshapen"):
        assert problem in str(raised.value)


def test_weights_may_lie_in_several_shards(copy: Path) -> None:
    whole = omnigen2.load(str(copy))
    for part, kind in (("transformer", whole.pipeline.transformer), ("mllm", whole.pipeline.language.mllm)):
        weights_of(copy / part).unlink()
        kind.save_pretrained(copy / part, max_shard_size="300KB")
        assert len(list((copy / part).glob("*.safetensors"))) > 1
    pictures = [m.generate("a circle", **QUICK, output="latents") for m in (whole, omnigen2.load(str(copy)))]
    assert torch.equal(*pictures)


def test_code_in_a_checkpoint_is_never_run(copy: Path) -> None:
    trap = "raise SystemExit('the code of a checkpoint was run')"
    for part in ("transformer", "scheduler", "mllm", "processor", "."):
        (copy / part).mkdir(exist_ok=True)
        (copy / part / "transformer_omnigen2.py").write_text(trap)
        config = copy / part / "config.json"
        if config.is_file():
            said = json.loads(config.read_text()) | {"auto_map": {"AutoModel": "transformer_omnigen2.Trap"}}
            config.write_text(json.dumps(said))
    (copy / "model_index.json").write_text(json.dumps({"transformer": ["transformer_omnigen2", "Trap"]}))
    (copy / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"not weights")
    assert omnigen2.load(str(copy)).generate("a circle", **QUICK)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="transformer, vae, mllm, processor"):
        omnigen2.load(str(tmp_path))


def test_an_unknown_device_or_dtype_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="device: 'abacus' is unknown; allowed: auto, cpu, cuda"):
        omnigen2.load(str(FOLDER), device="abacus")
    with pytest.raises(ValueError, match="dtype: 'int3' is unknown; allowed: auto, float32"):
        omnigen2.load(str(FOLDER), dtype="int3")


def test_half_precision_stays_close(omnigen: OmniGen2) -> None:
    half = omnigen2.load(str(FOLDER), dtype="bfloat16")
    exact, rough = (m.generate("a circle", **QUICK, output="latents") for m in (omnigen, half))
    assert rough.dtype == torch.float32
    assert error(rough, exact) < 5e-2
