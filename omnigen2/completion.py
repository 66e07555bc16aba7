"""Completes a request with sizes, defaults and seeds. Needs no torch.

A parameter is what was asked; else, for the size of an edit, what its input has; else the default of the
model card. The library (`omnigen2.model`) and the server's tools both call these functions, so that equal
requests have equal parameters in both.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic

from omnigen2.checkpoints.card import Limits, ModelCard
from omnigen2.guidance import guide
from omnigen2.notes import about_small_inputs
from omnigen2.params import MAX_SEED, Decoding, InvalidTask, P, ReferenceSampling, Sampling
from omnigen2.sizes import Size, edited_image, output_size

DRAWN_SEEDS = 2**32
"""Seeds are drawn below this bound: short enough to be read out and typed again."""


@dataclass(frozen=True)
class Completed(Generic[P]):
    """The parameters of a request after completion, and what to tell the caller about them.

    `repeatable` is True if what was asked fixes the result, False if a seed had to be drawn.
    """

    params: P
    notes: tuple[str, ...] = ()
    repeatable: bool = False


def draw_seed() -> int:
    """A random seed."""
    return secrets.randbelow(DRAWN_SEEDS)


def complete_sampling(
    asked: Sampling,
    inputs: Sequence[Size],
    card: ModelCard,
    limits: Limits | None = None,
    *,
    prompt: str = "",
) -> Completed[ReferenceSampling]:
    """All parameters of a request for pictures, for input images of these (width, height).

    If the prompt says which one of several images to edit (`edited_image`), that one gives the size, as the
    only image of an edit does. `limits` replaces those of the card.

    Raises:
        InvalidTask: more images than the model takes, a side longer than it makes, or a seed too large for
            the number of pictures.
    """
    limits = limits or card.limits
    _check_references(inputs, limits)
    defaults = card.defaults_for(len(inputs))
    sampling = ReferenceSampling.model_construct(**dict(asked)).filled(defaults)
    edited = edited_image(prompt, len(inputs))
    if edited is None:
        (width, height), notes = output_size(sampling.width, sampling.height, inputs, limits)
    else:
        (width, height), notes = output_size(asked.width, asked.height, inputs[edited:], limits)
        if asked.width is None and asked.height is None:
            notes.append(f"The size is that of image {edited + 1}, which is edited.")
    seed = draw_seed() if sampling.seed is None else sampling.seed
    complete = sampling.model_copy(update={"width": width, "height": height, "seed": seed})
    _check_seeds(complete)
    notes += about_small_inputs(inputs, card.advice.min_input_side, card.title)
    notes += _without_effect(asked, complete, bool(inputs))
    return Completed(complete, tuple(notes), repeatable=asked.seed is not None)


def complete_decoding(asked: Decoding, inputs: Sequence[Size], card: ModelCard) -> Completed[Decoding]:
    """All parameters of a question about input images of these (width, height).

    At temperature 0 there is no seed: the answer is the most likely one.

    Raises:
        InvalidTask: more images than the model takes.
    """
    _check_references(inputs, card.limits)
    decoding = asked.filled(card.defaults.describe)
    if decoding.temperature == 0:
        ignored = asked.seed is not None
        notes = ("seed changed nothing: at temperature 0 the answer is always the same.",) if ignored else ()
        return Completed(decoding.model_copy(update={"seed": None}), notes, repeatable=True)
    if decoding.seed is None:
        decoding = decoding.model_copy(update={"seed": draw_seed()})
    return Completed(decoding, repeatable=asked.seed is not None)


def _check_references(inputs: Sequence[Size], limits: Limits) -> None:
    if len(inputs) > limits.max_references:
        raise InvalidTask(f"images: {len(inputs)} given; at most {limits.max_references} are allowed")


def _check_seeds(sampling: Sampling) -> None:
    """Picture i is made with seed + i, which must be a valid seed too."""
    count = sampling.num_images or 1
    last = (sampling.seed or 0) + count - 1
    if last > MAX_SEED:
        raise InvalidTask(
            f"seed: {sampling.seed} given for {count} pictures, which use seeds up to {last}; "
            f"the largest is {MAX_SEED}"
        )


def _without_effect(asked: Sampling, sampling: ReferenceSampling, references: bool) -> list[str]:
    """Notes on asked parameters that change nothing, given the complete `sampling`."""
    notes = []
    if not references and (getattr(asked, "image_guidance_scale", None) or 0) > 1:
        notes.append("image_guidance_scale has no effect without images.")
    guidance = guide(sampling, references)
    if sampling.speed != "exact" and all(step.weights for step in guidance):
        notes.append(f"speed changed nothing: of {len(guidance)} steps none is left out.")
    if any(len(step.weights) > 1 for step in guidance):
        return notes
    guidance_only = {"negative_prompt": asked.negative_prompt, "cfg_range": asked.cfg_range}
    names = [name for name, value in guidance_only.items() if value]
    if names:
        notes.append(
            f"{', '.join(names)} changed nothing: no step is guided with these scales and cfg_range."
        )
    return notes
