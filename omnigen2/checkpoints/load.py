"""Weights from a folder in the published layout: `transformer/ vae/ mllm/ processor/`.

Only safetensors and JSON are read. `model_index.json` and the scheduler's file say nothing that is needed,
and the code that a checkpoint may carry is never executed. Names and shapes are compared before anything is
loaded.
"""

import json
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.modeling_utils import ModelMixin
from torch import nn
from transformers import (
    AutoTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

from omnigen2.checkpoints.headers import read_headers
from omnigen2.checkpoints.locate import PARTS, weights_digest
from omnigen2.network.autoencoder import Autoencoder
from omnigen2.network.language import IMAGE, LanguageModel
from omnigen2.network.transformer import OmniGen2Transformer2DModel

WEIGHTS_NAME = "diffusion_pytorch_model.safetensors"
ATTEMPTS = 3
"""Times that a part is loaded while others meddle with it."""
M = TypeVar("M", bound=ModelMixin)
N = TypeVar("N", bound=nn.Module)
Shapes = Mapping[str, tuple[int, ...]]

making_modules = threading.RLock()
"""Held while a library makes modules: it changes `nn.Module` and the default dtype for all threads."""


def load_transformer(folder: Path, dtype: torch.dtype) -> OmniGen2Transformer2DModel:
    """The transformer in `folder`/transformer. Raises ValueError on wrong weights."""
    return _load_diffusers(OmniGen2Transformer2DModel, folder / "transformer", dtype)


def load_autoencoder(folder: Path, dtype: torch.dtype, patch_size: int) -> Autoencoder:
    """The autoencoder in `folder`/vae. Raises ValueError on wrong weights."""
    return Autoencoder(_load_diffusers(AutoencoderKL, folder / "vae", dtype).eval(), patch_size)


def load_language_model(folder: Path, dtype: torch.dtype) -> LanguageModel:
    """The language model in `folder`/mllm and `folder`/processor. Raises ValueError on wrong weights."""
    part = folder / "mllm"
    _read_config(part)  # without it, the library would make a model of its own default size
    config = Qwen2_5_VLConfig.from_pretrained(part, local_files_only=True)
    _check_size(part, config)
    report: dict[str, Any] = {}

    def load() -> Qwen2_5_VLForConditionalGeneration:
        with _quiet_transformers():
            loaded, told = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                part,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are in the report, and raised below
                output_loading_info=True,
                local_files_only=True,
            )  # pyright: ignore
        report.update(told)
        return loaded

    mllm = _load_alone(load, part, dtype)
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
    try:
        tokenizer = AutoTokenizer.from_pretrained(processor, trust_remote_code=False, local_files_only=True)
        images = Qwen2VLImageProcessorPil.from_pretrained(processor, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{processor} holds no tokenizer and image processor: {error}") from error
    return LanguageModel(mllm.eval(), tokenizer, images)


def check_fit(
    transformer: OmniGen2Transformer2DModel, autoencoder: Autoencoder, language: LanguageModel
) -> None:
    """Raises ValueError if parts of different models were put together."""
    vision: Any = language.mllm.config.vision_config
    pairs = (
        ("transformer: text_feat_dim", transformer.config["text_feat_dim"],
         "mllm: hidden_size", language.mllm.config.get_text_config().hidden_size),
        ("transformer: in_channels", transformer.config["in_channels"],
         "vae: latent_channels", autoencoder.vae.config["latent_channels"]),
        ("processor: patch_size", language.image_processor.patch_size,
         "mllm: vision patch_size", vision.patch_size),
        (f"processor: id of {IMAGE}", language.tokenizer.convert_tokens_to_ids(IMAGE),
         "mllm: image_token_id", language.mllm.config.image_token_id),
    )  # fmt: skip
    for one, is_, other, should_be in pairs:
        if is_ != should_be:
            raise ValueError(f"the parts of the model do not fit: {one} is {is_}, {other} is {should_be}")


def unchanged(folder: Path, digest: str | None) -> Callable[[], None]:
    """A function that raises OSError if the weights of `folder`, which had this digest, were overwritten.

    Files that were replaced by others of the same name do not count: what is mapped from them stays. A file
    with another time of modification is read again: it may hold what it held.
    """
    paths = [path for part in PARTS for path in sorted((folder / part).glob("*.safetensors"))]
    files = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in paths]

    def stamps() -> list[tuple[int, int]]:
        return [(state.st_mtime_ns, state.st_size) for state in map(os.fstat, files)]

    before = stamps()

    def check() -> None:
        nonlocal before
        now = stamps()
        if now == before:
            return
        if weights_digest(folder) != digest:
            raise OSError(f"the weights in {folder} were overwritten while they were in use; ask again")
        before = now

    weakref.finalize(check, lambda: [os.close(file) for file in files])
    return check


def check_layout(folder: Path) -> None:
    """Raises FileNotFoundError if a part of the published layout is missing."""
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise FileNotFoundError(
            f"model: {folder} has no folder {', '.join(missing)}; "
            f"an OmniGen2 checkpoint holds {', '.join(PARTS)}"
        )


def stored_shapes(part: Path) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in the safetensors files of a folder.

    Raises:
        ValueError: there is no such file, or one is damaged.
    """
    if not any(part.glob("*.safetensors")):
        raise ValueError(f"weights: {part} holds no safetensors file, and nothing else is loaded")
    return {name: tensor.shape for name, tensor in read_headers(part).items()}


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
    with torch.device("meta"):
        empty = kind.from_config(_read_config(part))  # pyright: ignore
    wanted = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    _raise_problems(part, compare_shapes(wanted, stored_shapes(part)))
    if not any((part / f"{WEIGHTS_NAME}{ending}").is_file() for ending in ("", ".index.json")):
        raise ValueError(f"weights: {part} has neither {WEIGHTS_NAME} nor {WEIGHTS_NAME}.index.json")
    load = partial(kind.from_pretrained, part, use_safetensors=True, local_files_only=True)
    return _load_alone(partial(load, torch_dtype=dtype), part, dtype)


def _load_alone(load: Callable[[], N], part: Path, dtype: torch.dtype) -> N:
    """What `load` gives, in `dtype` for certain.

    The libraries set the default dtype of the whole process while they load, and take it for that of the
    weights: two that load at once spoil each other's, and the process's for good.
    """
    with making_modules, torch.device("cpu"):
        for _ in range(ATTEMPTS):
            loaded = load()
            numbers = [own for own in loaded.parameters() if own.is_floating_point()]
            if all(own.dtype == dtype and not own.is_meta for own in numbers):
                return loaded
    raise ValueError(
        f"model: {part} could not be loaded in {dtype}: something else in this process keeps changing "
        "torch's default dtype; load it before, or again"
    )


def _read_config(part: Path) -> dict[str, Any]:
    path = part / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FileNotFoundError(f"model: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"model: {path} is not JSON ({error})") from error


def _check_size(part: Path, config: Qwen2_5_VLConfig) -> None:
    """Names of this part differ between versions of the library; far too few values are seen at once.

    They would be made up, in memory that may not be there, before they are reported missing.
    """
    with torch.device("meta"):
        wanted = sum(p.numel() for p in Qwen2_5_VLForConditionalGeneration(config).parameters())
    stored = sum(math.prod(shape) for shape in stored_shapes(part).values())
    if stored < wanted / 2:
        raise ValueError(
            f"weights in {part} do not fit its config.json: it needs {wanted:,} values, {stored:,} are there"
        )


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
