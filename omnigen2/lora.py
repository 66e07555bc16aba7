"""LoRA adapters in the format of the reference's trainer, through peft.

A file holds `transformer.<module>.lora_A.weight` and `.lora_B.weight` for attention projections; W + B A,
scale 1 (the file stores no alpha). Community files without the prefix, or with peft's `.default.` infix, are
read too.
"""

import warnings
from collections.abc import Mapping

from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from omnigen2.adapter import Adapter
from omnigen2.checkpoints.load import making_modules
from omnigen2.params import InvalidTask
from omnigen2.transformer import OmniGen2Transformer2DModel

A, B = ".lora_A.weight", ".lora_B.weight"
KEPT = 8
"""Adapters that stay loaded: those used last."""


def read(adapter: Adapter) -> dict[str, Tensor]:
    """The weights of an adapter, named as peft expects them.

    Raises:
        FileNotFoundError: the file is gone.
        ValueError: the file holds something else than a LoRA, or has changed.
    """
    name = adapter.path.name
    try:
        stored = load(adapter.read())
    except SafetensorError as error:
        raise InvalidTask(f"lora: {name} is damaged or not a safetensors file ({error})") from error
    weights = {
        key.removeprefix("transformer.").replace(".default.", "."): tensor for key, tensor in stored.items()
    }
    strange = [key for key in weights if not key.endswith((A, B))]
    if strange or not weights:
        raise InvalidTask(
            f"lora: {name} is not a LoRA for the transformer; it holds {', '.join(strange[:3]) or 'nothing'}"
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
            raise InvalidTask(
                f"lora: {name} is not a layer of this model, or one of its two matrices is missing"
            )
        shape, wanted = (up.shape[0], down.shape[1]), (layer.out_features, layer.in_features)
        if shape != wanted or up.shape[1] != down.shape[0]:
            raise InvalidTask(f"lora: {name} was made for a layer of {shape}, this model's is {wanted}")


def use(transformer: OmniGen2Transformer2DModel, adapter: Adapter | None) -> None:
    """Activate the adapter, loading it if necessary; None deactivates all adapters.

    Loaded adapters are named by their digests, in `peft_config`, in the order of their last use.

    Raises:
        FileNotFoundError, ValueError: as `read` and `check`.
    """
    loaded = getattr(transformer, "peft_config", {})
    if adapter is None:
        if loaded:
            transformer.disable_lora()
        return
    if adapter.digest in loaded:
        loaded[adapter.digest] = loaded.pop(adapter.digest)
    else:
        _load(transformer, adapter)
    transformer.enable_lora()
    transformer.set_adapters([adapter.digest])


def _load(transformer: OmniGen2Transformer2DModel, adapter: Adapter) -> None:
    """Load an adapter in the place of the one that was used longest ago, if there are many."""
    weights = read(adapter)
    check(transformer, weights)
    loaded = getattr(transformer, "peft_config", {})
    transformer.delete_adapters([*loaded][: max(0, len(loaded) - KEPT + 1)])
    # A model that loads in another thread meanwhile would leave the adapter's layers without weights.
    with making_modules, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are fine
        transformer.load_lora_adapter(weights, prefix=None, adapter_name=adapter.digest)  # pyright: ignore
