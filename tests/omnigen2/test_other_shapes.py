"""Checkpoints of any shape: compared with a plain second implementation, and with themselves in company."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import omnigen2
from omnigen2.completion import complete_sampling
from omnigen2.denoise import Denoiser
from omnigen2.model import OmniGen2
from omnigen2.network.language import generation_chat
from omnigen2.network.transformer import OmniGen2Transformer2DModel, patchify, unpatchify
from omnigen2.params import ReferenceSampling
from omnigen2.task import ImageTask
from tests.omnigen2 import naive
from tests.omnigen2.checkpoints import SHAPES, make
from tests.omnigen2.golden import error

PROMPTS = ("ein roter Kreis", "круг", "青い三角形を左に", "🟦🔺", "a circle " * 9, "ⅷ <|vision_start|> {{x}}")


@pytest.fixture(scope="module", params=SHAPES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OmniGen2]:
    folder: Path = tmp_path_factory.mktemp("other") / "model"
    yield omnigen2.load(str(make(SHAPES[request.param], folder)), device="cpu", dtype="float32")


def picture(chance: random.Random, least: int, most: int) -> Image.Image:
    size = (chance.randint(least, most), chance.randint(least, most))
    mode = chance.choice(["RGB", "RGBA", "LA", "P", "L", "CMYK", "1"])
    pixels = torch.randint(0, 256, (size[1], size[0], 4), generator=torch.Generator().manual_seed(size[0]))
    return Image.fromarray(pixels.byte().numpy(), "RGBA").convert(mode)


def captioned(model: OmniGen2, prompt: str) -> Tensor:
    ids = model.pipeline.language.tokenizer(generation_chat(prompt), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model.pipeline.language.mllm(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]


def encoded(model: OmniGen2, image: Image.Image) -> Tensor:
    vae = model.pipeline.autoencoder.vae
    levels = torch.tensor(list(image.tobytes())).reshape(1, image.height, image.width, 3)
    with torch.no_grad():
        raw = vae.encode(levels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean[0]  # type: ignore
    return (raw - (vae.config["shift_factor"] or 0)) * vae.config["scaling_factor"]


@pytest.mark.parametrize(
    ("images", "text", "image"), [(0, 3.0, 1.0), (1, 4.0, 1.5), (3, 2.0, 3.0), (1, 1.0, 2.0)]
)
def test_a_request_ends_where_the_plain_implementation_ends(
    model: OmniGen2, images: int, text: float, image: float
) -> None:
    pipeline, steps = model.pipeline, 3
    side, config = pipeline.autoencoder.multiple, pipeline.transformer.config
    sizes = [(2 * side, side), (side, side), (side, 3 * side)][:images]
    shown = [Image.effect_noise(size, 80 + n).convert("RGB") for n, size in enumerate(sizes)]
    width, height = 3 * side, 2 * side
    factor = pipeline.autoencoder.factor
    noise = torch.randn((1, config["in_channels"], height // factor, width // factor),
                        generator=torch.Generator().manual_seed(1))  # fmt: skip
    ours = model.generate(
        PROMPTS[1], shown, negative_prompt="平ら", width=width, height=height, steps=steps, noise=noise,
        text_guidance_scale=text, image_guidance_scale=image, output="latents",
    )  # fmt: skip
    prompt, negative = captioned(model, PROMPTS[1]), captioned(model, "平ら")
    references = [encoded(model, one) for one in shown]
    weights = pipeline.transformer.state_dict()

    def predict(x: Tensor, time: float, index: int) -> Tensor:
        full, half, bare = (
            naive.velocity(weights, config, *seen, x, time)
            for seen in ((prompt, references), (negative, references), (negative, []))
        )
        if references and image > 1:
            return bare + image * (half - bare) + text * (full - half)
        return bare + text * (full - bare) if text > 1 else full

    assert error(ours[0], naive.euler(predict, noise[0], steps)) < 1e-5


def test_width_beyond_that_of_the_time_embedding() -> None:
    """From 1024 channels on, the time embedding has 1024; the full model is that wide."""
    torch.manual_seed(0)
    wide = OmniGen2Transformer2DModel(
        in_channels=4,
        hidden_size=1056,
        num_layers=1,
        num_refiner_layers=0,
        num_attention_heads=11,
        num_kv_heads=1,
        axes_dim_rope=(32, 32, 32),
        ffn_dim_multiplier=0.01,
        multiple_of=8,
        text_feat_dim=16,
        timestep_scale=1000.0,
    ).eval()
    text, latents = torch.randn(5, 16), torch.randn(4, 4, 6)
    with torch.no_grad():
        batch = wide.condition([text], [[]], [(4, 6)])
        ours = unpatchify(wide(patchify(latents), torch.tensor([0.3]), batch), (2, 3))
    assert error(ours, naive.velocity(wide.state_dict(), wide.config, text, [], latents, 0.3)) < 1e-5


def some_task(model: OmniGen2, chance: random.Random) -> ImageTask:
    side = model.pipeline.autoencoder.multiple
    images = tuple(picture(chance, side, 5 * side) for _ in range(chance.choice([0, 0, 1, 1, 2, 3, 5])))
    asked: dict[str, Any] = {
        "steps": chance.randint(1, 7),
        "seed": chance.randint(0, 99),
        "num_images": chance.choice([1, 1, 2]),
        "text_guidance_scale": chance.choice([0.0, 1.0, 2.0, 5.0]),
        "image_guidance_scale": chance.choice([0.0, 1.0, 2.0, 3.0]),
        "cfg_range": chance.choice([(0.0, 1.0), (0.3, 0.7), (0.0, 0.0), (0.9, 1.0)]),
        "scheduler": chance.choice(["euler", "dpmsolver++"]),
        "speed": chance.choice(["exact", "exact", "balanced", "fast"]),
    }
    if len(images) != 1 or chance.random() < 0.3:
        asked |= {"width": chance.randint(16, 5 * side + 16), "height": chance.randint(16, 5 * side + 16)}
    sampling = ReferenceSampling.model_validate(asked)
    completed = complete_sampling(sampling, [image.size for image in images], model.card)
    return ImageTask(chance.choice(PROMPTS), images, completed.params)


@pytest.mark.parametrize("seed", range(3))
def test_any_mixture_gives_what_each_gives_alone(model: OmniGen2, seed: int) -> None:
    """Pictures of all sizes, references, guidance and samplers, which join and leave at different steps."""
    chance = random.Random(seed)
    tasks = [some_task(model, chance) for _ in range(6)]
    denoiser, together = Denoiser(model.pipeline.transformer), []
    for task in tasks:
        joining = model.pipeline.prepare(task)[0]
        together.append(joining)
        denoiser.add(joining)
        denoiser.step()
    while denoiser.samples:
        denoiser.step()
    for task, samples in zip(tasks, together, strict=True):
        alone = model.pipeline.prepare(task)[0]
        for one, other in zip(samples, alone, strict=True):
            single = Denoiser(model.pipeline.transformer)
            single.add([other])
            while single.samples:
                single.step()
            assert torch.equal(one.tokens, other.tokens)


def test_every_ability_works(model: OmniGen2) -> None:
    chance = random.Random(7)
    side = model.pipeline.autoencoder.multiple
    size = {"width": 37, "height": 2 * side + 19}
    for count in range(6):
        images = [picture(chance, side, 4 * side) for _ in range(count)]
        made = model.generate(PROMPTS[count], images, steps=2, seed=1, **size)
        assert made[0].size == (size["width"], size["height"])
        if count:
            shown = [image.convert("RGB").resize((40, 56)) for image in images]
            assert isinstance(model.describe(shown, "что это?", max_tokens=3), str)
