"""Single files, as ComfyUI uses them: which parts of OmniGen2 a file holds, and where the others lie.

A part is recognised by one tensor that no other model has; what stands before its name is a prefix, such as
`model.diffusion_model.`. Only headers are read. Needs no torch.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from omnigen2.checkpoints.headers import TensorInfo, read_header

SIGNATURES = {
    "transformer": ("time_caption_embed.timestep_embedder.linear_1.bias",),
    "mllm": ("model.visual.patch_embed.proj.weight", "visual.patch_embed.proj.weight"),
    "vae": ("encoder.down.0.block.0.norm1.weight", "encoder.down_blocks.0.resnets.0.norm1.weight"),
}
"""For each part the tensor that shows it, in each of the names that go round."""
FOLDERS = ("diffusion_models", "unet", "checkpoints", "text_encoders", "clip", "vae")
"""Folders of ComfyUI's `models` that hold parts."""
OTHERS = {
    "double_blocks.": "a FLUX model",
    "input_blocks.": "a Stable Diffusion model",
    "joint_blocks.": "a Stable Diffusion 3 model",
    "transformer_blocks.0.attn.add_q_proj": "a Qwen-Image or FLUX model in diffusers' names",
    "cap_embedder.": "a Lumina model",
    "lora_": "a LoRA adapter: put it into the folder of --lora-dir",
}
"""What a file is that holds no part, by what stands in the name of a tensor."""


@dataclass(frozen=True)
class FilePart:
    """A part of OmniGen2 in a single file: its name in `PARTS`, and what stands before its tensors' names."""

    part: str
    file: Path
    prefix: str
    header: dict[str, TensorInfo]
    """The tensors of the part, by their names without the prefix."""


def recognise(file: Path) -> list[FilePart]:
    """The parts of OmniGen2 that a file holds, at least one.

    Raises:
        ValueError: it holds none, is damaged or no safetensors file; the message says what it is.
    """
    if file.suffix != ".safetensors":
        raise ValueError(f"model: {file} is no safetensors file, and nothing else is read")
    header = read_header(file)
    found = [
        FilePart(part, file, prefix, _under(prefix, header))
        for part, signatures in SIGNATURES.items()
        if (prefix := _prefix(header, signatures)) is not None
    ]
    if not found:
        kind = next((kind for sign, kind in OTHERS.items() if any(sign in name for name in header)), None)
        raise ValueError(
            f"model: {file} " + (f"is {kind}; it " if kind else "") + "holds no part of OmniGen2: "
            f"no transformer (has no {SIGNATURES['transformer'][0]}), no Qwen2.5-VL, no autoencoder"
        )
    return found


def found_near(sources: Iterable[Path]) -> tuple[list[FilePart], list[str]]:
    """The parts in the files and folders beside `sources`, and why files there could not be read.

    The files of `sources` themselves are left out; folders are those of ComfyUI's layout.
    """
    given = [source.resolve() for source in sources]
    parts: list[FilePart] = []
    problems: list[str] = []
    for file in sorted({file for source in given for folder in places(source) for file in _files(folder)}):
        if file in given:
            continue
        try:
            parts += recognise(file)
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return parts, problems


def places(source: Path) -> list[Path]:
    """The folders where the other parts of a file or folder may lie."""
    folder = source if source.is_dir() else source.parent
    roots = [folder, folder / "models", folder / "split_files"]
    roots += [folder.parent] if folder.name in FOLDERS else []
    inside = [root / name for root in roots for name in FOLDERS]
    return [place for place in (*roots, *inside) if place.is_dir()]


def is_single(source: Path) -> bool:
    """Whether a source is a file, or a folder of single files and not of the published layout."""
    if source.is_file():
        return True
    published = any(_files(source / part) for part in ("transformer", "mllm"))
    return source.is_dir() and not published and any(_files(place) for place in places(source))


def _files(folder: Path) -> list[Path]:
    return [file.resolve() for file in folder.glob("*.safetensors") if file.is_file()]


def _prefix(header: Iterable[str], signatures: tuple[str, ...]) -> str | None:
    def prefixes() -> Iterator[str]:
        for signature in signatures:
            for name in header:
                if name == signature or name.endswith(f".{signature}"):
                    yield name.removesuffix(signature)

    return next(prefixes(), None)


def _under(prefix: str, header: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
    return {name.removeprefix(prefix): info for name, info in header.items() if name.startswith(prefix)}
