"""Tensors computed with the reference implementation, and how far ours are from them.

All of them lie in `shared/golden` beside a checkout of the project; a small part is kept in
`tests/data/golden`, so that the suite also says something where the rest is missing.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import omnigen2
from omnigen2.memory.choice import MemoryChoice
from omnigen2.memory.residency import Residency
from omnigen2.network.compiled import compile_blocks

PROJECT = Path(__file__).parents[2]
KEPT = PROJECT / "tests" / "data" / "golden"
SHARED = PROJECT.parent / "shared" / "golden"
ROOT = SHARED if SHARED.is_dir() else KEPT

PIPELINE = ROOT / "pipeline"
STEPS = ROOT / "steps"
needs_steps = pytest.mark.skipif(
    not STEPS.is_dir(), reason=f"only tests/data is here; the rest is expected in {SHARED}"
)
BAR = 1e-4
"""Largest relative error in float32 on a CPU at which a tensor counts as equal to the reference's."""


def tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of `path`.safetensors."""
    return load_file(f"{path}.safetensors")


def keys(path: Path) -> set[str]:
    """Names of the tensors of `path`.safetensors, without reading them."""
    with safe_open(f"{path}.safetensors", "pt") as file:
        return set(file.keys())


def described(path: Path) -> Any:
    """The content of `path`.json."""
    return json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))


def names(folder: Path, prefix: str = "", approximate: bool = False) -> list[str]:
    """Names of the cases of a folder; those whose steps are approximations only if asked for."""
    return sorted(
        file.stem
        for file in folder.glob(f"{prefix}*.safetensors")
        if approximate or not file.stem.endswith(("teacache", "taylorseer", "taylorseer_edit"))
    )


def error(ours: Tensor, golden: Tensor) -> float:
    """Relative error, ||ours - golden|| / ||golden||; the absolute one where `golden` is zero."""
    assert ours.shape == golden.shape
    return (ours.double() - golden.double()).norm().item() / (golden.double().norm().item() or 1.0)


@lru_cache(maxsize=2)
def model(folder: Path, memory: str = "resident") -> Any:
    """The checkpoint in `folder`, loaded once per test run.

    `memory` is a mode, or `ahead`: as `stream`, with the next block copied early, as on a GPU; or `compiled`:
    as `resident`, with blocks traced as for a GPU, and run as they were traced.
    """
    torch.manual_seed(0)
    if memory not in ("ahead", "compiled"):
        return omnigen2.load(str(folder), device="cpu", dtype="float32", memory=memory)
    omnigen = omnigen2.load(str(folder), device="cpu", dtype="float32", memory="resident")
    parts = omnigen.pipeline
    if memory == "compiled":
        compile_blocks(parts.transformer, "eager")
        assert parts.transformer.compiled is not None
        return omnigen
    parts.residency = Residency(
        parts.transformer, parts.language, parts.autoencoder, torch.device("cpu"), torch.float32,
        MemoryChoice("stream"), ahead=True,
    )  # fmt: skip
    return omnigen
