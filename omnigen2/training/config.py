"""Configuration of a training run: one TOML file, validated before anything starts. Does not import torch."""

import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from omnigen2.explain import explain


class Table(BaseModel):
    """A table of the TOML file: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Schedule(Table):
    """How long and how fast the weights are trained; the same fields for every kind of training."""

    steps: int = Field(gt=0)
    """Optimiser steps."""
    rate: float = Field(gt=0)
    """Peak learning rate: of Muon for the matrices of blocks, of AdamW for everything else."""
    muon: bool = True
    """Muon (Jordan et al. 2024) for matrices inside blocks; AdamW for all weights otherwise."""
    warmup: int = Field(default=60, ge=0)
    """Steps over which the rate rises from 0."""
    decay: float = Field(default=0.45, ge=0, le=1)
    """Share of the steps, at the end, over which the rate falls to 0."""
    ema: float = Field(default=0.998, ge=0, lt=1)
    """Largest decay per step of the moving average of the weights; the average is what is published."""
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are accumulated per step."""
    save_every: int = Field(default=200, gt=0)
    """Steps between checkpoints; an interrupted run resumes from the last one."""
    checkpoint_gradients: bool = False
    """Recompute activations in the backward pass instead of storing them: slower, far less memory."""


class TransformerSchedule(Schedule):
    """The schedule of a training that starts from the weights of a transformer."""

    start_share: float = Field(default=0, ge=0, lt=1)
    """Weight of the starting transformer in the published one, which is the average of start and result:
    such averages often err less than either (Wortsman et al. 2022, "Model soups") and forget less."""


class Finetune(TransformerSchedule):
    """Fine-tuning of any checkpoint on a folder of examples."""

    model: str = "nano"
    """`nano`, a folder in the published layout, or the id of a downloaded repository."""
    data: Path
    """Folder with `train.jsonl`: `instruction`, `input_images` (0 to 5 paths), `output_image` on every line;
    `"known": true` on those for which an adapter must leave the model's prediction unchanged."""
    batch: int = Field(default=8, ge=1)
    """Examples per batch."""
    lora_rank: int = Field(default=8, ge=0)
    """Rank of the adapter; 0 trains all weights of the transformer."""
    muon: bool = False
    dropped_prompt: float = Field(default=0.1, ge=0, le=1)
    """Probability that the instruction is replaced by the empty one, which guidance needs."""


class RunConfig(Table):
    """What every training run has."""

    output: Path
    """Folder for checkpoints, metrics and the trained weights."""
    seed: int = Field(default=1, ge=1)
    """Decides initial weights, noise and the order of examples."""
    precision: Literal["no", "bf16"] = "bf16"
    """`bf16` computes matrix products in bfloat16 where the hardware supports it; weights stay float32."""


class FinetuneConfig(RunConfig):
    """A fine-tuning run."""

    finetune: Finetune


C = TypeVar("C", bound=RunConfig)


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a TOML file.

    Raises:
        ValueError: the file is not valid TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from None


def read_config(path: Path, kind: type[C]) -> C:
    """The configuration in a TOML file.

    Raises:
        ValueError: the file is not valid TOML, or a field is wrong; the message names the field.
    """
    try:
        return kind.model_validate(read_toml(path))
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, kind)}") from None
