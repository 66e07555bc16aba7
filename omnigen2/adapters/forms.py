"""The forms in which LoRA files go round, read as one: the change of each linear layer of the transformer.

A key names a layer and one of its two matrices. Layers: as in the published weights, bare or behind a prefix
(`transformer.` by the reference's trainer and diffusers, `base_model.model.` by PEFT, `diffusion_model.` by
ai-toolkit and ComfyUI), or with "_" for "." behind `lora_unet_` (kohya). Matrices: `lora_A` and `lora_B`,
where PEFT may put the adapter's name behind, or `down` and `up` in four spellings.

The change is B A times alpha / rank (alpha / sqrt(rank) with rsLoRA, Kalajdzievski 2023). alpha is a tensor
beside the matrices, or in the configuration that PEFT writes beside the file and diffusers into its header; a
file without alpha has the scale 1.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from omnigen2.adapters.apply import LowRank
from omnigen2.adapters.file import Adapter, metadata
from omnigen2.explain import printable
from omnigen2.params import InvalidTask

PREFIXES = ("base_model.model.", "model.", "diffusion_model.", "transformer.", "module.")
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
"""Of names with "_" in the place of "."."""
MATRIX = re.compile(
    r"(.+?)(?:\.lora_([AB])(?:\.[^.]+)?|\.lora_(down|up)|[._]lora\.(down|up)|\.lora_linear_layer\.(down|up))\.weight"
)
ALPHA = re.compile(r"(.+?)(?:[._]lora|\.lora_linear_layer)?\.(?:lora_)?alpha")
OTHER_KINDS = {
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    "lokr_": "a LoKr",
    "hada_": "a LoHa",
    "oft_": "an OFT adapter",
    "lora_mid": "a LoCon with a third matrix",
    "lora_embedding_": "a LoRA of embeddings",
    ".diff": "one with whole weights",
    ".lora_B.bias": "a LoRA with biases",
}
"""Kinds of adapters that are not applied, by a part of their keys."""
TEXT_ENCODERS = ("text_encoder", "lora_te", "te_", "te1_", "mllm.")
SHOWN = 3
"""Keys that a refusal names."""

Shapes = Mapping[str, tuple[int, int]]
"""(out, in) of linear layers, by name."""


def read(adapter: Adapter, layers: Shapes) -> dict[str, LowRank]:
    """What an adapter changes: for each layer, two float32 matrices, scaled by alpha.

    `layers` are the linear layers of the model.

    Raises:
        FileNotFoundError: the file is gone.
        ValueError: it has changed, it is no LoRA, of a kind that is not applied, or made for another model;
            the message names the key or layer.
    """
    name = printable(adapter.path.name)
    data = adapter.read()
    try:
        stored = load(data)
    except SafetensorError as error:
        raise InvalidTask(f"lora: {name} is damaged or not a safetensors file ({error})") from error
    parts = _parts(stored, layers, name)
    config = _config(adapter.config, metadata(data), name)
    return {layer: _change(layer, own, layers[layer], config, name) for layer, own in parts.items()}


def _parts(stored: Mapping[str, Tensor], layers: Shapes, file: str) -> dict[str, dict[str, Tensor]]:
    """The tensors `down`, `up` and `alpha` of each layer."""
    flat = {layer.replace(".", "_"): layer for layer in layers}
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    strange: list[str] = []
    for key, tensor in stored.items():
        found = _split(key)
        if found is None:
            strange.append(key)
            continue
        named, part = found
        layer = _layer(named, layers, flat)
        if layer is None:
            raise InvalidTask(
                f"lora: {file}: {_shown([named])} {_elsewhere(named)}is not a layer of this model"
            )
        if part in parts[layer]:
            raise InvalidTask(f"lora: {file} holds several adapters; {layer} is there twice")
        parts[layer][part] = tensor
    if strange or not parts:
        raise InvalidTask(_refusal(strange, file))
    return parts


def _split(key: str) -> tuple[str, str] | None:
    """The layer that a key names, as the file has it, and what of it: `down`, `up` or `alpha`."""
    if found := MATRIX.fullmatch(key):
        layer, *sides = found.groups()
        side = next(filter(None, sides))
        return layer, {"A": "down", "B": "up"}.get(side, side)
    return (found[1], "alpha") if (found := ALPHA.fullmatch(key)) else None


def _layer(named: str, layers: Shapes, flat: Mapping[str, str]) -> str | None:
    """The layer of the model that a file means; None if there is none."""
    for prefix in FLAT_PREFIXES:
        if named.startswith(prefix):
            return flat.get(named.removeprefix(prefix))
    named = named.replace(".processor.", ".")  # diffusers, before it used PEFT
    while True:
        if found := next((name for name in (named, f"{named}.0") if name in layers), None):
            return found
        prefix = next((prefix for prefix in PREFIXES if named.startswith(prefix)), None)
        if prefix is None:
            return None
        named = named.removeprefix(prefix)


def _change(
    layer: str, own: Mapping[str, Tensor], shape: tuple[int, int], config: Mapping[str, Any], file: str
) -> LowRank:
    """The two matrices of a layer, checked; the scale is in the second one."""
    down, up = own.get("down"), own.get("up")
    if down is None or up is None:
        raise InvalidTask(f"lora: {file}: of {layer}, one of its two matrices is missing")
    if down.ndim != 2 or up.ndim != 2 or up.shape[1] != down.shape[0]:
        raise InvalidTask(
            f"lora: {file}: the matrices of {layer} have the shapes {list(down.shape)} and {list(up.shape)}, "
            "which have no rank in common"
        )
    if (made_for := (up.shape[0], down.shape[1])) != shape:
        raise InvalidTask(
            f"lora: {file}: {layer} was made for a layer of {made_for}, this model's is {shape}"
        )
    down, up = down.float(), up.float() * _scale(layer, down.shape[0], own.get("alpha"), config, file)
    if not (down.isfinite().all() and up.isfinite().all()):
        raise InvalidTask(f"lora: {file}: of {layer}, some values are not finite")
    return LowRank(down, up)


def _scale(layer: str, rank: int, alpha: Tensor | None, config: Mapping[str, Any], file: str) -> float:
    """What B A is multiplied by."""
    if alpha is not None:
        value: Any = alpha.item() if alpha.numel() == 1 else None
    else:
        patterns: Any = config.get("alpha_pattern") or {}
        own = [patterns[key] for key in patterns if f".{layer}".endswith(f".{key}")]
        value = own[0] if own else config.get("lora_alpha", rank)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidTask(f"lora: {file}: the alpha of {layer} is not a number")
    rank_stabilised = alpha is None and config.get("use_rslora") is True
    return value / (math.sqrt(rank) if rank_stabilised and "lora_alpha" in config else max(1, rank))


def _config(beside: str, header: Mapping[str, str], file: str) -> Mapping[str, Any]:
    """PEFT's configuration of the adapter, from beside the file or from its header; empty if there is none.

    Raises:
        ValueError: it is damaged, or describes an adapter of another kind.
    """
    text = beside or header.get("lora_adapter_metadata", "")
    if not text:
        return {}
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidTask(f"lora: {file}: its configuration is not JSON ({error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("alpha_pattern") or {}, dict):
        raise InvalidTask(f"lora: {file}: its configuration is not one of PEFT's")
    config = found if beside else {str(key).removeprefix("transformer."): own for key, own in found.items()}
    if config.get("use_dora") is True:
        raise InvalidTask(f"lora: {file} is a DoRA, by its configuration; only plain LoRAs are applied")
    if (kind := config.get("peft_type") or "LORA") != "LORA":
        raise InvalidTask(f"lora: {file} is of the kind {_shown([str(kind)])}; only plain LoRAs are applied")
    return config


def _refusal(strange: Sequence[str], file: str) -> str:
    """Why a file with such keys is refused."""
    for part, kind in OTHER_KINDS.items():
        if found := next((key for key in strange if part in key), None):
            return f"lora: {file} is {kind} ({_shown([found])}); only plain LoRAs are applied"
    return f"lora: {file} is not a LoRA for the transformer; it holds {_shown(strange[:SHOWN]) or 'nothing'}"


def _elsewhere(named: str) -> str:
    return "belongs to a text encoder, and " if named.startswith(TEXT_ENCODERS) else ""


def _shown(keys: Sequence[str]) -> str:
    return ", ".join(printable(key) for key in keys)
