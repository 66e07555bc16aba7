"""Checkpoints of other shapes than the golden ones, with random weights, written by the library."""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import nn
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from omnigen2.network.transformer import OmniGen2Transformer2DModel
from tests.omnigen2.golden import KEPT

PATCH = 8
"""Side in pixels of the language model's patches; 14 in the golden checkpoints."""
SOURCE = KEPT / "pipeline" / "checkpoint"


@dataclass(frozen=True)
class Shape:
    """What differs from one checkpoint to another."""

    transformer: dict[str, Any]
    vae_blocks: tuple[int, ...] = (8, 16, 16, 16)
    vae: dict[str, Any] = field(default_factory=dict)
    text_layers: int = 2
    tied: bool = True
    shard: str = "5GB"
    dtype: torch.dtype = torch.float32
    chat_template: bool = True

    @property
    def latent_channels(self) -> int:
        return self.transformer["in_channels"]


SHAPES = {
    "one kv head, coarse patches": Shape(
        {
            "in_channels": 4,
            "patch_size": 4,
            "hidden_size": 60,
            "num_attention_heads": 5,
            "num_kv_heads": 1,
            "num_layers": 1,
            "num_refiner_layers": 1,
            "axes_dim_rope": (4, 6, 2),
            "multiple_of": 8,
            "ffn_dim_multiplier": 0.7,
            "norm_eps": 1e-6,
            "text_feat_dim": 48,
            "timestep_scale": 1000.0,
        },
        vae_blocks=(8, 16),
        tied=False,
        chat_template=False,
    ),
    "a patch per latent, no refiners, shards": Shape(
        {
            "in_channels": 8,
            "out_channels": 8,
            "patch_size": 1,
            "hidden_size": 64,
            "num_attention_heads": 2,
            "num_kv_heads": 2,
            "num_layers": 4,
            "num_refiner_layers": 0,
            "axes_dim_rope": (8, 8, 16),
            "multiple_of": 256,
            "text_feat_dim": 96,
            "timestep_scale": 1.0,
        },
        text_layers=3,
        tied=False,
        shard="60KB",
    ),
    "quantising convolutions, fp16 files": Shape(
        {
            "in_channels": 6,
            "patch_size": 2,
            "hidden_size": 144,
            "num_attention_heads": 6,
            "num_kv_heads": 3,
            "num_layers": 2,
            "num_refiner_layers": 3,
            "axes_dim_rope": (12, 6, 6),
            "multiple_of": 32,
            "ffn_dim_multiplier": 1.3,
            "text_feat_dim": 64,
            "timestep_scale": 1000.0,
        },
        vae_blocks=(8, 8, 16),
        text_layers=1,
        dtype=torch.float16,
        vae={
            "use_quant_conv": True,
            "use_post_quant_conv": True,
            "shift_factor": None,
            "scaling_factor": 0.18,
        },
    ),
}


def make(shape: Shape, folder: Path, seed: int = 0) -> Path:
    """Write a checkpoint of that shape into `folder`; no weight is zero or one."""
    torch.manual_seed(seed)
    parts = {
        "transformer": OmniGen2Transformer2DModel(**shape.transformer),
        "vae": _vae(shape),
        "mllm": _mllm(shape),
    }
    for name, part in parts.items():
        assert isinstance(part, nn.Module)
        for weight in part.parameters():
            weight.data += 0.1 * torch.randn_like(weight)
        part.to(shape.dtype).save_pretrained(folder / name, max_shard_size=shape.shard)
    shutil.copytree(SOURCE / "processor", folder / "processor")
    images = folder / "processor" / "preprocessor_config.json"
    said = json.loads(images.read_text(encoding="utf-8")) | {"patch_size": PATCH}
    images.write_text(json.dumps(said), encoding="utf-8")
    if not shape.chat_template:
        (folder / "processor" / "chat_template.jinja").unlink()
        config = folder / "processor" / "tokenizer_config.json"
        said = json.loads(config.read_text(encoding="utf-8"))
        said.pop("chat_template", None)
        config.write_text(json.dumps(said), encoding="utf-8")
    return folder


def _vae(shape: Shape) -> AutoencoderKL:
    depth = len(shape.vae_blocks)
    options: dict[str, Any] = {
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * depth,
        up_block_types=("UpDecoderBlock2D",) * depth,
        block_out_channels=shape.vae_blocks,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=shape.latent_channels,
        **(options | shape.vae),
    )


def _mllm(shape: Shape) -> Qwen2_5_VLForConditionalGeneration:
    said = json.loads((SOURCE / "mllm" / "config.json").read_text(encoding="utf-8"))
    width = shape.transformer["text_feat_dim"]
    said["tie_word_embeddings"] = said["text_config"]["tie_word_embeddings"] = shape.tied
    said["text_config"] |= {
        "hidden_size": width,
        "intermediate_size": width + 8,
        "num_hidden_layers": shape.text_layers,
        "layer_types": ["full_attention"] * shape.text_layers,
        "num_attention_heads": width // 16,
        "num_key_value_heads": 1,
    }
    said["vision_config"] |= {"out_hidden_size": width, "patch_size": PATCH, "window_size": 4 * PATCH}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**said))
