"""A fine-tuned model as a folder in the published layout, with its card."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from omnigen2.checkpoints.card import CARD_FILE, ModelCard, read_card
from omnigen2.checkpoints.locate import resolve, weights_digest
from omnigen2.network.transformer import OmniGen2Transformer2DModel


@torch.no_grad()
def mix_in(source: str, transformer: OmniGen2Transformer2DModel, share: float) -> None:
    """Average in place: `share` of the transformer of the model `source`, the rest of the trained one."""
    before = OmniGen2Transformer2DModel.from_pretrained(resolve(source) / "transformer")
    for own, was in zip(transformer.parameters(), before.parameters(), strict=True):
        own.lerp_(was.to(own), share)


def publish_like(source: str, transformer: OmniGen2Transformer2DModel, target: Path) -> ModelCard:
    """Write the model `source` with another transformer to `target`; its card with the new digest."""
    folder = resolve(source)
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("transformer", CARD_FILE, ".*"))
    transformer.save_pretrained(target / "transformer")
    card = read_card(folder, target.name).model_copy(update={"digest": weights_digest(target)})
    write_json(
        target / CARD_FILE, card.model_dump(mode="json", exclude={"id", "quantize"}, exclude_none=True)
    )
    return card


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file as the published checkpoints have them."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
