"""Linear layers whose weights are kept in 8 or 4 bits, and the change of a model's blocks to them.

The layers are our own: the published hidden size, 2520, is no multiple of 16 or 32, and the libraries that
quantise leave a layer of such a shape as it was, without a word, or refuse it. Weights and scales are
buffers, so that they are moved, streamed and offloaded like all others. Activations keep their precision,
except in `fp8` on a GPU that multiplies 8-bit floats (`Fp8Linear`). Modulation, embedders, norms and the
output layer are left alone: they are small, and errors there weigh most.
"""

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnigen2.memory.placement import Kind, Quantization

FP8 = torch.float8_e4m3fn
FP8_MAX = torch.finfo(FP8).max
TILE = 16
"""Multiple of both sides of a weight that kernels for 8-bit floats take."""
GROUP = 64
"""Weights that share a scale in nf4."""
FP8_CAPABILITY = (8, 9)
"""Compute capability of the first GPUs that multiply 8-bit floats."""
LAYERS = {"transformer": 7, "language": 7, "vision": 5}
"""Linear layers of a block that are quantised."""


class QuantizedLinear(nn.Module):
    """What a linear layer has but its weight."""

    bias: Tensor | None

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias = layer.bias

    def extra_repr(self) -> str:
        """Shape, as `nn.Linear` says it."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class Int8Linear(QuantizedLinear):
    """Weights as integers from -127 to 127 with a scale for each output: W = scale * values."""

    values: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear):
        super().__init__(layer)
        weight = layer.weight.detach().float()
        scale = _scale(weight, 127.0)
        self.register_buffer("values", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return F.linear(x, self.values * self.scale.to(x.dtype)[:, None], self.bias)


class Fp8Linear(QuantizedLinear):
    """Weights as 8-bit floats (e4m3) with a scale for each output, padded with zeros to whole tiles.

    With `dynamic`, each row of the activations is scaled and rounded to 8-bit floats as well, and the product
    is that of 8-bit floats, summed up as fast as the GPU can. The bits are kept as integers: a library that
    changes the precision of a module would take them for floats to change.
    """

    bits: Tensor
    scale: Tensor

    def __init__(self, layer: nn.Linear, dynamic: bool):
        super().__init__(layer)
        self.dynamic = dynamic
        weight = layer.weight.detach().float()
        padding = (0, -layer.in_features % TILE, 0, -layer.out_features % TILE)
        scale = F.pad(_scale(weight, FP8_MAX), padding[2:], value=1.0)
        self.register_buffer("bits", (F.pad(weight, padding) / scale[:, None]).to(FP8).view(torch.uint8))
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        if self.dynamic:
            made = self._in_fp8(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
            return made if self.bias is None else made + self.bias
        weight = self.bits.view(FP8)[: self.out_features, : self.in_features].to(x.dtype)
        return F.linear(x, weight * self.scale[: self.out_features, None].to(x.dtype), self.bias)

    def _in_fp8(self, x: Tensor) -> Tensor:
        # Padded first: then compilers make scale and rows in one kernel, with what makes `x`.
        padded = F.pad(x, (0, self.bits.shape[1] - self.in_features))
        scale = _scale(padded, FP8_MAX)[:, None]
        made = torch._scaled_mm(  # pyright: ignore[reportPrivateImportUsage]
            (padded / scale).to(FP8),
            self.bits.view(FP8).t(),
            scale_a=scale,
            scale_b=self.scale[None, :],
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        return made[:, : self.out_features].to(x.dtype)


class Nf4Linear(QuantizedLinear):
    """Weights as 4-bit codes of quantiles of the normal distribution, each `GROUP` in a row with a scale.

    (Dettmers et al. 2023, "QLoRA", arXiv:2305.14314, section 3.) Two codes lie in a byte; the weight is taken
    row by row and filled up to whole groups.
    """

    codes: Tensor
    scale: Tensor
    pairs: Tensor

    def __init__(self, layer: nn.Linear):
        super().__init__(layer)
        weight = layer.weight.detach().float().flatten()
        groups = F.pad(weight, (0, -len(weight) % GROUP)).unflatten(0, (-1, GROUP))
        scale = _scale(groups, 1.0)
        levels = nf4_levels().to(weight.device)
        between = (levels[1:] + levels[:-1]) / 2
        codes = torch.bucketize(groups / scale[:, None], between).to(torch.uint8).flatten()
        self.register_buffer("codes", codes[0::2] * 16 + codes[1::2])
        self.register_buffer("scale", scale)
        self.register_buffer("pairs", torch.cartesian_prod(levels, levels))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        values = F.embedding(self.codes.int(), self.pairs.to(x.dtype)).view(-1, GROUP)
        weight = (values * self.scale[:, None].to(x.dtype)).flatten()
        weight = weight[: self.out_features * self.in_features].view(self.out_features, self.in_features)
        return F.linear(x, weight, self.bias)


@cache
def nf4_levels() -> Tensor:
    """The 16 values of a 4-bit code, from -1 to 1 with 0 among them (QLoRA, equation 4, section 3)."""
    edge = (1 - 1 / 32 + 1 - 1 / 30) / 2  # the outermost quantile, so that it is finite
    with torch.device("cpu"):
        positive = torch.special.ndtri(torch.linspace(0.5, edge, 9, dtype=torch.float64))
        negative = -torch.special.ndtri(torch.linspace(0.5, edge, 8, dtype=torch.float64))
    levels = torch.cat([negative.flip(0)[:-1], positive])
    return (levels / positive[-1]).float()


def quantize(transformer: Any, mllm: Any, wanted: Quantization, device: torch.device) -> None:
    """Change the blocks of a transformer and of a language model in place; the layers stay on the CPU.

    One layer after the other is made on `device`, so that a model mapped from its files is never in memory
    as a whole.

    Raises:
        ValueError: a block has another number of linear layers than it should.
    """
    parts: tuple[tuple[str, list[nn.Module], Kind], ...] = (
        ("transformer", list(transformer.blocks()), wanted.transformer),
        ("language", list(mllm.model.language_model.layers), wanted.language),
        ("vision", list(mllm.model.visual.blocks), wanted.language),
    )
    for part, blocks, kind in parts:
        if kind == "none":
            continue
        changed = sum(quantize_block(block, kind, device) for block in blocks)
        if changed != LAYERS[part] * len(blocks):
            raise ValueError(
                f"quantize: {len(blocks)} blocks ({part}) have {changed} layers to quantise instead of "
                f"{LAYERS[part] * len(blocks)}; load it with quantize none"
            )


@torch.inference_mode(False)
@torch.no_grad()
def quantize_block(block: nn.Module, kind: Kind, device: torch.device) -> int:
    """Change the layers of a block, as `quantize` does, and return how many there were."""
    found = list(_linear_layers(block))
    for parent, name, layer in found:
        here = nn.Linear(layer.in_features, layer.out_features, device="meta")
        here.weight, here.bias = nn.Parameter(layer.weight.to(device), requires_grad=False), layer.bias
        setattr(parent, name, quantized(here, kind, multiplies_fp8(device)).to(layer.weight.device))
    return len(found)


def quantized(layer: nn.Linear, kind: Kind, dynamic: bool = False) -> QuantizedLinear:
    """A layer with the weights of another; `dynamic` as for `Fp8Linear`. `kind` is not `none`."""
    if kind == "int8":
        return Int8Linear(layer)
    return Fp8Linear(layer, dynamic) if kind == "fp8" else Nf4Linear(layer)


def quantized_bytes(rows: int, columns: int, kind: Kind) -> int:
    """Bytes of the weights and scales of a layer; `kind` is not `none`."""
    if kind == "int8":
        return rows * columns + 4 * rows
    if kind == "fp8":
        return (rows + -rows % TILE) * (columns + -columns % TILE + 4)
    groups = math.ceil(rows * columns / GROUP)
    return groups * (GROUP // 2 + 4) + 4 * 2 * 256


def multiplies_fp8(device: torch.device) -> bool:
    """Whether a device has kernels for products of 8-bit floats that are worth their rounding."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of a block, by its name within it, is a weight that is quantised."""
    return len(shape) == 2 and name.endswith(".weight") and not name.startswith("norm1.")


def _linear_layers(block: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Each linear layer of a block that is quantised, with the module that holds it and its name there."""
    for path, module in list(block.named_modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and is_quantized(f"{path}.{name}.weight", (0, 0)):
                yield module, name, child


def _scale(rows: Tensor, largest: float) -> Tensor:
    """What each row is divided by, so that its values are from -`largest` to `largest`: float32."""
    reach = torch.linalg.vector_norm(rows, torch.inf, dim=-1).float()
    return (reach / largest).clamp_min(torch.finfo(torch.float32).tiny)
