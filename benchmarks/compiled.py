"""Inductor's own code, on this machine: how far it is from the reference, and from the code as it is written.

    python -m benchmarks.compiled

Every golden case runs with blocks compiled as for a GPU, with a cache of its own; it fails where the tests
would. Then quantised blocks run 20 random companies, most of them with adapters, compiled and as written;
`fp8 x fp8` also rounds the activations, as a GPU does that multiplies 8-bit floats.
"""

import os
import random
import tempfile
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from benchmarks.quantize import EXACT, WAYS, Way
from omnigen2.checkpoints.load import load_transformer
from omnigen2.memory import quantize
from omnigen2.network.compiled import compile_blocks
from omnigen2.network.threads import limited_to
from tests.omnigen2 import golden
from tests.omnigen2 import test_golden_requests as cases
from tests.omnigen2.test_compiled import adapter, company

COMPANIES = 20


@cache
def compiled_model(folder: Path, memory: str) -> Any:
    """The checkpoint in `folder` with compiled blocks."""
    omnigen = golden.model(folder, memory)
    compile_blocks(omnigen.pipeline.transformer)
    assert omnigen.pipeline.transformer.compiled is not None
    return omnigen


def check_golden_cases() -> None:
    """Run the golden tests, and print how close they were."""
    errors: list[float] = []

    def error(ours: Tensor, wanted: Tensor) -> float:
        errors.append(golden.error(ours, wanted))
        return errors[-1]

    with mock.patch.object(cases, "model", compiled_model), mock.patch.object(cases, "error", error):
        for name in cases.PIPELINE_CASES:
            cases.test_a_request_ends_where_the_reference_ends(name, "resident")
        for name in cases.STEP_CASES:
            with pytest.MonkeyPatch.context() as patch:
                cases.test_every_step_is_where_the_reference_was(name, "resident", patch)
    print(
        f"{len(cases.PIPELINE_CASES)} and {len(cases.STEP_CASES)} golden cases, {len(errors)} tensors: "
        f"relative error at most {max(errors):.1e}, bar {golden.BAR:.0e}; {graphs()} graphs in two models",
        flush=True,
    )


@torch.inference_mode()
def compare(way: Way) -> None:
    """Compile blocks whose layers are kept in that way, and print how far they are from eager ones."""
    transformer = load_transformer(golden.PIPELINE / "checkpoint", torch.float32).eval()
    with mock.patch.object(quantize, "multiplies_fp8", lambda _: way.dynamic):
        for block in transformer.blocks() if way.kind != "none" else ():
            quantize.quantize_block(block, way.kind, transformer.device)
    torch._dynamo.reset()
    counters.clear()
    compile_blocks(transformer)
    compiled, numbered, errors = transformer.compiled, transformer.numbered, []
    adapters = [adapter(transformer, rank) for rank in (1, 4)]
    for seed in range(COMPANIES):
        made: list[Tensor] = []
        for transformer.compiled, transformer.numbered in ((None, {}), (compiled, numbered)):
            made.append(transformer(*company(transformer, random.Random(seed), adapters)))
        errors.append(golden.error(made[1], made[0]))
    print(f"{way.name:9} {graphs()} graphs, relative error at most {max(errors):.1e}", flush=True)


def graphs() -> int:
    """Graphs that were made."""
    return counters["stats"]["unique_graphs"]


def main() -> None:
    """Compile, compare, print."""
    with tempfile.TemporaryDirectory() as cache_folder, limited_to(1):
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache_folder
        check_golden_cases()
        for way in (EXACT, *WAYS):
            compare(way)


if __name__ == "__main__":
    main()
