"""OmniGen2: text to image, edits, compositions and descriptions with one model.

`load` is the way in. Importing this package does not import torch; the first use of the model does.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omnigen2.model import OmniGen2


def load(
    source: str = "nano",
    device: str = "auto",
    dtype: str = "auto",
    memory: str = "auto",
    quantize: str = "none",
    compile: str = "auto",
) -> "OmniGen2":
    """Load a model: `nano`, a folder in the published layout, a file of ComfyUI or a folder of them, or the
    id of a downloaded repository.

    `device` is `auto`, `cpu`, `cuda` or `cuda:N`; `dtype` is `auto` (bfloat16 on a GPU, float32 on a CPU),
    `float32`, `bfloat16` or `float16`. `memory` is `resident` (all weights stay on the device), `offload`
    (the large parts take turns), `stream` (the blocks come one by one), or `auto`: the quickest that fits.
    `quantize` keeps the blocks' weights in 8 bits (`int8`, `fp8`) or 4 (`nf4`), or those of a part:
    `transformer=fp8,language=nf4`; pictures change a little (see the README). `compile` is `auto` (blocks run
    by compiled code on a GPU) or `never`.

    Raises:
        FileNotFoundError: no such model is on this machine; the message says how to get it.
        ValueError: a weight is missing, surplus or misshapen, or `device`, `dtype`, `memory`, `quantize` or
            `compile` unknown.
    """
    from omnigen2.memory.placement import Placement, Quantization
    from omnigen2.model import OmniGen2

    return OmniGen2.load(source, Placement(device, dtype, memory, Quantization.parse(quantize), compile))


# The same product of matrices gives the same bits, whatever the threads and the place in memory (Intel MKL,
# "conditional numerical reproducibility"). Read when torch first multiplies; it costs no time.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")

__all__ = ["load"]
