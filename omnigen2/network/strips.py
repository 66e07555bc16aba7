"""Large pictures through an `AutoencoderKL` in strips of rows, in half the memory and without seams.

Group normalisation and attention look at the whole picture, so tiles that pass through the network one after
another come out differently. Here each layer passes over the picture, strip by strip: statistics are combined
from those of all strips, and a convolution sees the rows next to its strip. The result is that of the whole
picture but for rounding, for the same work; no layer holds more than its input and its output.

A picture is a list of strips (1, C, rows, width) from top to bottom, which the functions below consume.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from omnigen2.sizes import STRIP_PIXELS

SCORES = 1 << 26
"""Attention scores at once: 256 MB, should a kernel hold them in float32."""

Strips = list[Tensor]
Pointwise = Callable[[Tensor], Tensor]


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """`vae.decode`: pixels (1, 3, height, width) of latents (1, C, h, w)."""
    decoder: Any = vae.decoder
    if vae.post_quant_conv is not None:
        latents = vae.post_quant_conv(latents)
    strips = _convolve(decoder.conv_in, _cut(latents))
    _middle(decoder.mid_block, strips)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            _resnet(resnet, strips)
        for upsampler in block.upsamplers or ():
            strips = _upsample(upsampler.conv, strips)
    return _last(decoder, strips)


def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """The mode of `vae.encode`: latents (1, C, h, w) of pixels (1, 3, height, width)."""
    encoder: Any = vae.encoder
    strips = _convolve(encoder.conv_in, _cut(pixels))
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            _resnet(resnet, strips)
        for downsampler in block.downsamplers or ():
            strips = _downsample(downsampler.conv, strips)
    _middle(encoder.mid_block, strips)
    moments = _last(encoder, strips)
    if vae.quant_conv is not None:
        moments = vae.quant_conv(moments)
    return moments.chunk(2, dim=1)[0]


def _middle(block: Any, strips: Strips) -> None:
    _resnet(block.resnets[0], strips)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        if attention is not None:
            _attend(attention, strips)
        _resnet(resnet, strips)


def _last(coder: Any, strips: Strips) -> Tensor:
    """What the last layers of an encoder or decoder make of the strips, in one piece."""
    return torch.cat(_convolve(coder.conv_out, strips, _normalised(coder.conv_norm_out, strips)), dim=2)


def _resnet(block: Any, strips: Strips) -> None:
    """A residual block, in place. Where it has fewer channels than its input, it never holds all of both."""
    shortcut: Pointwise = block.conv_shortcut or (lambda strip: strip)
    before = _normalised(block.norm1, strips)
    inner: Strips = []
    for index in range(len(strips)):
        inner.append(_strip(block.conv1, strips, index, before))
        if index:  # the strip above is needed no more
            strips[index - 1] = shortcut(strips[index - 1])
    strips[-1] = shortcut(strips[-1])
    between = _normalised(block.norm2, inner)
    for index in range(len(strips)):
        strips[index] = strips[index] + _strip(block.conv2, inner, index, between)


def _attend(attention: Any, strips: Strips) -> None:
    """Attention between all positions of the picture, in place, for some of the queries at a time."""
    picture = torch.cat(strips, dim=2)
    tokens = attention.group_norm(picture).flatten(2).transpose(1, 2)
    query, key, value = (
        layer(tokens).unflatten(2, (attention.heads, -1)).transpose(1, 2)
        for layer in (attention.to_q, attention.to_k, attention.to_v)
    )
    queries = query.split(max(1, SCORES // tokens.shape[1]), dim=2)
    attended = torch.cat([F.scaled_dot_product_attention(some, key, value) for some in queries], dim=2)
    change = attention.to_out[0](attended.transpose(1, 2).flatten(2))
    strips[:] = _cut(picture + change.transpose(1, 2).reshape(picture.shape))


def _upsample(conv: nn.Conv2d, strips: Strips) -> Strips:
    """Twice the size, by nearest neighbours and a convolution."""
    low = _cut(*strips, rows=max(1, _rows(2 * strips[0].shape[-1]) // 2))
    strips.clear()
    made: Strips = []
    for index in range(len(low)):
        # one row around the strip becomes two, of which the convolution sees one
        high = F.interpolate(_with_rows(low, index, 1, 1), scale_factor=2.0, mode="nearest")
        above, below = int(index > 0), int(index < len(low) - 1)
        high = high[:, :, above : high.shape[2] - below]
        made.append(_unpadded(conv, F.pad(high, (1, 1, 1 - above, 1 - below))))
        if index:  # it is needed no more
            low[index - 1] = high.new_empty(0)
    return made


def _downsample(conv: nn.Conv2d, strips: Strips) -> Strips:
    """Half the size, by a convolution with a row and a column of zeros below and to the right."""
    made: Strips = []
    for index in range(len(strips)):
        bottom = int(index == len(strips) - 1)
        made.append(_unpadded(conv, F.pad(_with_rows(strips, index, 0, 1), (0, 1, 0, bottom))))
    joined = max(1, _rows(made[0].shape[-1]) // made[0].shape[2])
    return [torch.cat(made[first : first + joined], dim=2) for first in range(0, len(made), joined)]


def _convolve(conv: nn.Conv2d, strips: Strips, before: Pointwise = lambda strip: strip) -> Strips:
    return [_strip(conv, strips, index, before) for index in range(len(strips))]


def _strip(conv: nn.Conv2d, strips: Strips, index: int, before: Pointwise) -> Tensor:
    """Strip `index` of a 3 x 3 convolution, with zeros around the picture, of `before(strips)`."""
    edges = int(index == 0), int(index == len(strips) - 1)
    return _unpadded(conv, F.pad(before(_with_rows(strips, index, 1, 1)), (1, 1, *edges)))


def _unpadded(conv: nn.Conv2d, padded: Tensor) -> Tensor:
    return F.conv2d(padded, conv.weight, conv.bias, conv.stride)


def _normalised(norm: nn.GroupNorm, strips: Strips) -> Pointwise:
    """Group normalisation with the statistics of the whole picture, and SiLU.

    Statistics are combined as in Chan et al. 1983, "Algorithms for computing the sample variance", eq. 2.1.
    """
    parts = [_statistics(norm, strip) for strip in strips]
    counts, means, variances = map(torch.stack, zip(*parts, strict=True))
    shares = counts / counts.sum(dim=0)
    mean = (shares * means).sum(dim=0)
    variance = (shares * (variances + (means - mean).square())).sum(dim=0)
    each = norm.num_channels // norm.num_groups
    scale = norm.weight.float() * (variance + norm.eps).rsqrt().repeat_interleave(each)
    shift = norm.bias.float() - mean.repeat_interleave(each) * scale
    scale, shift = scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)
    return lambda strip: F.silu(torch.addcmul(shift, strip.float(), scale).to(strip.dtype), inplace=True)


def _statistics(norm: nn.GroupNorm, strip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean and variance of a strip's values in each group, float32."""
    values = strip.float().reshape(norm.num_groups, -1)
    variance, mean = torch.var_mean(values, dim=1, correction=0)
    return torch.full_like(mean, values.shape[1]), mean, variance


def _with_rows(strips: Strips, index: int, above: int, below: int) -> Tensor:
    """A strip with rows of its neighbours, where it has any."""
    parts = [strips[index]]
    if above and index:
        parts.insert(0, strips[index - 1][:, :, -above:])
    if below and index + 1 < len(strips):
        parts.append(strips[index + 1][:, :, :below])
    return torch.cat(parts, dim=2)


def _cut(*pieces: Tensor, rows: int | None = None) -> Strips:
    """Pieces (1, C, height, width) from top to bottom cut into strips, by default of the usual size."""
    return [strip for piece in pieces for strip in piece.split(rows or _rows(piece.shape[-1]), dim=2)]


def _rows(width: int) -> int:
    """Rows of a strip: an even number, so that strips of half the size are whole."""
    return max(2, STRIP_PIXELS // width // 2 * 2)
