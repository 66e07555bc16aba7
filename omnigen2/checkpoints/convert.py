"""A folder of the published layout, made from single files.

A file that is as published but for its place is linked. Of others, tensors are read, converted and written
in shards of `SHARD_BYTES`: no part is in memory as a whole. Stored precision is kept; 8-bit floats are
multiplied by their scales and written as bfloat16.
"""

import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from omnigen2.checkpoints.headers import TensorInfo, read_header
from omnigen2.checkpoints.load import WEIGHTS_NAME, Shapes, compare_shapes
from omnigen2.checkpoints.locate import (
    ORIGIN_FILE,
    FileState,
    awaits_import,
    imported_folder,
    models_folder,
    named_after,
    only_one,
    put_in_place,
)
from omnigen2.checkpoints.published import CONFIGS, REPOSITORY
from omnigen2.checkpoints.single_files import FilePart, found_near, places, recognise
from omnigen2.network.transformer import OmniGen2Transformer2DModel

SHARD_BYTES = 2**30
FLOATS = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 2, "F8_E5M2": 2}
"""Stored types that are read, and bytes of a value once it is converted."""
SCALES = (".scale_weight", ".weight_scale")
ASIDE = (*SCALES, ".scale_input", ".input_scale", ".comfy_quant")
"""Endings of what stands beside the weights of 8-bit files."""

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with the name of a part, and bytes of all parts written and to write."""


@dataclass(frozen=True)
class Converted:
    """A part of a file that fits: the source of each tensor, and its shape, by the published name."""

    own: FilePart
    sources: dict[str, str]
    shapes: dict[str, tuple[int, ...]]

    @property
    def as_published(self) -> bool:
        """Whether the file holds the part and nothing else, in the published names, shapes and types."""
        stored = {name: info.shape for name, info in read_header(self.own.file).items()}
        small = any(info.dtype.startswith("F8") for info in self.own.header.values())
        return stored == self.shapes and not small

    def bytes(self) -> dict[str, int]:
        """Bytes of each tensor once it is converted."""
        dtypes = {name: self.own.header[source].dtype for name, source in self.sources.items()}
        return {name: math.prod(shape) * FLOATS[dtypes[name]] for name, shape in self.shapes.items()}


@dataclass(frozen=True)
class Imported:
    """A folder that was made, and which file or folder each part was taken from."""

    folder: Path
    taken: dict[str, Path]


def import_once(source: str) -> None:
    """Make a model of a single file, or of those in a folder, unless that was done and they are as they were.

    Does nothing for any other source. Raises what `convert` does.
    """
    if not awaits_import(source):
        return
    path = Path(source).expanduser()
    folder = imported_folder(path)
    with only_one(folder):
        made = convert([path], folder, replacing=True)
    log.info("model %s: %s", source, "; ".join(f"{part} from {file}" for part, file in made.taken.items()))


def convert(
    sources: list[Path],
    output: Path | None = None,
    progress: Progress = lambda *_: None,
    *,
    replacing: bool = False,
) -> Imported:
    """Make a folder of the published layout from single files.

    `sources` are files, or folders in which they lie; parts that they do not hold are looked for beside them.
    `output` is `imported/NAME` in the folder of models, with the name of the transformer's file, if absent.
    `replacing`: whether it may be there already.

    Raises:
        FileNotFoundError: a part is missing; the message says where it was looked for and what to do.
        ValueError: a file is damaged, something else or of other shapes, or several files fit.
        OSError: the folder is there already, or the disk is full.
    """
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"model: there is no file or folder {source}")
    companions = [place for source in sources for place in places(source.resolve())]
    configs, taken = _configs(companions)
    parts = _chosen(sources, configs)
    processor = _processor(companions)
    folder = output or named_after(parts["transformer"].own.file)
    if folder.exists() and not replacing:
        raise FileExistsError(f"output: {folder} is there already; remove it, or give another --output")
    staging = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:12]}.partial")
    staging.mkdir(parents=True)
    try:
        _write_all(staging, parts, processor, configs, taken, progress)
        put_in_place(folder, staging)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    files = {part: own.own.file for part, own in parts.items()}
    return Imported(folder, files | {"processor": processor} | taken)


def _configs(companions: Iterable[Path]) -> tuple[dict[str, dict[str, Any]], dict[str, Path]]:
    """The configuration of each part, the published one unless a `PART/config.json` of its kind lies beside.

    The second value tells where those that lie beside are.
    """
    configs, taken = dict(CONFIGS), dict[str, Path]()
    for part, published in CONFIGS.items():
        for path in (place / part / "config.json" for place in companions):
            config = _config(path) if path.is_file() else None
            if config is not None and _kind(config) == _kind(published) and part not in taken:
                configs[part], taken[part] = config, path
    return configs, {f"{part}/config.json": path for part, path in taken.items()}


def _config(path: Path) -> dict[str, Any] | None:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"model: {path} is not JSON ({error})") from None
    return config if isinstance(config, dict) else None


def _kind(config: dict[str, Any]) -> Any:
    return config.get("_class_name", config.get("model_type"))


def _processor(companions: list[Path]) -> Path:
    """The folder of tokenizer and image processor beside the files, of the pulled model, or from the hub."""
    for place in (*companions, models_folder() / REPOSITORY):
        if (place / "processor" / "preprocessor_config.json").is_file():
            return place / "processor"
    from omnigen2.checkpoints.download import fetch_part  # the hub's library is slow to import

    try:
        return fetch_part(REPOSITORY, "processor")
    except ConnectionError as error:
        raise FileNotFoundError(
            "model: no processor/ (tokenizer and image processor) lies beside the files, which lack it, "
            f"and the hub cannot be reached. Fetch it (a few MB) elsewhere with: hf download {REPOSITORY} "
            f"--include 'processor/*' --local-dir FOLDER, and copy FOLDER/processor to {companions[0]}"
        ) from error


def _chosen(sources: list[Path], configs: dict[str, dict[str, Any]]) -> dict[str, Converted]:
    """The file of each part: one of those given, else the only one beside them that fits."""
    given = [part for source in sources if source.is_file() for part in recognise(source)]
    near, unread = found_near(sources)
    chosen: dict[str, Converted] = {}
    for part, config in configs.items():
        wanted = wanted_shapes(part, config)
        named = [own for own in given if own.part == part]
        fitting: list[Converted] = []
        problems: list[str] = []
        for own in named or [own for own in near if own.part == part]:
            try:
                fitting.append(_fitted(own, config, wanted))
            except ValueError as error:
                problems.append(str(error))
        if len(fitting) != 1:
            _raise_choice(part, sources, fitting, problems or unread)
        chosen[part] = fitting[0]
    return chosen


def _raise_choice(part: str, sources: list[Path], fitting: list[Converted], problems: list[str]) -> None:
    if fitting:
        files = ", ".join(str(own.own.file) for own in fitting)
        raise ValueError(f"model: several files fit as {part}: {files}; name the one to take as well")
    near = ", ".join(map(str, dict.fromkeys(place for own in sources for place in places(own))))
    seen = f". Seen: {'; '.join(problems[:3])}" if problems else ""
    raise FileNotFoundError(f"model: no file for {part} was given or lies in {near}; name it as well{seen}")


def wanted_shapes(part: str, config: dict[str, Any]) -> Shapes:
    """Name and shape of every tensor of a part with that configuration, in the published names."""
    with torch.device("meta"):
        if part == "mllm":
            made: Any = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config))
        else:
            kind: Any = {"transformer": OmniGen2Transformer2DModel, "vae": AutoencoderKL}[part]
            made = kind.from_config(config)
    tied = part == "mllm" and config.get("tie_word_embeddings", True)
    shapes = {_old_name(name): tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    return {name: shape for name, shape in shapes.items() if not (tied and name == "lm_head.weight")}


def _old_name(name: str) -> str:
    """A name of the language model as it is published, from that of newer libraries."""
    for new, old in (("model.language_model.", "model."), ("model.visual.", "visual.")):
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def _fitted(own: FilePart, config: dict[str, Any], wanted: Shapes) -> Converted:
    """Raises ValueError if a part of a file has other names, shapes or types than wanted."""
    header = _weights(own.header)
    if own.part == "vae":
        named = _autoencoder_names(header, config)
    elif own.part == "mllm":
        named = {_old_name(name): (name, info.shape) for name, info in header.items()}
        named = {name: value for name, value in named.items() if name in wanted or name != "lm_head.weight"}
    else:
        named = {name: (name, info.shape) for name, info in header.items()}
    problems = compare_shapes(wanted, {name: shape for name, (_, shape) in named.items()})
    dtypes = {info.dtype for info in header.values()} - FLOATS.keys()
    problems += [
        f"{name} has {info.values} scales, neither one nor one for each row"
        for name, info in own.header.items()
        if name.endswith(SCALES) and info.values not in (1, _rows(header, name))
    ]
    problems += [f"stored as {dtype}, a quantisation that is not read" for dtype in sorted(dtypes)]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise ValueError(f"{own.file} does not fit as {own.part}: {'; '.join(problems[:4])}{more}")
    return Converted(own, {name: source for name, (source, _) in named.items()}, dict(wanted))


def _rows(header: Mapping[str, TensorInfo], scale: str) -> int:
    """Rows of the weight that a scale belongs to; 1 if there is none."""
    weight = header.get(scale.rpartition(".")[0] + ".weight")
    return weight.shape[0] if weight and weight.shape else 1


def _weights(header: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    return {n: i for n, i in header.items() if not n.endswith(ASIDE) and n != "scaled_fp8"}


def _autoencoder_names(
    header: Mapping[str, TensorInfo], config: dict[str, Any]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Source and shape of each tensor of an autoencoder by diffusers' name.

    The library's conversion runs on tensors of one value, the number of the source: it renames, and takes
    the last sides of one off 1 x 1 convolutions.
    """
    names = list(header)
    if not any(".down." in name for name in names):
        return {name: (name, info.shape) for name, info in header.items()}
    numbered = {
        name: torch.full((1,) * len(info.shape), number) for number, (name, info) in enumerate(header.items())
    }
    found: dict[str, Tensor] = convert_ldm_vae_checkpoint(numbered, config)
    sources = {name: (names[int(mark)], mark.ndim) for name, mark in found.items()}
    return {name: (source, header[source].shape[:ndim]) for name, (source, ndim) in sources.items()}


def _write_all(
    staging: Path,
    parts: dict[str, Converted],
    processor: Path,
    configs: dict[str, dict[str, Any]],
    taken: dict[str, Path],
    progress: Progress,
) -> None:
    for part in parts:
        (staging / part).mkdir()
        text = json.dumps(configs[part], indent=2) + "\n"
        (staging / part / "config.json").write_text(text, encoding="utf-8")
    linked = {
        part for part, own in parts.items() if own.as_published and _linked(own.own.file, staging / part)
    }
    # Before they are read: if one changes meanwhile, the model is not taken for made of it.
    files = {part: FileState.of(str(own.own.file), linked=part in linked) for part, own in parts.items()}
    files |= {name: FileState.of(str(path)) for name, path in taken.items()}
    _convert_all(staging, {part: own for part, own in parts.items() if part not in linked}, progress)
    shutil.copytree(processor, staging / "processor")
    origin = {"imported": {name: asdict(state) for name, state in files.items()}}
    (staging / ORIGIN_FILE).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")


def _convert_all(staging: Path, parts: dict[str, Converted], progress: Progress) -> None:
    """Write parts that are not as they are published."""
    total = sum(sum(own.bytes().values()) for own in parts.values())
    free = shutil.disk_usage(staging).free
    if total > free:
        raise OSError(
            f"output: {total / 1e9:.1f} GB are needed in {staging.parent}, {free / 1e9:.1f} are free"
        )
    done = 0
    for part, own in parts.items():
        for size in _write_shards(own, staging / part):
            done += size
            progress(part, done, total)


def _linked(file: Path, part: Path) -> bool:
    """Give a file a second name in the folder of its part; False where the file system cannot."""
    try:
        os.link(file.resolve(), part / _file_name(part))
    except OSError:
        return False
    return True


def _file_name(part: Path) -> str:
    """The published name of a part's only file."""
    return "model.safetensors" if part.name == "mllm" else WEIGHTS_NAME


def _write_shards(own: Converted, folder: Path) -> Iterator[int]:
    """Write a part, and yield the bytes of each shard once it is there."""
    shards, name = _shards(own.bytes()), _file_name(folder)
    stem = name.removesuffix(".safetensors")
    files = [f"{stem}-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    if len(shards) == 1:
        files = [name]
    else:
        where = {tensor: file for file, shard in zip(files, shards, strict=True) for tensor in shard}
        index = {"metadata": {"total_size": sum(own.bytes().values())}, "weight_map": where}
        (folder / f"{name}.index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    with safe_open(own.own.file, "pt") as tensors:
        for file, shard in zip(files, shards, strict=True):
            save_file({n: _read(tensors, own, n) for n in shard}, folder / file, {"format": "pt"})
            yield sum(own.bytes()[n] for n in shard)


def _shards(sizes: Mapping[str, int]) -> list[list[str]]:
    """Names in groups of at most `SHARD_BYTES`; a larger tensor is alone."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _read(tensors: Any, own: Converted, name: str) -> Tensor:
    """A tensor of a file as it is published: in its shape, 8-bit floats as bfloat16."""
    source = own.sources[name]
    value: Tensor = tensors.get_tensor(own.own.prefix + source)
    if value.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        value = (value.float() * _scale(tensors, own, source, value.ndim)).bfloat16()
    return value.reshape(own.shapes[name]).contiguous()


def _scale(tensors: Any, own: Converted, source: str, ndim: int) -> Tensor:
    """What an 8-bit weight is multiplied by: one value, or one for each row; 1 where there is none."""
    layer = source.removesuffix(".weight")
    for ending in SCALES:
        if layer + ending in own.own.header:
            scale: Tensor = tensors.get_tensor(own.own.prefix + layer + ending).float()
            return scale.reshape(-1, *(1,) * (ndim - 1))
    return torch.ones(())
