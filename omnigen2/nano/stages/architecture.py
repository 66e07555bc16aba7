"""Networks with random weights, built from the tables of a configuration."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import (
    PreTrainedTokenizerBase,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from omnigen2.nano.stages.tokens import PADDING
from omnigen2.network.language import IMAGE, LanguageModel
from omnigen2.network.transformer import OmniGen2Transformer2DModel

Config = Mapping[str, Any]


def new_autoencoder(config: Config, seed: int) -> AutoencoderKL:
    """An autoencoder; `config` has the fields of `vae/config.json`."""
    torch.manual_seed(seed)
    return AutoencoderKL(**config)


def new_transformer(config: Config, seed: int) -> OmniGen2Transformer2DModel:
    """A transformer; `config` has the fields of `transformer/config.json`."""
    torch.manual_seed(seed)
    return OmniGen2Transformer2DModel(**config)


def new_language_model(
    config: Config, tokenizer: PreTrainedTokenizerBase, image_pixels: int, seed: int
) -> LanguageModel:
    """A language model; `config` has the fields of `mllm/config.json` but for the tokenizer's ids.

    Its image processor resizes every picture to about `image_pixels` pixels.
    """
    torch.manual_seed(seed)
    ids = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in {
            "image_token_id": IMAGE,
            "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>",
            "vision_end_token_id": "<|vision_end|>",
        }.items()
    }
    padding, end = (tokenizer.convert_tokens_to_ids(token) for token in (PADDING, "<|im_end|>"))
    text = {**config["text_config"], "vocab_size": len(tokenizer)}
    text |= {"pad_token_id": padding, "bos_token_id": padding, "eos_token_id": end}
    whole = Qwen2_5_VLConfig(**{**config, **ids, "text_config": text})
    mllm = Qwen2_5_VLForConditionalGeneration(whole)
    vision: Any = whole.vision_config
    processor = Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        size={"shortest_edge": image_pixels, "longest_edge": image_pixels},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LanguageModel(mllm, tokenizer, processor)
