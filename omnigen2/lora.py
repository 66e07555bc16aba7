"""LoRA adapters in the format of the reference's trainer, through peft.

A file holds `transformer.<module>.lora_A.weight` and `.lora_B.weight` for attention projections; W + B A,
scale 1 (the file stores no alpha). Community files without the prefix, or with peft's `.default.` infix, are
read too.
"""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from omnigen2.transformer import OmniGen2Transformer2DModel

FILE = "pytorch_lora_weights.safetensors"


def read(path: str | Path) -> dict[str, Tensor]:
    """The weights of an adapter, named as peft expects them. `path` is the file or its folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else than a LoRA.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"lora: {file} does not exist; give a folder with {FILE}, or the file itself")
    weights = {
        name.removeprefix("transformer.").replace(".default.", "."): tensor
        for name, tensor in load_file(file).items()
    }
    strange = [name for name in weights if ".lora_A." not in name and ".lora_B." not in name]
    if strange or not weights:
        raise ValueError(
            f"lora: {file} is no LoRA for the transformer; it holds {', '.join(strange[:3]) or 'nothing'}"
        )
    return weights


def use(transformer: OmniGen2Transformer2DModel, path: str | None) -> None:
    """Let the adapter at `path` take part, loading it the first time; None uses the bare model.

    Raises:
        FileNotFoundError, ValueError: as `read`.
    """
    loaded = getattr(transformer, "peft_config", {})
    if path is None:
        if loaded:
            transformer.disable_lora()
        return
    name = str(Path(path).resolve()).replace(".", "_")
    if name not in loaded:
        transformer.load_lora_adapter(read(path), prefix=None, adapter_name=name)  # pyright: ignore
    transformer.enable_lora()
    transformer.set_adapters([name])
