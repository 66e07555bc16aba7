"""Weights from a folder in the published layout: `transformer/ vae/ mllm/ processor/`.

Only safetensors and JSON are read. `model_index.json` and the scheduler's file say nothing that is needed,
and the code that a checkpoint may carry is never executed. Names and shapes are compared before anything is
loaded.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from safetensors import safe_open
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from omnigen2.autoencoder import Autoencoder
from omnigen2.language import LanguageModel
from omnigen2.transformer import OmniGen2Transformer2DModel

PARTS = ("transformer", "vae", "mllm", "processor")
M = TypeVar("M", bound=ModelMixin)
Shapes = Mapping[str, tuple[int, ...]]


def load_transformer(folder: Path, dtype: torch.dtype) -> OmniGen2Transformer2DModel:
    """The transformer in `folder`/transformer. Raises ValueError on wrong weights."""
    return _load_diffusers(OmniGen2Transformer2DModel, folder / "transformer", dtype)


def load_autoencoder(folder: Path, dtype: torch.dtype, patch_size: int) -> Autoencoder:
    """The autoencoder in `folder`/vae. Raises ValueError on wrong weights."""
    return Autoencoder(_load_diffusers(AutoencoderKL, folder / "vae", dtype).eval(), patch_size)


def load_language_model(folder: Path, dtype: torch.dtype) -> LanguageModel:
    """The language model in `folder`/mllm and `folder`/processor. Raises ValueError on wrong weights."""
    part = folder / "mllm"
    config = Qwen2_5_VLConfig.from_pretrained(part)
    with _quiet_transformers():
        mllm, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            part,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are in the report, and raised below
            output_loading_info=True,
            local_files_only=True,
        )  # pyright: ignore
    problems = [
        *(f"missing {name}" for name in sorted(report["missing_keys"])),
        *(f"surplus {name}" for name in sorted(report["unexpected_keys"])),
        *(
            f"misshapen {name}: {list(stored)}, wanted {list(wanted)}"
            for name, stored, wanted in sorted(report["mismatched_keys"])
        ),
    ]
    _raise_problems(part, problems)
    processor = folder / "processor"
    tokenizer = AutoTokenizer.from_pretrained(processor, trust_remote_code=False, local_files_only=True)
    images = Qwen2VLImageProcessorPil.from_pretrained(processor, local_files_only=True)
    return LanguageModel(mllm.eval(), tokenizer, images)


def check_layout(folder: Path) -> None:
    """Raises FileNotFoundError if a part of the published layout is missing."""
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"model: {folder} has no folder {', '.join(missing)}; "
            f"an OmniGen2 checkpoint holds {', '.join(PARTS)}"
        )


def stored_shapes(part: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the safetensors files of a folder, read from their headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(part.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():
                shapes[name] = tuple(tensors.get_slice(name).get_shape())
    return shapes


def compare_shapes(wanted: Shapes, stored: Shapes) -> list[str]:
    """One phrase per weight that is missing, surplus or misshapen."""
    return [
        *(f"missing {name} {list(wanted[name])}" for name in sorted(wanted.keys() - stored.keys())),
        *(f"surplus {name} {list(stored[name])}" for name in sorted(stored.keys() - wanted.keys())),
        *(
            f"misshapen {name}: {list(stored[name])}, wanted {list(wanted[name])}"
            for name in sorted(wanted.keys() & stored.keys())
            if wanted[name] != stored[name]
        ),
    ]


def _load_diffusers(kind: type[M], part: Path, dtype: torch.dtype) -> M:
    config = json.loads((part / "config.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        empty = kind.from_config(config)  # pyright: ignore
    wanted = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    _raise_problems(part, compare_shapes(wanted, stored_shapes(part)))
    return kind.from_pretrained(part, torch_dtype=dtype, use_safetensors=True, local_files_only=True)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bar and no report on standard error: what matters is raised."""
    level, bar = transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)
        if bar:
            transformers.logging.enable_progress_bar()


def _raise_problems(part: Path, problems: list[str], shown: int = 8) -> None:
    if not problems:
        return
    more = f" and {len(problems) - shown} more" if len(problems) > shown else ""
    raise ValueError(f"weights in {part} do not fit its config.json: {'; '.join(problems[:shown])}{more}")
