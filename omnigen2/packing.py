"""Sequences of many pictures, packed one after the other for a forward of the transformer.

What belongs to one sequence is made once and stays on the device with its `Condition`. A change of company
lays what is there one after the other, in a few calls whatever the number of sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from omnigen2.adapters.apply import Active, Term, Terms
from omnigen2.attention import Segments
from omnigen2.positions import Grid


@dataclass(frozen=True, eq=False)
class Condition:
    """What one sequence is conditioned on, independent of time.

    `text` (L, D) refined caption; `references`, one (R, D) per image, embedded patches with their image
    index; `grid`: rows and columns, in tokens, of the picture to make; `rotation` (L + sum R + N,
    head_dim / 2, 2): rotary factors of the tokens of text, references and picture; `adapters`: those it was
    made with, and is to be denoised with.
    """

    text: Tensor
    references: tuple[Tensor, ...]
    grid: Grid
    rotation: Tensor
    adapters: Active = ()


@dataclass(frozen=True, eq=False)
class Batch:
    """The sequences of a forward.

    Each has the tokens [text | references | picture], which lie in `joint` one sequence after the other.
    `pictures`: the picture tokens of each sequence; `references`: the tokens of each image that is shown;
    `reference_counts`: those of all images of each sequence; `*_rows`: where they stand in `joint`;
    `reference_owner`: the sequence of each reference token; `rotation`: rotary factors of all joint tokens;
    `terms`: what adapters add in the rows of their conditions.
    """

    conditions: Sequence[Condition]
    joint: Segments
    rotation: Tensor
    pictures: Segments
    picture_rows: Tensor
    references: Segments
    reference_counts: tuple[int, ...]
    reference_owner: Tensor
    reference_rows: Tensor
    terms: Terms = field(default_factory=dict[str, Sequence[Term]])

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the tokens."""
        return self.conditions[0].text.dtype

    def reference_tokens(self) -> Tensor:
        """(sum R, D): the embedded patches of all images that are shown."""
        return torch.cat([tokens for condition in self.conditions for tokens in condition.references])

    def joined(self, references: Tensor | None, pictures: Tensor) -> Tensor:
        """The joint tokens, from those of all references, if there are any, and of all pictures."""
        nothing = pictures[:0]
        texts = [condition.text for condition in self.conditions]
        images = (nothing if references is None else references).split(self.reference_counts)
        parts = zip(texts, images, pictures.split(self.pictures.lengths), strict=True)
        return torch.cat([part.to(pictures.dtype) for own in parts for part in own])


def pack(conditions: Sequence[Condition]) -> Batch:
    """Lay sequences one after the other."""
    rotation = torch.cat([c.rotation for c in conditions])
    device = rotation.device
    joint = Segments(tuple(len(c.rotation) for c in conditions), device)
    pictures = Segments(tuple(h * w for h, w in (c.grid for c in conditions)), device)
    images = tuple(len(tokens) for c in conditions for tokens in c.references)
    shown = Segments(tuple(sum(map(len, c.references)) for c in conditions), device)
    first = [end - length for end, length in zip(joint.starts[1:], pictures.lengths, strict=True)]
    return Batch(
        conditions=conditions,
        joint=joint,
        rotation=rotation,
        pictures=pictures,
        picture_rows=pictures.rows(first),
        references=Segments(images, device),
        reference_counts=shown.lengths,
        reference_owner=shown.owner,
        reference_rows=shown.rows([end - n for end, n in zip(first, shown.lengths, strict=True)]),
    )
