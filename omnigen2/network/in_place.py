"""A whole picture through an `AutoencoderKL`, in less than half the memory that the library takes.

Each layer writes over what is needed no more: a norm takes some groups after others, a convolution strips of
rows, which it puts where its input was. The functions below consume the values they are given. The results
are the library's: nothing else is computed, and groups and rows depend on no others. Bits are equal wherever
a convolution rounds strips as it does the whole picture, as on the CPUs where it was tried.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn

from omnigen2.sizes import CONVOLVED_PIXELS

NORMED = 1 << 24
"""Values that a norm computes at once."""


def decode(vae: AutoencoderKL, latents: Tensor) -> Tensor:
    """`vae.decode`: pixels (1, 3, height, width) of latents (1, C, h, w)."""
    decoder: Any = vae.decoder
    if vae.post_quant_conv is not None:
        latents = vae.post_quant_conv(latents)
    x = decoder.mid_block(decoder.conv_in(latents))
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            x = _resnet(resnet, x)
        for upsampler in block.upsamplers or ():
            x = _upsample(upsampler.conv, x)
    return decoder.conv_out(_normed(decoder.conv_norm_out, x))


def encode(vae: AutoencoderKL, pixels: Tensor) -> Tensor:
    """The mode of `vae.encode`: latents (1, C, h, w) of pixels (1, 3, height, width)."""
    encoder: Any = vae.encoder
    x = encoder.conv_in(pixels)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            x = _resnet(resnet, x)
        for downsampler in block.downsamplers or ():
            x = downsampler(x)
    moments = encoder.conv_out(_normed(encoder.conv_norm_out, encoder.mid_block(x)))
    if vae.quant_conv is not None:
        moments = vae.quant_conv(moments)
    return moments.chunk(2, dim=1)[0]


def _resnet(block: Any, x: Tensor) -> Tensor:
    """A residual block."""
    kept, inner = (block.conv_shortcut(x), x) if block.conv_shortcut else (x, torch.empty_like(x))
    inner = _convolve(block.conv1, _normed(block.norm1, x, inner))
    return kept.add_(_convolve(block.conv2, _normed(block.norm2, inner)))


def _normed(norm: nn.GroupNorm, x: Tensor, into: Tensor | None = None) -> Tensor:
    """Group normalisation and SiLU, written over `x` or to `into`."""
    into = x if into is None else into
    each = norm.num_channels // norm.num_groups
    groups = max(1, norm.num_groups * NORMED // x.numel())  # at once
    for first in range(0, norm.num_groups, groups):
        some = slice(first * each, min(first + groups, norm.num_groups) * each)
        part = x[:, some]
        made = F.group_norm(part, part.shape[1] // each, norm.weight[some], norm.bias[some], norm.eps)
        into[:, some] = F.silu(made, inplace=True)
    return into


def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 3 x 3 convolution with zeros around the picture, written over the first channels of `x` if it can."""
    height, width = x.shape[-2:]
    rows = _rows(height, width)
    if rows == height:
        return conv(x)
    fits = conv.out_channels <= conv.in_channels
    into = x[:, : conv.out_channels] if fits else x.new_empty(1, conv.out_channels, height, width)
    above = nothing = x.new_zeros(1, conv.in_channels, 1, width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        below = [nothing] if bottom == height else []
        strip = torch.cat([above, x[:, :, top : bottom + 1], *below], dim=2)
        above = x[:, :, bottom - 1 : bottom].clone()
        into[:, :, top:bottom] = _strip(conv, strip)
    return into


def _upsample(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Twice the size, by nearest neighbours and a convolution."""
    height, width = x.shape[-2:]
    rows = _rows(height, 4 * width)
    made = x.new_empty(1, conv.out_channels, 2 * height, 2 * width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        above, below = int(top > 0), int(bottom < height)
        strip = F.interpolate(x[:, :, top - above : bottom + below], scale_factor=2.0, mode="nearest")
        strip = strip[:, :, above : strip.shape[2] - below]  # a row around became two: one is seen
        strip = F.pad(strip, (0, 0, 1 - above, 1 - below))
        made[:, :, 2 * top : 2 * bottom] = _strip(conv, strip)
    return made


def _rows(height: int, pixels: int) -> int:
    """Rows of a strip, of `pixels` in each row: strips are of about one height."""
    strips = min(height, math.ceil(height * pixels / CONVOLVED_PIXELS))
    return math.ceil(height / strips)


def _strip(conv: nn.Conv2d, strip: Tensor) -> Tensor:
    """A convolution of rows, and of one above and one below them."""
    return F.conv2d(strip, conv.weight, conv.bias, padding=(0, 1))
