"""The device memory that a model needs to work, beside its weights; from shapes alone.

Each figure is read off the code it stands for, and `tests/omnigen2/test_footprint.py` holds it against what
is counted when that code runs (`benchmarks/counting.py`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from omnigen2.checkpoints.card import Limits
from omnigen2.checkpoints.headers import TensorInfo
from omnigen2.sizes import CONVOLVED_PIXELS, STRIP_PIXELS, WHOLE_PIXELS

MOST_TOKENS = 24_000
"""Tokens of a step beyond which a large GPU gains nothing, and everybody waits longer for the next step."""
TEXT_TOKENS = 300
"""Of a prompt that is long, as far as prompts go."""
RESERVE = 0.1
"""Share of the free memory that is left to libraries and to what the allocator cannot use."""


@dataclass(frozen=True)
class Footprint:
    """What decides the memory of a computation: `hidden` channels of the transformer, `inner` of its
    feed-forward layers, `wide` of the autoencoder at full size, and the pixels that one token covers.
    """

    hidden: int
    inner: int
    wide: int
    token_pixels: int

    @classmethod
    def of(
        cls, transformer: Mapping[str, TensorInfo], autoencoder: Mapping[str, TensorInfo]
    ) -> "Footprint | None":
        """From the tensors of a checkpoint; None if it has not those of a model of this kind."""
        try:
            patch, latent = transformer["x_embedder.weight"], autoencoder["decoder.conv_in.weight"]
            levels = {name.split(".")[2] for name in autoencoder if name.startswith("decoder.up_blocks.")}
            return cls(
                hidden=patch.shape[0],
                inner=transformer["layers.0.feed_forward.linear_1.weight"].shape[0],
                wide=autoencoder[f"decoder.up_blocks.{len(levels) - 1}.resnets.0.norm1.weight"].shape[0],
                token_pixels=patch.shape[1] // latent.shape[1] * 4 ** (len(levels) - 1),
            )
        except (KeyError, IndexError):
            return None

    def decode_bytes(self, pixels: int, itemsize: int) -> int:
        """Of a picture that is decoded: at the full size its first block has its input, half as many channels
        beside it, and what a convolution computes at once (`omnigen2/network/in_place.py`); in strips
        (`omnigen2/network/strips.py`) there is one intermediate result, and a strip's own.
        """
        if pixels <= WHOLE_PIXELS:
            return int(self.wide * (1.5 * pixels + 3 * CONVOLVED_PIXELS) * itemsize)
        return int(self.wide * (pixels + 5.6 * STRIP_PIXELS) * itemsize)

    def request_tokens(self, limits: Limits) -> int:
        """Of a step of the largest request that is common: one picture, edited from one reference of the
        largest size, with text and image guidance; without a reference if the model takes none.
        """
        text, picture = min(limits.max_text_tokens, TEXT_TOKENS), limits.max_pixels // self.token_pixels
        reference = min(limits.max_pixels, limits.max_input_side**2) // self.token_pixels
        if not limits.max_references:
            return 2 * (text + picture)
        return 3 * (text + picture) + 2 * reference


def token_bytes(hidden: int, inner: int, itemsize: int, *, in_fp8: bool = False) -> int:
    """Bytes of each token of a denoising step, of values of `itemsize` bytes.

    There is most in a feed-forward layer: two products, and the tokens before, between and after. If it
    multiplies 8-bit floats (`Fp8Linear`), as it is written: the product, a copy that is padded, one in
    float32, and one in 8 bits. Compiled, these are never made, which is not counted on.
    """
    return itemsize * (2 * inner + 5 * hidden) + (inner * (4 + 1) if in_fp8 else 0)


def token_budget(free: int, each: int) -> int:
    """Tokens of `each` bytes that a denoising step may have in `free` bytes; at least one."""
    return max(1, min(MOST_TOKENS, math.floor(free * (1 - RESERVE) / each)))
