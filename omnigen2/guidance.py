"""Classifier-free guidance over two conditions, as weights of branches decided before the loop.

A branch is one way to run the model on a picture: with everything, with the references but without the text,
or with neither. The guided velocity is a weighted sum of the branches' velocities; a branch of weight 0 is
not run.
"""

from dataclasses import dataclass
from enum import IntEnum

from omnigen2.params import ReferenceSampling
from omnigen2.schedule import computed_steps


class Branch(IntEnum):
    """What the model sees in a run."""

    FULL = 0
    """The prompt and the references."""
    REFERENCES = 1
    """The negative prompt and the references."""
    BARE = 2
    """The negative prompt alone."""


Weights = dict[Branch, float]


def branch_weights(text_scale: float, image_scale: float, references: bool) -> Weights:
    """Weights of the branches that count, summing to 1.

    With v(text, images), (Brooks et al. 2023, "InstructPix2Pix", eq. 3):

        v = v(-, -) + image_scale * (v(-, images) - v(-, -)) + text_scale * (v(text, images) - v(-, images))

    A scale of 1 or less turns its guidance off, that is, counts as 1. With text guidance alone the reference
    implementation contrasts with the bare branch instead: v = v(-, -) + text_scale * (v(text, images) - v(-,
    -)). Image guidance alone is the formula above with text_scale = 1 (the reference implementation ignores
    it).
    """
    text_scale = max(text_scale, 1.0)
    if image_scale <= 1 or not references:
        weights = {Branch.FULL: text_scale, Branch.BARE: 1 - text_scale}
    else:
        weights = {
            Branch.FULL: text_scale,
            Branch.REFERENCES: image_scale - text_scale,
            Branch.BARE: 1 - image_scale,
        }
    return {branch: weight for branch, weight in weights.items() if weight}


@dataclass(frozen=True)
class Guidance:
    """How one step is guided: the branches to run with their weights; none where nothing is computed."""

    weights: tuple[tuple[Branch, float], ...] = ((Branch.FULL, 1.0),)


def guide(sampling: ReferenceSampling, references: bool) -> list[Guidance]:
    """The guidance of every step: none but where start <= index / steps <= end of `cfg_range`.

    At steps that `speed` leaves out nothing is run.
    """
    assert sampling.steps is not None and sampling.cfg_range is not None and sampling.speed is not None
    weights = branch_weights(
        sampling.text_guidance_scale or 0.0, sampling.image_guidance_scale or 0.0, references
    )
    start, end = sampling.cfg_range
    guided, plain = Guidance(tuple(sorted(weights.items()))), Guidance()
    steps = [guided if start <= index / sampling.steps <= end else plain for index in range(sampling.steps)]
    computed = computed_steps(sampling.speed, steps)
    return [step if runs else Guidance(()) for step, runs in zip(steps, computed, strict=True)]
