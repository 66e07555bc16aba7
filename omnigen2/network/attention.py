"""Full attention inside each sequence of a packed tensor: one operator, opaque to compilers, on every device.

Sequences of different lengths lie one after the other along the token axis; `bounds` says where. On CUDA, in
half precision, the variable-length flash kernel takes them so. A CPU attends sequence by sequence. Where
gradients are needed, and on a GPU too old for the flash kernel, sequences of similar length are gathered into
padded groups, so that no Python loop runs over them. Callers never ask which.
"""

import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 256  # tokens up to which a CPU attends to padded groups faster without a fused kernel
MAX_PADDING = 1.25  # a group may hold this many times the tokens it was given
log = logging.getLogger(__name__)


def attend(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """Attention of every token to all tokens of its own sequence, scaled by head_dim ** -0.5.

    `query` (T, heads, head_dim); `key`, `value` (T, kv_heads, head_dim), each kv head serving
    heads / kv_heads query heads (grouped-query attention, Ainslie et al. 2023); `bounds` (n + 1,) int32:
    where each of n sequences starts, and where the last one ends; `longest`: tokens of the longest. Returns
    (T, heads, head_dim).
    """
    if not torch.is_grad_enabled():
        return packed_attention(query, key, value, bounds, longest)
    if _flash_takes(query):
        return _attend_flash(query, key, value, bounds, longest)
    return _attend_grouped(query, key, value, bounds)


@torch.library.custom_op("omnigen2::packed_attention", mutates_args=())
def packed_attention(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """`attend` without gradients."""
    if _flash_takes(query):
        return _attend_flash(query, key, value, bounds, longest)
    if query.is_cuda:
        return _attend_grouped(query, key, value, bounds)
    return _attend_each(query, key, value, bounds)


@packed_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int) -> Tensor:
    return torch.empty_like(query)


def _flash_takes(query: Tensor) -> bool:
    half = query.dtype in (torch.float16, torch.bfloat16)
    return query.is_cuda and half and _has_flash(query.device)


@cache
def _has_flash(device: torch.device) -> bool:
    """Whether the flash kernel runs on a GPU: from compute capability 8.0 on."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def newest_flash(
    capability: tuple[int, int], is_installed: Callable[[str], bool] | None = None
) -> str | None:
    """The installed flash kernel that is faster on a GPU than the one of torch; None if there is none."""
    found = is_installed or (lambda module: importlib.util.find_spec(module) is not None)
    if capability == (9, 0) and found("flash_attn_interface"):
        return "FA3"
    if capability[0] in (9, 10) and found("flash_attn") and found("flash_attn.cute"):
        return "FA4"
    return None


@cache
def use_newest_flash(device: torch.device) -> None:
    """Attend with the newest flash kernel that is installed, in the whole process."""
    if device.type != "cuda":
        return
    from torch.nn.attention import activate_flash_attention_impl

    try:
        if kernel := newest_flash(torch.cuda.get_device_capability(device)):
            activate_flash_attention_impl(kernel)
    except Exception as error:  # a package for another torch fails in any way when it is imported
        log.warning("attention runs with the kernel of torch: %s", error)


def _attend_flash(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor, longest: int) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    out = varlen_attn(
        query,
        key,
        value,
        bounds,
        bounds,
        longest,
        longest,
        enable_gqa=True,
        num_splits=1,  # so that a sequence is summed up the same way in any company
    )
    assert isinstance(out, Tensor)  # a tuple only when auxiliary outputs are asked for
    return out


def _attend_each(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor) -> Tensor:
    """One sequence after the other, without padding: their bits do not depend on their company."""
    q, k, v = (x.transpose(0, 1)[None] for x in (query, key, value))
    parts = [
        F.scaled_dot_product_attention(
            q[..., start:end, :], k[..., start:end, :], v[..., start:end, :], enable_gqa=True
        )[0].transpose(0, 1)
        for start, end in pairwise(bounds.tolist())
        if start < end
    ]
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True, eq=False)
class Group:
    """m sequences of similar length, padded at the end to the longest, L tokens.

    `rows` (m * L,) int64 says which packed token stands where (padding repeats a token of the same sequence);
    `valid` (m, L) is False on padding, or None where there is none; `shape` is (m, L).
    """

    rows: Tensor
    valid: Tensor | None
    shape: tuple[int, int]

    def to(self, device: torch.device) -> "Group":
        """The same on a device."""
        valid = None if self.valid is None else self.valid.to(device)
        return Group(self.rows.to(device), valid, self.shape)


@lru_cache(maxsize=16)
def grouped(lengths: tuple[int, ...], device: torch.device) -> tuple[list[Group], Tensor]:
    """Packed sequences in groups of similar length.

    Also returns where each packed token stands among the padded tokens of all groups: (T,) int64.
    """
    starts = list(accumulate(lengths, initial=0))
    order = sorted((n for n in range(len(lengths)) if lengths[n]), key=lengths.__getitem__)
    members: list[list[int]] = []
    tokens = 0
    for n in order:
        longest = lengths[n]
        if members and longest * (len(members[-1]) + 1) <= MAX_PADDING * (tokens + longest):
            members[-1].append(n)
            tokens += longest
        else:
            members.append([n])
            tokens = longest
    groups = [_group([starts[n] for n in own], [lengths[n] for n in own]) for own in members]
    places = torch.empty(starts[-1], dtype=torch.int64, device="cpu")
    start = 0
    for group in groups:
        # Backwards, so that of a repeated token its first place counts: what follows is padding.
        at = torch.arange(start, start + len(group.rows), device="cpu").flip(0)
        places[group.rows.flip(0)] = at
        start += len(group.rows)
    return [group.to(device) for group in groups], places.to(device)


def _group(starts: Sequence[int], lengths: Sequence[int]) -> Group:
    longest = max(lengths)
    offsets = torch.arange(longest, device="cpu")
    limits = torch.tensor(lengths, device="cpu")[:, None]
    rows = torch.tensor(starts, device="cpu")[:, None] + torch.minimum(offsets[None, :], limits - 1)
    valid = None if min(lengths) == longest else offsets[None, :] < limits
    return Group(rows.flatten(), valid, (len(lengths), longest))


def _attend_grouped(query: Tensor, key: Tensor, value: Tensor, bounds: Tensor) -> Tensor:
    lengths = tuple(bounds.diff().tolist())
    with torch.inference_mode(False):  # whoever trains may use what was made for others
        groups, places = grouped(lengths, query.device)
    if len(groups) == 1 and groups[0].valid is None:  # equal lengths: the packed tensor is the batch
        shape = groups[0].shape
        out = _attend_padded(
            query.unflatten(0, shape), key.unflatten(0, shape), value.unflatten(0, shape), None
        )
        return out.flatten(0, 1)
    parts = []
    for group in groups:
        shape = group.shape
        q, k, v = (x.index_select(0, group.rows).unflatten(0, shape) for x in (query, key, value))
        parts.append(_attend_padded(q, k, v, group.valid).flatten(0, 1))
    return torch.cat(parts).index_select(0, places)


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
