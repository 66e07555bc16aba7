"""Classifier-free guidance over two conditions, as weights of branches decided before the loop.

A branch is one way to run the model on a picture: with everything, with the references but without the text,
or with neither. The guided velocity is a weighted sum of the branches' velocities; a branch of weight 0 is
not run.
"""

from dataclasses import dataclass
from enum import IntEnum

from omnigen2.params import ReferenceSampling


class Branch(IntEnum):
    """What the model sees in a run."""

    FULL = 0
    """The prompt and the references."""
    REFERENCES = 1
    """The negative prompt and the references."""
    BARE = 2
    """The negative prompt alone."""


Weights = dict[Branch, float]
REUSES = {"exact": 0, "balanced": 1, "fast": 2}
"""Steps in a row that use the guidance of an earlier step, by `speed`."""
EARLY = 0.2
"""Share of the steps, from the start, at which guidance is always computed: there it decides the layout."""


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
    """How one step is guided: the branches to run with their weights.

    With `reuse` the full branch alone is run, and what guidance added to it at the last guided step is added
    again: that changes slowly along the way (Lv et al. 2024, "FasterCache", arXiv:2410.19355, section 3.3).
    """

    weights: tuple[tuple[Branch, float], ...] = ((Branch.FULL, 1.0),)
    reuse: bool = False


def guide(sampling: ReferenceSampling, references: bool) -> list[Guidance]:
    """The guidance of every step: none but where start <= index / steps <= end of `cfg_range`."""
    assert sampling.steps is not None and sampling.cfg_range is not None and sampling.speed is not None
    weights = branch_weights(
        sampling.text_guidance_scale or 0.0, sampling.image_guidance_scale or 0.0, references
    )
    computed = Guidance(tuple(sorted(weights.items())))
    start, end = sampling.cfg_range
    most = REUSES[sampling.speed] if len(weights) > 1 else 0
    guidance, reused = [], most
    for index in range(sampling.steps):
        place = index / sampling.steps
        if not start <= place <= end:
            guidance.append(Guidance())
        elif reused < most and place >= EARLY:
            guidance.append(Guidance(reuse=True))
            reused += 1
        else:
            guidance.append(computed)
            reused = 0
    return guidance
