"""The trained parts as a model in the published layout, in float16, with its card."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from omnigen2.checkpoints.card import CARD_FILE, ModelCard
from omnigen2.checkpoints.load import load_language_model
from omnigen2.checkpoints.locate import PARTS, weights_digest
from omnigen2.nano.stages.tokens import prompt_words
from omnigen2.network.transformer import OmniGen2Transformer2DModel
from omnigen2.training.publish import write_json

INDEX = {
    "_class_name": "OmniGen2Pipeline",
    "mllm": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "processor": ["transformers", "Qwen2_5_VLProcessor"],
    "scheduler": ["scheduling_flow_match_euler_discrete_time_shifting", "FlowMatchEulerDiscreteScheduler"],
    "transformer": ["transformer_omnigen2", "OmniGen2Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "dynamic_time_shift": True,
    "num_train_timesteps": 1000,
}


def missing_parts(folder: Path) -> list[str]:
    """The parts of a model that are not in the folder yet."""
    return [part for part in PARTS if not (folder / part).is_dir()]


def publish(parts: Path, target: Path, card: Mapping[str, Any]) -> ModelCard:
    """Write the model whose trained parts are in `parts` to `target`; its card, completed with the digest.

    Raises:
        ValueError: `card` is not a valid card.
    """
    shutil.rmtree(target, ignore_errors=True)
    transformer = OmniGen2Transformer2DModel.from_pretrained(parts / "transformer")
    autoencoder = AutoencoderKL.from_pretrained(parts / "vae")
    language = load_language_model(parts, torch.float32)
    transformer.half().save_pretrained(target / "transformer")
    autoencoder.half().save_pretrained(target / "vae")
    language.mllm.half().save_pretrained(target / "mllm")
    shutil.copytree(parts / "processor", target / "processor")
    (target / "scheduler").mkdir()
    write_json(target / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(target / "model_index.json", INDEX)
    made = {"vocabulary": prompt_words(language.tokenizer), **card, "id": target.name}
    complete = ModelCard.model_validate(made | {"digest": weights_digest(target)})
    write_json(target / CARD_FILE, complete.model_dump(mode="json", exclude={"id"}, exclude_none=True))
    return complete
