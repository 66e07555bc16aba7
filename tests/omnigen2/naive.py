"""OmniGen2 a second time, as plainly as it can be said: one picture, one branch, one head at a time.

Written from the description of the architecture, on bare tensors and a dictionary of weights; shares no line
with the package. Slow, in float64, and only for comparison.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def velocity(
    weights: Weights,
    config: Mapping[str, Any],
    text: Tensor,
    references: Sequence[Tensor],
    latents: Tensor,
    time: float,
) -> Tensor:
    """What the transformer predicts for latents (C, h, w) at a flow time, given text and references."""
    w = {name: value.double() for name, value in weights.items()}
    p = config["patch_size"]
    temb = _time(w, config, time)
    caption = rms(text.double(), w["time_caption_embed.caption_embedder.0.weight"], config["norm_eps"])
    caption = affine(w, "time_caption_embed.caption_embedder.1", caption)
    places = [(i, i, i) for i in range(len(text))]
    for i in range(config["num_refiner_layers"]):
        caption = block(w, f"context_refiner.{i}", config, caption, places, None)
    tokens, shift, all_places = [caption], len(text), list(places)
    for j, reference in enumerate(references):
        own, grid = patches(reference.double(), p)
        x = affine(w, "ref_image_patch_embedder", own) + w["image_index_embedding"][j]
        here = [(shift, row, column) for row in range(grid[0]) for column in range(grid[1])]
        for i in range(config["num_refiner_layers"]):
            x = block(w, f"ref_image_refiner.{i}", config, x, here, temb)
        tokens.append(x)
        all_places += here
        shift += max(grid)
    own, grid = patches(latents.double(), p)
    x = affine(w, "x_embedder", own)
    here = [(shift, row, column) for row in range(grid[0]) for column in range(grid[1])]
    for i in range(config["num_refiner_layers"]):
        x = block(w, f"noise_refiner.{i}", config, x, here, temb)
    joint = torch.cat([*tokens, x])
    for i in range(config["num_layers"]):
        joint = block(w, f"layers.{i}", config, joint, all_places + here, temb)
    out = joint[-len(here) :]
    out = (out - out.mean(-1, keepdim=True)) / (out.var(-1, correction=0, keepdim=True) + 1e-6).sqrt()
    out = affine(w, "norm_out.linear_2", out * (1 + affine(w, "norm_out.linear_1", silu(temb))))
    return unpatched(out, grid, p)


def _time(w: Weights, config: Mapping[str, Any], time: float) -> Tensor:
    scaled = config["timestep_scale"] * torch.tensor(time, dtype=torch.float32).double()
    angles = [scaled * math.exp(-math.log(10_000) * k / 128) for k in range(128)]
    wave = torch.stack([a.cos() for a in angles] + [a.sin() for a in angles])
    hidden = silu(affine(w, "time_caption_embed.timestep_embedder.linear_1", wave))
    return affine(w, "time_caption_embed.timestep_embedder.linear_2", hidden)


def block(
    w: Weights, name: str, config: Mapping[str, Any], x: Tensor, places: Sequence[Any], temb: Tensor | None
) -> Tensor:
    eps, channels = config["norm_eps"], x.shape[-1]
    if temb is None:
        s1 = s2 = torch.zeros(channels, dtype=torch.float64)
        g1 = g2 = torch.ones(channels, dtype=torch.float64)
        first = w[f"{name}.norm1.weight"]
    else:
        four = affine(w, f"{name}.norm1.linear", silu(temb))
        s1, g1, s2, g2 = (four[i * channels : (i + 1) * channels] for i in range(4))
        g1, g2 = g1.tanh(), g2.tanh()
        first = w[f"{name}.norm1.norm.weight"]
    seen = attention(w, f"{name}.attn", config, rms(x, first, eps) * (1 + s1), places)
    x = x + g1 * rms(seen, w[f"{name}.norm2.weight"], eps)
    h = rms(x, w[f"{name}.ffn_norm1.weight"], eps) * (1 + s2)
    one, three = (h @ w[f"{name}.feed_forward.linear_{i}.weight"].T for i in (1, 3))
    h = (silu(one) * three) @ w[f"{name}.feed_forward.linear_2.weight"].T
    return x + g2 * rms(h, w[f"{name}.ffn_norm2.weight"], eps)


def attention(w: Weights, name: str, config: Mapping[str, Any], x: Tensor, places: Sequence[Any]) -> Tensor:
    heads, kv_heads = config["num_attention_heads"], config["num_kv_heads"]
    size = x.shape[-1] // heads
    q, k, v = (x @ w[f"{name}.to_{kind}.weight"].T for kind in "qkv")
    outs = []
    for head in range(heads):
        shared = head // (heads // kv_heads)
        query = q[:, head * size : (head + 1) * size]
        key = k[:, shared * size : (shared + 1) * size]
        value = v[:, shared * size : (shared + 1) * size]
        query = turned(rms(query, w[f"{name}.norm_q.weight"], 1e-5), places, config["axes_dim_rope"])
        key = turned(rms(key, w[f"{name}.norm_k.weight"], 1e-5), places, config["axes_dim_rope"])
        outs.append((query @ key.T / math.sqrt(size)).softmax(-1) @ value)
    return torch.cat(outs, -1) @ w[f"{name}.to_out.0.weight"].T


def turned(x: Tensor, places: Sequence[Any], axes: Sequence[int]) -> Tensor:
    where = torch.tensor(places, dtype=torch.float64)
    turned, first = [], 0
    for axis, size in enumerate(axes):
        for pair in range(size // 2):
            angle = where[:, axis] * 10_000 ** (-2 * pair / size)
            a, b = x[:, first], x[:, first + 1]
            turned += [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]
            first += 2
    return torch.stack(turned, -1)


def patches(latents: Tensor, p: int) -> tuple[Tensor, tuple[int, int]]:
    rows, columns = latents.shape[-2] // p, latents.shape[-1] // p
    cut = [
        latents[:, r * p + dr, c * p + dc]
        for r in range(rows)
        for c in range(columns)
        for dr in range(p)
        for dc in range(p)
    ]
    return torch.stack(cut).reshape(rows * columns, -1), (rows, columns)


def unpatched(tokens: Tensor, grid: tuple[int, int], p: int) -> Tensor:
    channels = tokens.shape[-1] // p**2
    out = torch.empty(channels, grid[0] * p, grid[1] * p, dtype=tokens.dtype)
    for n, token in enumerate(tokens):
        r, c = divmod(n, grid[1])
        for m, values in enumerate(token.reshape(p * p, channels)):
            out[:, r * p + m // p, c * p + m % p] = values
    return out


def euler(predict: Any, noise: Tensor, steps: int) -> Tensor:
    """Latents after `steps` steps; `predict(latents, time, index)` is the guided velocity."""
    m = math.sqrt(noise.shape[-1] * noise.shape[-2]) / 40
    times = [(k / steps) / (m - m * k / steps + k / steps) for k in range(steps)] + [1.0]
    x = noise.double()
    for k in range(steps):
        x = x + (times[k + 1] - times[k]) * predict(x, times[k], k)
    return x


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight


def affine(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())
