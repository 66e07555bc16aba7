"""What a training run is told: one TOML file, checked before anything starts. Imports no torch."""

import tomllib
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from omnigen2.explain import explain

StageName = Literal["autoencoder", "decoder", "understanding", "looking", "seeing", "generation"]
STAGES: tuple[StageName, ...] = get_args(StageName)
"""In the order in which they run."""


class _Checked(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Schedule(_Checked):
    """How long and how fast weights move; the same words for every stage."""

    steps: int = Field(gt=0)
    """Optimiser steps."""
    rate: float = Field(gt=0)
    """Peak learning rate: of Muon for the matrices of blocks, of AdamW for everything else."""
    muon: bool = True
    """Orthogonalise the updates of matrices inside blocks (Jordan et al. 2024); AdamW for all otherwise."""
    warmup: int = Field(default=60, ge=0)
    """Steps over which the rate rises from 0."""
    decay: float = Field(default=0.45, ge=0, le=1)
    """Share of the steps, at the end, over which the rate falls to 0."""
    ema: float = Field(default=0.998, ge=0, lt=1)
    """Most that the moving average keeps of itself per step; the average is what is published."""
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    """Largest gradient norm."""
    accumulate: int = Field(default=1, ge=1)
    """Batches whose gradients are added up before a step."""
    save_every: int = Field(default=200, gt=0)
    """Steps between checkpoints; a run that is killed goes on from the last one."""
    checkpoint_gradients: bool = False
    """Compute activations again in the backward pass instead of keeping them: slower, far less memory."""


class Stage(Schedule):
    """A stage on ShapeWorld. `batch` counts examples per step: of each task, by name, or of a
    `task:kind`, as `eval shapeworld` lists the kinds; `faint` is one of any task."""

    batch: dict[str, int]
    sides: tuple[int, ...] = (96,)
    """Sides in pixels of the pictures; each batch draws its width and height from them, most often the
    first."""
    pool: int = Field(default=0, ge=0)
    """Batches that are encoded once and used again with other noise and times; 0 encodes every batch anew."""


class Transforming(Schedule):
    """What moves the weights of the transformer."""

    start_share: float = Field(default=0, ge=0, lt=1)
    """How much of the transformer it starts from is in what is kept: two ends of one descent, averaged, often
    err less than either (Wortsman et al. 2022, "Model soups"), and what was taught costs less of what was
    known."""


class Generation(Stage, Transforming):
    """The transformer's stage on ShapeWorld."""


class Finetune(Transforming):
    """Fine-tuning of any checkpoint on pictures of one's own."""

    model: str = "nano"
    """`nano`, a folder in the published layout, or the id of a downloaded repository."""
    data: Path
    """Folder with `train.jsonl`: `instruction`, `input_images` (0 to 5 paths), `output_image` on every line;
    `"known": true` on those of which an adapter is to change nothing."""
    batch: int = Field(default=8, ge=1)
    """Examples per step."""
    lora_rank: int = Field(default=8, ge=0)
    """Rank of the adapter; 0 trains all weights of the transformer."""
    muon: bool = False
    dropped_prompt: float = Field(default=0.1, ge=0, le=1)
    """Chance that an example is shown without its instruction, so that guidance still works."""


class TrainConfig(_Checked):
    """A whole run, or the part of it whose tables are there."""

    output: Path
    """Folder for checkpoints, metrics, and in the end the model in the published layout."""
    start: str | None = None
    """Checkpoint whose parts the stages go on from, instead of from nothing: `nano`, a folder in the
    published layout, or the id of a downloaded repository. Its card is kept where `card` is empty."""
    seed: int = Field(default=1, ge=1)
    """Another seed draws other weights, noise and examples."""
    precision: Literal["no", "bf16"] = "bf16"
    """`bf16` computes matrix products in bfloat16 where the hardware has it; weights stay float32."""
    model: dict[str, dict[str, Any]] = {}
    """Configurations of `transformer`, `vae` and `mllm` as in their `config.json`."""
    card: dict[str, Any] = {}
    """The model card: title, defaults, limits."""
    autoencoder: Stage | None = None
    decoder: Stage | None = None
    understanding: Stage | None = None
    looking: Stage | None = None
    seeing: Stage | None = None
    generation: Generation | None = None
    finetune: Finetune | None = None

    @model_validator(mode="after")
    def _share_has_a_start(self) -> Self:
        if self.generation and self.generation.start_share and not self.start:
            raise ValueError("generation.start_share needs `start`, the checkpoint to take the share from")
        return self


def read_config(path: Path) -> TrainConfig:
    """The configuration in a TOML file.

    Raises:
        ValueError: it is no TOML, or a field is wrong; the message names the field.
    """
    try:
        return TrainConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: no valid TOML: {error}") from None
    except ValidationError as error:
        raise ValueError(f"{path}: {explain(error, TrainConfig)}") from None
