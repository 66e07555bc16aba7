"""Configuration of the stages that make nano: the tables of `nano.toml`. Does not import torch."""

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import Field, model_validator

from omnigen2.training.config import RunConfig, Schedule, TransformerSchedule

StageName = Literal["autoencoder", "decoder", "understanding", "looking", "seeing", "generation"]
STAGES: tuple[StageName, ...] = get_args(StageName)
"""In the order in which they run."""


class Stage(Schedule):
    """A stage of training on ShapeWorld."""

    batch: dict[str, int]
    """Examples per batch of each task (`edit`) or of one kind of a task (`edit:several`); `eval shapeworld`
    lists the kinds, and `faint` is a kind of every task: an object close in colour to its background."""
    sides: tuple[int, ...] = (96,)
    """Sides of the pictures in pixels; each batch draws its width and height from them, most often the
    first."""
    pool: int = Field(default=0, ge=0)
    """Batches that are encoded once and used again with other noise and times; 0 encodes every batch anew."""


class Generation(Stage, TransformerSchedule):
    """The stage that trains the transformer."""


class StagesConfig(RunConfig):
    """A run of all stages, or of those whose tables are present.

    The finished model is written to `output`/model in the published layout.
    """

    start: str | None = None
    """Checkpoint whose parts the stages continue from instead of random weights: `nano`, a folder in the
    published layout, or the id of a downloaded repository. Its card is kept where `card` is empty."""
    model: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)
    """Configurations of `transformer`, `vae` and `mllm` as in their `config.json`."""
    card: Mapping[str, Any] = Field(default_factory=dict)
    """The model card: title, defaults, limits."""
    autoencoder: Stage | None = None
    decoder: Stage | None = None
    understanding: Stage | None = None
    looking: Stage | None = None
    seeing: Stage | None = None
    generation: Generation | None = None

    @model_validator(mode="after")
    def _share_has_a_start(self) -> Self:
        if self.generation and self.generation.start_share and not self.start:
            raise ValueError("generation.start_share needs `start`, the checkpoint to take the share from")
        return self
