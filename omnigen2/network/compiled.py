"""The blocks of the transformer as compiled code: three graphs in all, whatever the company.

A block knows tensors and numbers only, and attention is one opaque operator, so that sizes can be symbols:
one graph serves every block, another the last one, which keeps the rows of pictures, and a third one every
block where somebody has adapters (`omnigen2.adapters.apply`). A graph is specialised where a size is 1, or
where two sizes are equal by chance: the first call is made with sizes that all differ, and what has a size of
1 runs as it is written. Compiled code is kept on disk between starts.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from platformdirs import user_cache_path
from torch import Tensor

from omnigen2.adapters.apply import adapted, number
from omnigen2.memory.device import is_out_of_memory
from omnigen2.network.blocks import Block, ModulatedNorm
from omnigen2.network.threads import ALL, limited_to
from omnigen2.network.transformer import OmniGen2Transformer2DModel

TOKENS, LONGEST, ROWS, TIMES = 997, 499, 211, 5
"""Sizes of the first call: primes, unlike each other and the width of any layer."""
GRAPHS = 64
"""Graphs that a process may have: those of many models. Beyond that torch would refuse to compile."""
Backend = str | Callable[..., Any]
log = logging.getLogger(__name__)


class CompiledBlocks:
    """Runs `Block.compute` by compiled code, and as it is written where that would need one more graph."""

    def __init__(self, backend: Backend = "inductor"):
        self._compute, self._adapted = (
            torch.compile(  # pyright: ignore[reportCallIssue]: its stubs lack the limit
                compute, dynamic=True, fullgraph=True, backend=backend, recompile_limit=GRAPHS
            )
            for compute in (Block.compute, _compute_adapted)
        )

    def __call__(self, block: Block, *inputs: Any) -> Tensor:
        """`block.compute(*inputs)`, all of them given but, perhaps, the rows (with adapters, never)."""
        x, _, _, longest, *others = inputs
        one = len(x) == 1 or longest == 1 or len(others[-1]) == 1
        # A thread that loads a model changes the default precision for a while, which is part of a graph.
        if one or torch.get_default_dtype() != torch.float32:
            return block.compute(*inputs)
        run: Any = self._adapted if block.attn.to_q._forward_hooks else self._compute
        return run(block, *inputs)

    @torch.inference_mode()
    def warm_up(self, transformer: OmniGen2Transformer2DModel) -> None:
        """Compile the three graphs, or find them on disk."""
        first, last = transformer.layers[0], transformer.layers[-1]
        assert isinstance(first, Block)
        inputs = first_inputs(first, transformer.device, transformer.dtype)
        rows = torch.zeros(ROWS, dtype=torch.int64, device=transformer.device)
        with transformer.weights, limited_to(ALL):  # the number of threads is part of a graph
            first(*inputs, by=self)
            last(*inputs, rows, by=self)
            with adapted(transformer, {}, transformer.numbered):
                first(*inputs, by=self)


def _compute_adapted(block: Block, *inputs: Any) -> Tensor:
    """`Block.compute` again: what is compiled under another name has other graphs, with hooks."""
    return block.compute(*inputs)


def first_inputs(
    block: Block, device: torch.device, dtype: torch.dtype, tokens: int = TOKENS
) -> tuple[Any, ...]:
    """Inputs of `Block.compute` but for the rows, in sizes that stand for all others."""
    assert isinstance(block.norm1, ModulatedNorm)
    return (
        torch.zeros(tokens, block.attn.to_q.in_features, dtype=dtype, device=device),
        torch.zeros(tokens, block.attn.head_dim // 2, 2, dtype=torch.float32, device=device),
        torch.tensor((0, LONGEST, LONGEST + ROWS, tokens), dtype=torch.int32, device=device),
        LONGEST,
        torch.zeros(TIMES, block.norm1.linear.in_features, dtype=dtype, device=device),
        torch.zeros(tokens, dtype=torch.int64, device=device),
    )


def compile_blocks(transformer: OmniGen2Transformer2DModel, backend: Backend = "inductor") -> None:
    """Let a transformer run its blocks by compiled code, if this machine can compile it."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_cache_path("omnigen2-mcp") / "compiled"))
    compiled = CompiledBlocks(backend)
    transformer.numbered = number(transformer, transformer.blocks())
    try:
        compiled.warm_up(transformer)
    except Exception as error:  # compilers fail in any way: there may be none, or the GPU is too new
        if is_out_of_memory(error):
            raise
        transformer.numbered = {}
        log.warning("The model runs without compiled code: %s", str(error).strip().partition("\n")[0])
    else:
        transformer.compiled = compiled


def wanted(setting: str, device: torch.device) -> bool:
    """Whether blocks are to be compiled: with `auto` where a GPU computes, with `never` nowhere.

    Raises:
        ValueError: the setting is unknown.
    """
    if setting not in ("auto", "never"):
        raise ValueError(f"compile: {setting!r} is unknown; allowed: auto, never")
    return setting == "auto" and device.type == "cuda"
