"""What `generate` and `describe` promise their callers."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import omnigen2
from omnigen2.checkpoints.card import read_card
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
        assert torch.equal(together[index], alone[0])


def test_several_prompts_with_several_pictures_each_are_right(omnigen: OmniGen2) -> None:
    together = omnigen.generate(["a circle", "a star"], num_images=2, **QUICK, output="latents")
    alone = [
        omnigen.generate(prompt, num_images=2, **QUICK, output="latents") for prompt in ("a circle", "a star")
    ]
    assert torch.equal(together, torch.cat(alone))


def test_each_of_several_pictures_can_be_made_alone(omnigen: OmniGen2) -> None:
    both = omnigen.generate("a circle", num_images=2, **QUICK, output="latents")
    second = omnigen.generate("a circle", **QUICK | {"seed": QUICK["seed"] + 1}, output="latents")
    assert torch.equal(both[1], second[0])
    assert error(both[0], both[1]) > 0.1


@pytest.mark.parametrize("case", MIXED, ids=lambda case: case[0][:12])
def test_equal_requests_give_equal_pictures(omnigen: OmniGen2, case: Any) -> None:
    prompt, images, asked = case
    first, again = (omnigen.generate(prompt, images, steps=3, seed=5, **asked) for _ in range(2))
    assert first.seed == again.seed == 5
    assert first[0].tobytes() == again[0].tobytes()


def test_an_edit_has_the_size_of_its_input(omnigen: OmniGen2) -> None:
    assert omnigen.generate("make it green", [picture(40, 56)], steps=1)[0].size == (40, 56)
    within = omnigen.generate("make it green", [picture(40, 56)], steps=1, max_input_side=40)
    assert within[0].size == (16, 32), "as the reference, which has bounds and enlarges no edit"
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
    ({"width": 0}, r"width: must be a whole number from 16 to 4096 \(given: 0\)"),
    ({"height": -5}, "height: "),
    ({"width": 5000, "height": 5000}, "width: .*4096"),
    ({"width": "wide"}, "width: "),
    ({"steps": 0}, "steps: "),
    ({"scheduler": "ddim"}, "scheduler: .*euler or dpmsolver"),
    ({"speed": "warp"}, "speed: .*exact"),
    ({"cfg_range": (0.9, 0.1)}, "cfg_range"),
    ({"seed": -1}, "seed: "),
    ({"images": [Image.new("RGB", (16, 16))] * 6}, "images: 6 given; at most 5"),
    ({"images": ["cat.png"]}, "images: str given"),
    ({"images": Image.new("RGB", (16, 16))}, "images: Image given; it must be a list"),
    ({"images": [Image.new("RGB", (15, 300))]}, "images: 15 x 300 pixels leaves a side under 16"),
    ({"images": [Image.new("RGB", (0, 5))]}, "images: an image of 0 x 5 pixels is empty"),
    ({"prompt": ["a", "b"], "images": [Image.new("RGB", (16, 16))] * 2}, "images: Image given"),
    ({"prompt": ["a", "b"], "images": [[]]}, "images: 1 lists given for 2 prompts"),
    ({"prompt": "half a pair \ud800"}, "prompt: the character at 12"),
    ({"negative_prompt": "\ud800"}, "negative_prompt: "),
    ({"noise": torch.full((1, 16, 4, 4), torch.nan)}, "noise: some values are not finite"),
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


def test_prompts_need_no_pictures_and_noise_gives_the_size(omnigen: OmniGen2) -> None:
    assert len(omnigen.generate(["a", "b"], None, **QUICK)) == 2
    assert len(omnigen.generate(["a", "b"], [None, [picture()]], **QUICK)) == 2
    noise = torch.randn((2, 16, 4, 6), generator=torch.Generator().manual_seed(2))
    assert [image.size for image in omnigen.generate("a", noise=noise, steps=1)] == [(48, 32)] * 2
    assert omnigen.generate("a", noise=noise.numpy(), steps=1, output="latents").shape == noise.shape


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
    with pytest.raises(ValueError, match="images: absolute aspect ratio must be smaller than 200"):
        omnigen.describe([picture(1, 400)], "which?")


def test_a_question_cannot_smuggle_in_a_picture(omnigen: OmniGen2) -> None:
    shown = [picture(64, 64)]
    plain = omnigen.describe(shown, "what is  this?", max_tokens=4)
    assert omnigen.describe(shown, "what is <|image_pad|> this?", max_tokens=4) == plain


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


def rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])


def lie(copy: Path) -> None:
    card = read_card(copy, "x").model_copy(update={"digest": "sha256:" + "0" * 64})
    (copy / "card.json").write_text(card.model_dump_json())


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda copy: truncate(weights_of(copy / "transformer")),
    "no weights": lambda copy: weights_of(copy / "mllm").unlink(),
    "only a variant": lambda copy: weights_of(copy / "vae").rename(
        copy / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    ),
    "no config": lambda copy: (copy / "mllm" / "config.json").unlink(),
    "another's config": lambda copy: (copy / "mllm" / "config.json").write_text("{}"),
    "not JSON": lambda copy: (copy / "vae" / "config.json").write_text("{"),
    "no tokenizer": lambda copy: (copy / "processor" / "tokenizer.json").unlink(),
    "another's pictures": lambda copy: rewrite(copy / "processor" / "preprocessor_config.json", patch_size=7),
    "no card": lambda copy: (copy / "card.json").write_text("{}"),
    "another digest": lie,
}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("truncated", r"diffusion_pytorch_model\.safetensors is damaged .* fetch it again"),
        ("no weights", "mllm holds no safetensors file"),
        ("only a variant", r"vae has neither diffusion_pytorch_model\.safetensors nor"),
        ("no config", r"mllm/config\.json cannot be read"),
        ("another's config", r"mllm do not fit its config\.json: it needs [0-9,]+ values"),
        ("not JSON", r"vae/config\.json is not JSON"),
        ("no tokenizer", r"do not fit: processor: id of <\|image_pad\|>"),
        ("another's pictures", "processor: patch_size is 7, mllm: vision patch_size is 14"),
        ("no card", r"card\.json is not a valid model card: title: is missing"),
        ("another digest", r"its card\.json says sha256:0000"),
    ],
)
def test_a_damaged_checkpoint_is_refused_with_what_is_wrong(copy: Path, what: str, message: str) -> None:
    DAMAGES[what](copy)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        omnigen2.load(str(copy))


def test_half_precision_files_are_computed_in_full_on_a_cpu(copy: Path) -> None:
    whole = omnigen2.load(str(copy))
    for part, module in (
        ("transformer", whole.pipeline.transformer),
        ("vae", whole.pipeline.autoencoder.vae),
        ("mllm", whole.pipeline.language.mllm),
    ):
        module.half().save_pretrained(copy / part)
    loaded = omnigen2.load(str(copy)).pipeline
    for part in (loaded.transformer, loaded.autoencoder.vae, loaded.language.mllm):
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}
    assert torch.equal(
        loaded.transformer.x_embedder.weight, whole.pipeline.transformer.x_embedder.weight.float()
    )


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
