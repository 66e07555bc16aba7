"""Full attention inside each sequence of a packed tensor: one call, one signature, on every device.

Sequences of different lengths lie one after the other along the token axis. On CUDA, in half precision, the
variable-length flash kernel takes their bounds. Elsewhere sequences of similar length are gathered into
padded groups, so that no Python loop runs over the samples. Callers never ask which.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 256  # tokens up to which a CPU attends faster without a fused kernel
MAX_PADDING = 1.25  # a group may hold this many times the tokens it was given


@dataclass(frozen=True, eq=False)
class Segments:
    """The sequences packed along the token axis of a tensor, in order."""

    lengths: tuple[int, ...]
    device: torch.device

    @property
    def total(self) -> int:
        """Tokens of all sequences together."""
        return sum(self.lengths)

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
        table = torch.tensor([self.lengths, [*values]], dtype=torch.int64, device=self.device)
        return torch.repeat_interleave(table[1], table[0], output_size=self.total)

    def rows(self, first: Iterable[int]) -> Tensor:
        """Where each token stands in a tensor in which the sequences start at `first`: (total,) int64."""
        shifts = [place - start for place, start in zip(first, self.starts[:-1], strict=True)]
        return torch.arange(self.total, device=self.device) + self.spread(shifts)

    @cached_property
    def groups(self) -> "tuple[Group, ...]":
        """The sequences in groups of similar length."""
        order = sorted((n for n in range(len(self.lengths)) if self.lengths[n]), key=self.lengths.__getitem__)
        groups: list[list[int]] = []
        tokens = 0
        for n in order:
            longest = self.lengths[n]
            if groups and longest * (len(groups[-1]) + 1) <= MAX_PADDING * (tokens + longest):
                groups[-1].append(n)
                tokens += longest
            else:
                groups.append([n])
                tokens = longest
        return tuple(
            _group([self.starts[n] for n in g], [self.lengths[n] for n in g], self.device) for g in groups
        )

    @cached_property
    def places(self) -> Tensor:
        """Where each packed token stands among the padded tokens of all groups: (total,) int64."""
        places = torch.empty(self.total, dtype=torch.int64, device="cpu")
        start = 0
        for group in self.groups:
            # Backwards, so that of a repeated token its first place counts: what follows is padding.
            at = torch.arange(start, start + len(group.rows), device="cpu").flip(0)
            places[group.rows.cpu().flip(0)] = at
            start += len(group.rows)
        return places.to(self.device)


@dataclass(frozen=True, eq=False)
class Group:
    """m sequences of similar length, padded at the end to the longest, L tokens.

    `rows` (m * L,) int64 says which packed token stands where (padding repeats a token of the same sequence);
    `valid` (m, L) is False on padding, or None where there is none; `shape` is (m, L).
    """

    rows: Tensor
    valid: Tensor | None
    shape: tuple[int, int]


def _group(starts: Sequence[int], lengths: Sequence[int], device: torch.device) -> Group:
    longest = max(lengths)
    offsets = torch.arange(longest, device="cpu")
    limits = torch.tensor(lengths, device="cpu")[:, None]
    rows = torch.tensor(starts, device="cpu")[:, None] + torch.minimum(offsets[None, :], limits - 1)
    valid = None if min(lengths) == longest else (offsets[None, :] < limits).to(device)
    return Group(rows.flatten().to(device), valid, (len(lengths), longest))


def attend(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    """Attention of every token to all tokens of its own sequence, scaled by head_dim ** -0.5.

    `query` (T, heads, head_dim); `key`, `value` (T, kv_heads, head_dim), each kv head serving
    heads / kv_heads query heads (grouped-query attention, Ainslie et al. 2023). Returns (T, heads, head_dim).
    """
    half = query.dtype in (torch.float16, torch.bfloat16)
    if query.is_cuda and half and _has_flash(query.device):
        return _attend_flash(query, key, value, segments)
    return _attend_grouped(query, key, value, segments)


@cache
def _has_flash(device: torch.device) -> bool:
    """Whether the flash kernel runs on a GPU: from compute capability 8.0 on."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _attend_flash(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    longest = max(segments.lengths)
    out = varlen_attn(
        query,
        key,
        value,
        segments.bounds,
        segments.bounds,
        longest,
        longest,
        enable_gqa=True,
        num_splits=1,  # so that a sequence is summed up the same way in any company
    )
    assert isinstance(out, Tensor)  # a tuple only when auxiliary outputs are asked for
    return out


def _attend_grouped(query: Tensor, key: Tensor, value: Tensor, segments: Segments) -> Tensor:
    groups = segments.groups
    if len(groups) == 1 and groups[0].valid is None:  # equal lengths: the packed tensor is the batch
        shape = (len(segments.lengths), -1)
        out = _attend_padded(
            query.unflatten(0, shape), key.unflatten(0, shape), value.unflatten(0, shape), None
        )
        return out.flatten(0, 1)
    parts = []
    for group in groups:
        shape = group.shape
        q, k, v = (x.index_select(0, group.rows).unflatten(0, shape) for x in (query, key, value))
        parts.append(_attend_padded(q, k, v, group.valid).flatten(0, 1))
    return torch.cat(parts).index_select(0, segments.places)


def _attend_padded(query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None) -> Tensor:
    """(m, L, heads, head_dim) each; `valid` (m, L) masks keys."""
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    mask = None if valid is None else valid[:, None, None, :]
    if query.is_cuda:
        # Repeated here, as a kernel that never holds the scores of all pairs knows no groups of heads.
        key, value = _repeated(query, key, value)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    elif query.shape[2] <= SHORT:
        out = _attend_plainly(query, key, value, mask)
    else:
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2)


def _attend_plainly(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of products, written out: on short sequences a CPU does this several times faster."""
    key, value = _repeated(query, key, value)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1) @ value


def _repeated(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """`key` and `value` (m, kv_heads, L, head_dim) with as many heads as `query` has."""
    repeats = query.shape[1] // key.shape[1]
    if repeats == 1:
        return key, value
    return key.repeat_interleave(repeats, dim=1), value.repeat_interleave(repeats, dim=1)
