"""The parts of OmniGen2 at their published size, or tiny, without values."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from omnigen2.network.language import IMAGE
from omnigen2.network.transformer import OmniGen2Transformer2DModel

GOLDEN = Path(__file__).parents[1] / "tests" / "data" / "golden" / "pipeline" / "checkpoint"
"""A checkpoint of the published layout, with a tokenizer of few words."""
PROCESSOR = GOLDEN / "processor"
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
MID_TRANSFORMER = TINY_TRANSFORMER | {
    "hidden_size": 480,
    "num_layers": 8,
    "num_attention_heads": 4,
    "num_kv_heads": 2,
    "axes_dim_rope": (40, 40, 40),
    "multiple_of": 256,
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
FLUX_VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
TINY_VAE = {"block_out_channels": (8, 16, 16, 16), "layers_per_block": 1, "norm_num_groups": 4}
TRANSFORMERS = {"full": FULL_TRANSFORMER, "mid": MID_TRANSFORMER, "tiny": TINY_TRANSFORMER}
Size = Literal["full", "mid", "tiny"]
"""Of a model; with `mid`, the transformer has 63 million parameters and all else is tiny."""


def parts(size: Size = "full", dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """The modules by the folder they have in a checkpoint, on the meta device."""
    tiny = size != "full"
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(PROCESSOR)
    config = Qwen2_5_VLConfig(
        text_config=TINY_QWEN if tiny else QWEN_3B,
        vision_config=TINY_VISION if tiny else QWEN_3B_VISION,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        tie_word_embeddings=True,
    )
    with torch.device("meta"), _default_dtype(dtype):
        transformer = OmniGen2Transformer2DModel(**TRANSFORMERS[size])
        autoencoder = AutoencoderKL(
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
        )
        mllm = Qwen2_5_VLForConditionalGeneration(config)
    return {"transformer": transformer.eval(), "vae": autoencoder.eval(), "mllm": mllm.to(dtype).eval()}


def parameters(part: nn.Module) -> int:
    """Number of the parameters of a part; tied ones count once."""
    return sum(value.numel() for value in part.parameters())


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
