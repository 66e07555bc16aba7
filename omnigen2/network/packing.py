"""Sequences of many pictures, packed one after the other for a forward of the transformer.

What belongs to one sequence is made once and stays on the device with its `Condition`. A change of company
lays what is there one after the other, in a few calls whatever the number of sequences.
"""

import itertools
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from omnigen2.adapters.apply import Active, Term, Terms
from omnigen2.network.positions import Grid


@dataclass(frozen=True, eq=False)
class Segments:
    """The sequences packed along the token axis of a tensor, in order."""

    lengths: tuple[int, ...]
    device: torch.device

    @property
    def total(self) -> int:
        """Tokens of all sequences together."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths, default=0)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each sequence starts, and where the last one ends."""
        return tuple(itertools.accumulate(self.lengths, initial=0))

    @cached_property
    def bounds(self) -> Tensor:
        """`starts` on the device: (n + 1,) int32."""
        return torch.tensor(self.starts, dtype=torch.int32, device=self.device)

    @cached_property
    def owner(self) -> Tensor:
        """The sequence that each token belongs to: (total,) int64."""
        return self.spread(range(len(self.lengths)))

    def spread(self, values: Iterable[int]) -> Tensor:
        """A number of each sequence, for each of its tokens: (total,) int64, made on the device."""
        if not self.total:
            return torch.empty(0, dtype=torch.int64, device=self.device)
        table = torch.tensor([self.lengths, [*values]], dtype=torch.int64, device=self.device)
        return torch.repeat_interleave(table[1], table[0], output_size=self.total)

    def rows(self, first: Iterable[int]) -> Tensor:
        """Where each token stands in a tensor in which the sequences start at `first`: (total,) int64."""
        if not self.total:
            return self.spread(())
        shifts = [place - start for place, start in zip(first, self.starts[:-1], strict=True)]
        return torch.arange(self.total, device=self.device) + self.spread(shifts)


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
    """The sequences of a forward, and the pictures they see.

    Each sequence has the tokens [text | references | picture], which lie in `joint` one sequence after the
    other. What sequences of one picture share is refined once: `pictures` are the tokens of each picture,
    `references` those of each image; `groups` are the images that belong together. `picture` and `group`: the
    picture and the group of each sequence. `seen`: the picture tokens of each sequence, which stand at
    `seen_rows` in `joint`; `picture_rows` and `reference_rows`: where shared tokens first stand there.
    `*_owner`: the picture of each token; `rotation`: rotary factors of all joint tokens; `terms`: what
    adapters add in the rows of their sequences.
    """

    conditions: Sequence[Condition]
    picture: Sequence[int]
    group: Sequence[int]
    joint: Segments
    joint_owner: Tensor
    rotation: Tensor
    pictures: Segments
    picture_rows: Tensor
    references: Segments
    groups: Segments
    reference_owner: Tensor
    reference_rows: Tensor
    seen: Segments
    seen_owner: Tensor
    seen_rows: Tensor
    terms: Terms = field(default_factory=dict[str, Sequence[Term]])

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the tokens."""
        return self.conditions[0].text.dtype

    def reference_tokens(self) -> Tensor:
        """(sum R, D): the embedded patches of the images of all groups."""
        first = [self.conditions[self.group.index(n)] for n in range(len(self.groups.lengths))]
        return torch.cat([tokens for condition in first for tokens in condition.references])

    def joined(self, references: Tensor, pictures: Tensor) -> Tensor:
        """The joint tokens, from those of all references and of all pictures."""
        groups, own = references.split(self.groups.lengths), pictures.split(self.pictures.lengths)
        parts: list[Tensor] = []
        for condition, group, picture in zip(self.conditions, self.group, self.picture, strict=True):
            parts += condition.text.to(pictures.dtype), groups[group], own[picture]
        return torch.cat(parts)


def pack(conditions: Sequence[Condition], of: Sequence[Hashable]) -> Batch:
    """Lay sequences one after the other; `of` says which are of one picture."""
    picture, first = _numbered(of)
    group, shown = _numbered([(own, id(c.references)) for own, c in zip(of, conditions, strict=True)])
    rotation = torch.cat([c.rotation for c in conditions])
    device = rotation.device
    joint = Segments(tuple(len(c.rotation) for c in conditions), device)
    seen = Segments(tuple(h * w for h, w in (c.grid for c in conditions)), device)
    pictures = Segments(tuple(seen.lengths[n] for n in first), device)
    images = [conditions[n].references for n in shown]
    groups = Segments(tuple(sum(map(len, own)) for own in images), device)
    start = [end - length for end, length in zip(joint.starts[1:], seen.lengths, strict=True)]
    return Batch(
        conditions=conditions,
        picture=picture,
        group=group,
        joint=joint,
        joint_owner=joint.spread(picture),
        rotation=rotation,
        pictures=pictures,
        picture_rows=pictures.rows(start[n] for n in first),
        references=Segments(tuple(len(tokens) for own in images for tokens in own), device),
        groups=groups,
        reference_owner=groups.spread(picture[n] for n in shown),
        reference_rows=groups.rows(
            start[n] - length for n, length in zip(shown, groups.lengths, strict=True)
        ),
        seen=seen,
        seen_owner=seen.spread(picture),
        seen_rows=seen.rows(start),
    )


def _numbered(keys: Sequence[Hashable]) -> tuple[list[int], list[int]]:
    """The number of each key among the distinct ones, and where each of those is first."""
    distinct = list(dict.fromkeys(keys))
    return [distinct.index(key) for key in keys], [keys.index(key) for key in distinct]
