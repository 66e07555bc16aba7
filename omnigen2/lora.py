"""LoRA adapters in the format of the reference's trainer, through peft.

A file holds `transformer.<module>.lora_A.weight` and `.lora_B.weight` for attention projections; W + B A,
scale 1 (the file stores no alpha). Community files without the prefix, or with peft's `.default.` infix, are
read too.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path

from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from omnigen2.transformer import OmniGen2Transformer2DModel

FILE = "pytorch_lora_weights.safetensors"
A, B = ".lora_A.weight", ".lora_B.weight"


def read(path: str | Path) -> dict[str, Tensor]:
    """The weights of an adapter, named as peft expects them. `path` is the file or its folder.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds something else than a LoRA.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"lora: {file} does not exist; give a folder with {FILE}, or the file itself")
    try:
        stored = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"lora: {file} is damaged or no safetensors file ({error})") from error
    weights = {
        name.removeprefix("transformer.").replace(".default.", "."): tensor for name, tensor in stored.items()
    }
    strange = [name for name in weights if not name.endswith((A, B))]
    if strange or not weights:
        raise ValueError(
            f"lora: {file} is no LoRA for the transformer; it holds {', '.join(strange[:3]) or 'nothing'}"
        )
    return weights


def check(transformer: OmniGen2Transformer2DModel, weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError, which names the first module, if an adapter was made for another model."""
    modules = dict(transformer.named_modules())
    for name in sorted({name.removesuffix(A).removesuffix(B) for name in weights}):
        layer, down, up = modules.get(name), weights.get(name + A), weights.get(name + B)
        if isinstance(layer, BaseTunerLayer):
            layer = layer.get_base_layer()
        if not isinstance(layer, nn.Linear) or down is None or up is None:
            raise ValueError(f"lora: {name} is no layer of this model, or one of its two matrices is missing")
        shape, wanted = (up.shape[0], down.shape[1]), (layer.out_features, layer.in_features)
        if shape != wanted or up.shape[1] != down.shape[0]:
            raise ValueError(f"lora: {name} was made for a layer of {shape}, this model's is {wanted}")


def use(transformer: OmniGen2Transformer2DModel, path: str | None) -> None:
    """Let the adapter at `path` take part, loading it the first time; None uses the bare model.

    Raises:
        FileNotFoundError, ValueError: as `read` and `check`.
    """
    loaded = getattr(transformer, "peft_config", {})
    if path is None:
        if loaded:
            transformer.disable_lora()
        return
    name = str(Path(path).resolve()).replace(".", "_")
    if name not in loaded:
        weights = read(path)
        check(transformer, weights)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are fine
            transformer.load_lora_adapter(weights, prefix=None, adapter_name=name)  # pyright: ignore
    transformer.enable_lora()
    transformer.set_adapters([name])
