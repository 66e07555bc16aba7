"""The full-size model with random weights: seconds per step, peak memory, and bfloat16 against float32.

    python -m benchmarks.full_size                  # on a GPU, 1024 x 1024
    python -m benchmarks.full_size --tiny           # the same code on any machine, with tiny parts

Random weights cost what trained ones cost. Prints one JSON object per measurement.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from omnigen2.autoencoder import Autoencoder
from omnigen2.checkpoints.card import published_card
from omnigen2.denoise import Denoiser
from omnigen2.language import LanguageModel
from omnigen2.model import OmniGen2
from omnigen2.params import ReferenceSampling
from omnigen2.pipeline import Pipeline
from omnigen2.task import ImageTask
from omnigen2.transformer import OmniGen2Transformer2DModel

TOKENIZER = Path(__file__).parents[1] / "tests" / "data" / "golden" / "pipeline" / "checkpoint" / "processor"
FULL_TRANSFORMER = {
    "hidden_size": 2520,
    "num_layers": 32,
    "num_attention_heads": 21,
    "num_kv_heads": 7,
    "axes_dim_rope": (40, 40, 40),
    "text_feat_dim": 2048,
    "timestep_scale": 1000.0,
}
TINY_TRANSFORMER = FULL_TRANSFORMER | {
    "hidden_size": 72,
    "num_layers": 2,
    "num_attention_heads": 3,
    "num_kv_heads": 1,
    "axes_dim_rope": (8, 8, 8),
    "text_feat_dim": 64,
    "multiple_of": 32,
}
QWEN_3B = {
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "vocab_size": 151_936,
    "tie_word_embeddings": True,
}
TINY_QWEN = QWEN_3B | {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
    "vocab_size": 512,
}
QWEN_3B_VISION = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 2048}
TINY_VISION = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 64, "out_hidden_size": 64}
FLUX_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "norm_num_groups": 32,
}
TINY_VAE = {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}


def build(tiny: bool, device: torch.device, dtype: torch.dtype) -> OmniGen2:
    """A model with random weights, of the published sizes or tiny."""
    torch.manual_seed(0)
    with _defaults(device, dtype):
        transformer = OmniGen2Transformer2DModel(**(TINY_TRANSFORMER if tiny else FULL_TRANSFORMER)).eval()
        vae = AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=16,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
            **(TINY_VAE if tiny else FLUX_VAE),  # pyright: ignore
        ).eval()
        vision = TINY_VISION if tiny else QWEN_3B_VISION
        config = Qwen2_5_VLConfig(text_config=TINY_QWEN if tiny else QWEN_3B, vision_config=vision)
        mllm = Qwen2_5_VLForConditionalGeneration(config).eval()
    language = LanguageModel(
        mllm.to(device, dtype),
        AutoTokenizer.from_pretrained(TOKENIZER),
        Qwen2VLImageProcessorPil.from_pretrained(TOKENIZER),
    )
    autoencoder = Autoencoder(vae, transformer.config["patch_size"])
    return OmniGen2(Pipeline(transformer, autoencoder, language, published_card("random weights")))


@contextlib.contextmanager
def _defaults(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


def measure(
    model: OmniGen2, name: str, references: int, side: int, steps: int, speed: str
) -> dict[str, object]:
    """Times of the stages of one request, in seconds, and the peak of memory in GB."""
    pipeline, device = model.pipeline, model.pipeline.transformer.device
    images = tuple(Image.effect_noise((side, side), 60).convert("RGB") for _ in range(references))
    asked = ReferenceSampling.model_validate(
        {"width": side, "height": side, "steps": steps, "seed": 0, "speed": speed}
    )
    task = ImageTask("a cat " * 60, images, asked.filled(model.card.defaults_for(references)))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    pipeline.forget()
    encode, (samples, _) = _timed(device, lambda: pipeline.prepare(task))
    denoiser = Denoiser(pipeline.transformer)
    denoiser.add(samples)
    times = []
    while denoiser.samples:
        times.append(_timed(device, denoiser.step)[0])
    decode, _ = _timed(device, lambda: pipeline.finish(task, samples))
    return {
        "case": name,
        "side": side,
        "references": references,
        "speed": speed,
        "tokens_per_step": pipeline.step_tokens(task),
        "encode_s": round(encode, 3),
        "first_step_s": round(times[0], 4),
        "step_s": round(sum(times[2:]) / len(times[2:]), 4),
        "decode_s": round(decode, 3),
        "weights_gb": round(pipeline.memory_bytes() / 1e9, 2),
        "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if device.type == "cuda" else None,
    }


def compare_precisions(model: OmniGen2, side: int) -> dict[str, object]:
    """Relative error of one forward in the model's dtype against float32, on the same weights and inputs."""
    transformer = model.pipeline.transformer
    device, size = transformer.device, (side // 8, side // 8)
    generator = torch.Generator().manual_seed(1)
    text = torch.randn((80, transformer.config["text_feat_dim"]), generator=generator).to(device)
    reference = torch.randn((16, *size), generator=generator).to(device)
    tokens = torch.randn((size[0] * size[1] // 4, 64), generator=generator).to(device)
    time_ = torch.tensor([0.4], device=device)

    def forward(dtype: torch.dtype) -> torch.Tensor:
        transformer.to(dtype)
        with torch.inference_mode():
            batch = transformer.condition([text.to(dtype)], [[reference.to(dtype)]], [size])
            return transformer(tokens.to(dtype), time_, batch).float()

    half = torch.bfloat16
    transformer.to(half)  # round the weights first: both runs then have the same ones
    rough, exact = forward(half), forward(torch.float32)
    transformer.to(half)
    return {
        "case": "bfloat16 against float32, one forward",
        "relative_error": ((rough - exact).norm() / exact.norm()).item(),
    }


def _timed(device: torch.device, work):
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def main() -> None:
    """Build the model, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="tiny parts, to try the code on any machine")
    parser.add_argument("--side", type=int, help="side of the pictures in pixels (1024; 64 if tiny)")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps per measurement")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.tiny:
        parser.error("the full size needs a GPU; --tiny tries the code on this machine")
    side = options.side or (64 if options.tiny else 1024)
    model = build(options.tiny, device, torch.bfloat16)
    print(json.dumps({"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}))
    for name, references in (("text to image", 0), ("edit", 1), ("composition", 3)):
        for speed in ("exact", "balanced", "fast"):
            print(json.dumps(measure(model, name, references, side, options.steps, speed)), flush=True)
    print(json.dumps(compare_precisions(model, side)))


if __name__ == "__main__":
    main()
