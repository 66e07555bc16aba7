"""What a block moves once it is compiled for a GPU: read from the compiler's own schedule, without a GPU.

    python -m benchmarks.fused          # a block of the full size, in bfloat16, for every `--quantize`

Inductor decides what it fuses before it writes a kernel. Here it decides as for a GPU, by the rules of its
Triton backend, on a block whose weights have no values; then it is stopped.
"""

import contextlib
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch._inductor import config
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import MultiOutput
from torch._inductor.scheduler import BaseSchedulerNode, ExternKernelSchedulerNode, NopKernelSchedulerNode

from benchmarks.shapes import FULL_TRANSFORMER
from omnigen2.memory import quantize
from omnigen2.memory.placement import KINDS, Kind
from omnigen2.network.blocks import Block
from omnigen2.network.compiled import CompiledBlocks, first_inputs
from omnigen2.network.transformer import OmniGen2Transformer2DModel

META = torch.device("meta")


@dataclass(frozen=True)
class Fused:
    """What a compiled block launches, and what its kernels move beside products and attention."""

    kernels: int
    fixed: int
    """Bytes, whatever the number of tokens: weights that are turned into the precision of the product."""
    by_token: float
    """Bytes for each token."""

    def moved(self, tokens: int, calls: int) -> int:
        """Bytes of so many calls, for that many tokens in all."""
        return round(self.fixed * calls + self.by_token * tokens)


class _Scheduled(BaseException):
    """Stops the compiler; no mere exception, which it would catch."""


@cache
def fused(kind: Kind) -> Fused:
    """Of a block of the full size whose layers are kept as `kind`; `fp8` multiplies 8-bit floats."""
    block = block_of(kind)
    (kernels, once), (_, twice) = (scheduled(block, tokens) for tokens in (1009, 2017))
    by_token = (twice - once) / 1008
    return Fused(kernels, round(once - 1009 * by_token), by_token)


def block_of(kind: Kind) -> Block:
    """A block of the full size, in memory that nothing is written to and that therefore takes none."""
    shape: dict[str, Any] = FULL_TRANSFORMER | {"num_layers": 1}
    with META:
        block = OmniGen2Transformer2DModel(**shape).bfloat16().layers[0]
    assert isinstance(block, Block)
    if kind != "none":
        with mock.patch.object(quantize, "multiplies_fp8", lambda _: True):
            quantize.quantize_block(block, kind, META)
    return block.to_empty(device="cpu").eval()


@torch.inference_mode()
def scheduled(block: Block, tokens: int) -> tuple[int, int]:
    """Kernels of a block, and bytes that those read and write which are neither products nor attention."""
    found: list[tuple[int, int]] = []

    def stop(graph: GraphLowering) -> None:
        graph.init_wrapper_code()
        graph._update_scheduler()
        nodes = [node for node in graph.scheduler.nodes if not _launches_nothing(node)]
        fused = [node for node in nodes if not isinstance(node, ExternKernelSchedulerNode)]
        found.append((len(nodes), sum(node.get_read_write_buffers_sizes() for node in fused)))
        raise _Scheduled

    with (
        mock.patch.object(GraphLowering, "codegen", stop),
        config.patch(cpu_backend="triton", fx_graph_cache=False),
        contextlib.suppress(_Scheduled),
    ):
        CompiledBlocks()(block, *first_inputs(block, torch.device("cpu"), torch.bfloat16, tokens))
    return found[0]


def _launches_nothing(node: BaseSchedulerNode) -> bool:
    return isinstance(node, NopKernelSchedulerNode) or isinstance(node.node, MultiOutput)


def main() -> None:
    """Count, print."""
    for kind in KINDS:
        own = fused(kind)
        print(
            f"{kind:5} {own.kernels} kernels; beside products and attention they move "
            f"{own.by_token / 1000:.1f} KB a token and {own.fixed / 1e6:.0f} MB",
            flush=True,
        )


if __name__ == "__main__":
    main()
