"""Fine-tuning of any checkpoint on a folder of examples: an adapter (LoRA), or all weights of the
transformer.

The folder holds `train.jsonl`, one example a line, paths relative to it:

    {"instruction": "make it pink", "input_images": ["a.png"], "output_image": "b.png"}

Fine-tuning forgets. A line may therefore have `"known": true`: for such an example the target is the
prediction of the model without the adapter, not its picture (Li & Hoiem 2016, "Learning without Forgetting").

Every example is encoded once, by the frozen parts of the checkpoint. An adapter is saved in the format of the
reference's trainer (`omnigen2.adapters`): attention projections, alpha = rank, Gaussian initialisation (Hu et
al. 2021).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save_file
from torch import Tensor

import omnigen2
from omnigen2.adapters.file import FILE
from omnigen2.checkpoints.card import ModelCard
from omnigen2.checkpoints.fit import free_bytes, needed_bytes
from omnigen2.checkpoints.locate import find
from omnigen2.explain import explain
from omnigen2.network.transformer import OmniGen2Transformer2DModel
from omnigen2.params import MAX_REFERENCES
from omnigen2.pipeline import Pipeline
from omnigen2.training.config import Finetune, FinetuneConfig
from omnigen2.training.loop import train
from omnigen2.training.objective import VelocityLoss, draw_normal, draw_times
from omnigen2.training.publish import mix_in, publish_like

DATA_FILE = "train.jsonl"
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


class Line(BaseModel):
    """A line of `train.jsonl`."""

    model_config = ConfigDict(extra="forbid")

    instruction: str = Field(min_length=1)
    input_images: list[str] = Field(default=[], max_length=MAX_REFERENCES)
    output_image: str
    known: bool = False
    """The model can do this already and must keep it."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """The transformer's inputs of an example: `text` (L, text_feat_dim), latents (C, h, w)."""

    text: Tensor
    references: list[Tensor]
    data: Tensor
    known: bool


class FinetuneLoss(VelocityLoss):
    """The velocity loss; for examples that are `known`, the target is the prediction without the adapter."""

    def target(self, batch: dict[str, Any]) -> Tensor:
        target = super().target(batch)
        known = [n for n, own in enumerate(batch["known"]) if own]
        if not known:
            return target
        targets = list(target.split([own.numel() // target.shape[1] for own in batch["data"]]))
        part = {key: [batch[key][n] for n in known] for key in ("texts", "references", "data", "noise")}
        self.transformer.disable_adapters()
        with torch.no_grad():
            lengths, unadapted = self.predict(part | {"time": batch["time"][known]})
        self.transformer.enable_adapters()
        for n, own in zip(known, unadapted.split(lengths), strict=True):
            targets[n] = own
        return torch.cat(targets)


class FinetuneTask:
    """Batches of encoded examples, and the loss."""

    name = "finetune"

    def __init__(self, pipeline: Pipeline, settings: Finetune, lines: Sequence[Line], seed: int):
        self.module = FinetuneLoss(pipeline.transformer)
        self.settings, self.seed = settings, seed
        self.empty_prompt = _kept(pipeline.caption("", pipeline.card.limits).features)
        self.examples = [encode(pipeline, settings.data, line) for line in lines]

    def batch(self, number: int) -> dict[str, Any]:
        """A batch of examples; each epoch has another random order."""
        rng = np.random.default_rng([self.seed, 6, number])
        places = range(number * self.settings.batch, (number + 1) * self.settings.batch)
        chosen = [
            self.examples[self._order(place // len(self.examples))[place % len(self.examples)]]
            for place in places
        ]
        dropped = rng.random(len(chosen)) < self.settings.dropped_prompt
        return {
            "texts": [
                self.empty_prompt if drop else own.text for own, drop in zip(chosen, dropped, strict=True)
            ],
            "references": [own.references for own in chosen],
            "data": [own.data for own in chosen],
            "noise": [draw_normal(own.data.shape, rng) for own in chosen],
            "time": draw_times([own.data[0].numel() for own in chosen], rng),
            "known": [own.known for own in chosen],
        }

    def _order(self, epoch: int) -> Sequence[int]:
        return np.random.default_rng([self.seed, 7, epoch]).permutation(len(self.examples)).tolist()


def finetune(config: FinetuneConfig) -> ModelCard:
    """Train an adapter or the transformer, or resume an interrupted training; the card of the trained model.

    Writes `pytorch_lora_weights.safetensors`, or a whole `model`, to the output folder.

    Raises:
        FileNotFoundError: no such model.
        ValueError: the data cannot be used; the message names file and line.
    """
    settings = config.finetune
    lines = read_lines(settings.data)  # errors in them are raised before the model is loaded
    _check_known(lines, settings)
    card, task = _prepare(config, lines)
    transformer = task.module.transformer
    if settings.lora_rank:
        torch.manual_seed(config.seed)
        transformer.add_adapter(adapter_config(settings.lora_rank))
    else:
        transformer.requires_grad_(True)
    if settings.checkpoint_gradients:
        transformer.enable_gradient_checkpointing()
    train(task, settings, config.output / task.name, config.precision)
    if settings.lora_rank:
        save_file(_adapter(transformer, settings.start_share), config.output / FILE)
        return card
    if settings.start_share:
        mix_in(settings.model, transformer, settings.start_share)
    return publish_like(settings.model, transformer, config.output / "model")


def _prepare(config: FinetuneConfig, lines: Sequence[Line]) -> tuple[ModelCard, FinetuneTask]:
    """The model's card and the encoded examples; of the model, the task keeps the transformer alone."""
    source = config.finetune.model
    model = omnigen2.load(source, device=_device(source), dtype="float32")
    return model.card, FinetuneTask(model.pipeline, config.finetune, lines, config.seed)


def _device(source: str) -> str:
    """Where examples are encoded: this process's GPU if the whole model fits it in float32, or the CPU."""
    device = PartialState().device
    assert device is not None
    needed = needed_bytes(find(source), torch.float32)
    return str(device) if device.type == "cuda" and needed < free_bytes(device) else "cpu"


def _adapter(transformer: OmniGen2Transformer2DModel, start_share: float) -> dict[str, Tensor]:
    """The weights of the adapter, W + B A, with B scaled by 1 - `start_share`."""
    return {
        f"transformer.{name}": own * (1 - start_share) if "lora_B" in name else own
        for name, own in get_peft_model_state_dict(transformer).items()
    }


def adapter_config(rank: int) -> LoraConfig:
    """The configuration of the reference trainer's adapter."""
    return LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=TARGETS)


def read_lines(folder: Path) -> list[Line]:
    """The examples of a data folder.

    Raises:
        ValueError: there is no `train.jsonl`, it is empty, or a line is wrong.
    """
    path = folder / DATA_FILE
    if not path.is_file():
        raise ValueError(f"data: {folder} has no {DATA_FILE}")
    lines = []
    for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            lines.append(Line.model_validate(json.loads(text)))
        except (json.JSONDecodeError, ValidationError) as error:
            reason = explain(error, Line) if isinstance(error, ValidationError) else str(error)
            raise ValueError(f"data: {path}, line {number}: {reason}") from None
    if not lines:
        raise ValueError(f"data: {path} is empty")
    return lines


def _check_known(lines: Sequence[Line], settings: Finetune) -> None:
    known = next((number for number, line in enumerate(lines, 1) if line.known), None)
    if known and not settings.lora_rank:
        raise ValueError(
            f"data: {settings.data / DATA_FILE}, line {known}: known needs an adapter, beside which the "
            "model stays as it was; lora_rank is 0, which trains all weights: give a rank, or leave known out"
        )


def encode(pipeline: Pipeline, folder: Path, line: Line) -> Encoded:
    """An example encoded by the frozen parts of the checkpoint.

    Raises:
        ValueError: an image cannot be read.
    """
    limits = pipeline.card.limits
    images = [_open(folder / name) for name in (*line.input_images, line.output_image)]
    *references, data = map(_kept, pipeline.encode_references(images, limits))
    text = _kept(pipeline.caption(line.instruction, limits).features)
    return Encoded(text, references, data, line.known)


def _kept(value: Tensor) -> Tensor:
    """A copy in main memory for the loop's workers, and not an inference tensor, which autograd refuses."""
    return value.cpu().clone()


def _open(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise ValueError(f"data: {path} cannot be read as an image: {error}") from None
