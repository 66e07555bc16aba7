"""The layers that the transformer is built of, on packed tokens (T, channels).

Every sub-layer stands between two norms; time enters through scales and gates, as in Lumina-Next (Zhuo et al.
2024, arXiv:2406.18583, section 2). Names of modules are those of the published weights.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from omnigen2.network.attention import attend
from omnigen2.network.positions import rotate

FREQUENCIES = 256  # channels of the sinusoid that encodes the timestep


class RMSNorm(nn.Module):
    """Root-mean-square norm over channels (Zhang & Sennrich 2019) with a learnt scale."""

    def __init__(self, channels: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., channels) -> (..., channels)."""
        weight = self.weight.to(x.dtype)
        if torch.is_grad_enabled() and not x.is_cuda:
            return _TrainedRMSNorm.apply(x, weight, self.eps)  # pyright: ignore
        if x.is_cuda or x.dtype != torch.float32:
            return F.rms_norm(x, self.weight.shape, weight, self.eps)
        inverse = x.square().mean(dim=-1, keepdim=True).add_(self.eps).rsqrt_()
        return (x * inverse).mul_(weight)  # as the library computes it on a CPU, in fewer sweeps


class _TrainedRMSNorm(torch.autograd.Function):
    """`F.rms_norm` with a backward pass in few sweeps: a CPU takes three times as long for the library's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.rsqrt(length.square_().div_(x.shape[-1]).add_(eps))
        normed = x * inverse
        ctx.save_for_backward(normed, weight, inverse)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, None]:
        normed, weight, inverse = ctx.saved_tensors
        products = grad * normed
        along = (products @ weight).unsqueeze(-1) / normed.shape[-1]
        to_x = torch.addcmul(grad * weight, normed, along, value=-1).mul_(inverse)
        to_weight = products.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, None


class ModulatedNorm(nn.Module):
    """RMS norm of the tokens, and scales and gates drawn from the time embedding."""

    def __init__(self, channels: int, time_channels: int, eps: float):
        super().__init__()
        self.linear = nn.Linear(time_channels, 4 * channels)
        self.norm = RMSNorm(channels, eps)

    def modulation(self, time: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(n, time_channels) -> scale and gate of attention, of feed-forward, (n, channels)."""
        scale1, gate1, scale2, gate2 = self.linear(time).chunk(4, dim=-1)
        return 1 + scale1, gate1.tanh(), 1 + scale2, gate2.tanh()


class Attention(nn.Module):
    """Grouped-query self-attention with normed queries and keys and rotary positions."""

    def __init__(self, channels: int, heads: int, kv_heads: int):
        super().__init__()
        head_dim = channels // heads
        self.head_dim = head_dim
        self.norm_q = RMSNorm(head_dim, eps=1e-5)
        self.norm_k = RMSNorm(head_dim, eps=1e-5)
        self.to_q = nn.Linear(channels, heads * head_dim, bias=False)
        self.to_k = nn.Linear(channels, kv_heads * head_dim, bias=False)
        self.to_v = nn.Linear(channels, kv_heads * head_dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels, bias=False)])

    def forward(self, x: Tensor, rotation: Tensor, bounds: Tensor, longest: int) -> Tensor:
        """(T, channels) -> (T, channels)."""
        query, key, value = (
            project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.to_q, self.to_k, self.to_v)
        )
        query = rotate(self.norm_q(query), rotation)
        key = rotate(self.norm_k(key), rotation)
        return self.to_out[0](attend(query, key, value.to(query.dtype), bounds, longest).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer 2020)."""

    def __init__(self, channels: int, inner: int):
        super().__init__()
        self.linear_1 = nn.Linear(channels, inner, bias=False)
        self.linear_2 = nn.Linear(inner, channels, bias=False)
        self.linear_3 = nn.Linear(channels, inner, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(T, channels) -> (T, channels)."""
        gate = self.linear_1(x)
        if torch.is_grad_enabled():
            return self.linear_2(F.silu(gate) * self.linear_3(x))
        return self.linear_2(F.silu(gate, inplace=True).mul_(self.linear_3(x)))


class Block(nn.Module):
    """Attention and feed-forward, each between two norms; with `time_channels`, scaled and gated by time."""

    def __init__(
        self, channels: int, heads: int, kv_heads: int, inner: int, eps: float, time_channels: int = 0
    ):
        super().__init__()
        self.attn = Attention(channels, heads, kv_heads)
        self.feed_forward = FeedForward(channels, inner)
        self.norm1 = ModulatedNorm(channels, time_channels, eps) if time_channels else RMSNorm(channels, eps)
        self.ffn_norm1 = RMSNorm(channels, eps)
        self.norm2 = RMSNorm(channels, eps)
        self.ffn_norm2 = RMSNorm(channels, eps)

    def forward(self, *inputs: Any, by: Callable[..., Tensor] | None = None) -> Tensor:
        """`compute(*inputs)`, by its compiled form if there is one: hooks of the block run around it."""
        return (by or Block.compute)(self, *inputs)

    def compute(
        self,
        x: Tensor,
        rotation: Tensor,
        bounds: Tensor,
        longest: int,
        time: Tensor | None = None,
        owner: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Tensor:
        """(T, channels) -> (T, channels), or (len(rows), channels) if only those tokens are needed.

        `rotation` (T, head_dim / 2, 2): as `rotations` makes it; `bounds` (n + 1,) and `longest` as for
        `attend`; `time` (m, time_channels): the embedded times after SiLU, `owner` (T,) the row of it for
        each token.
        """
        if time is None or not isinstance(self.norm1, ModulatedNorm):
            x = _sum(self.norm2(self.attn(self.norm1(x), rotation, bounds, longest)), x)
            return _sum(self.ffn_norm2(self.feed_forward(self.ffn_norm1(x))), x)
        scale1, gate1, scale2, gate2 = self.norm1.modulation(time)
        assert owner is not None
        attended = self.attn(_scaled(self.norm1.norm(x), scale1, owner), rotation, bounds, longest)
        if rows is not None:
            x, attended, owner = _rows(x, rows), _rows(attended, rows), _rows(owner, rows)
        x = _sum(_scaled(self.norm2(attended), gate1, owner), x)
        scaled = _scaled(self.ffn_norm1(x), scale2, owner)
        return _sum(_scaled(self.ffn_norm2(self.feed_forward(scaled)), gate2, owner), x)


class TimeCaptionEmbedding(nn.Module):
    """Embeds the timestep, and projects the text encoder's features to the hidden size."""

    def __init__(self, channels: int, text_channels: int, time_channels: int, eps: float):
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(FREQUENCIES, time_channels)
        self.caption_embedder = nn.Sequential(RMSNorm(text_channels, eps), nn.Linear(text_channels, channels))


class OutputLayer(nn.Module):
    """Layer norm scaled by time, and the projection to patches."""

    def __init__(self, channels: int, time_channels: int, out: int):
        super().__init__()
        self.linear_1 = nn.Linear(time_channels, channels)
        self.linear_2 = nn.Linear(channels, out)

    def forward(self, x: Tensor, time: Tensor, owner: Tensor) -> Tensor:
        """(N, channels) -> (N, out)."""
        normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
        return self.linear_2(_scaled(normed, 1 + self.linear_1(time), owner))


def _scaled(x: Tensor, scale: Tensor, owner: Tensor) -> Tensor:
    """`x` (T, channels), each row times that row of `scale` (n, channels) which `owner` (T,) names.

    In the memory of `x` where nothing is learnt.
    """
    factor = scale if len(scale) == 1 else _rows(scale, owner)
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


def _sum(x: Tensor, other: Tensor) -> Tensor:
    """`x + other`, in the memory of `x` where nothing is learnt."""
    return x + other if torch.is_grad_enabled() else x.add_(other)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """`x[index]`, by the function whose backward pass is fast."""
    return x.index_select(0, index)
