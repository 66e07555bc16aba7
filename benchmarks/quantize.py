"""Weights in 8 and 4 bits: what they take, and how far off layers, forwards and nano's answers are.

    python -m benchmarks.quantize                  # all of it
    python -m benchmarks.quantize --only errors    # or: sizes, nano
    python -m benchmarks.quantize --only nano --count 100

Sizes and errors are those of the published shapes; weights, inputs and conditions are normally distributed.
An error is |a - b| / |b|, b being what the unquantised weights give in float32. `fp8 x fp8` is `fp8` as it
is on a GPU that multiplies 8-bit floats, with the operator that a CPU has as well. nano answers ShapeWorld's
test examples with its defaults.
"""

import argparse
import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import omnigen2
from benchmarks.shapes import FULL_TRANSFORMER, parts
from omnigen2.memory.placement import KINDS, Kind, Quantization
from omnigen2.memory.quantize import Fp8Linear, QuantizedLinear, quantize, quantized
from omnigen2.memory.weights import tensors_of
from omnigen2.model import OmniGen2
from omnigen2.nano.world.evaluate import Answer, answers, scores
from omnigen2.nano.world.tasks import TASKS
from omnigen2.network.transformer import OmniGen2Transformer2DModel

CPU = torch.device("cpu")
GB = 1e9
TOKENS = 128
SIDE = 16
"""Side of the latents of the forward that is compared."""


@dataclass(frozen=True)
class Way:
    """How weights are kept, and whether activations are rounded too."""

    name: str
    kind: Kind
    dynamic: bool = False


EXACT = Way("none", "none")
WAYS = (*(Way(kind, kind) for kind in KINDS if kind != "none"), Way("fp8 x fp8", "fp8", dynamic=True))


# -- sizes --------------------------------------------------------------------------------------------


def sizes() -> Iterator[tuple[Any, ...]]:
    """Layers that are quantised, and gigabytes, of the full size; the rest is bfloat16."""
    yield "kept as", "layers: transformer", "language", "transformer GB", "language GB", "all GB"
    for kind in KINDS:
        made = parts()
        autoencoder = _bytes([made["vae"]])
        chosen = [made["transformer"], made["mllm"]]
        quantize(*chosen, Quantization(kind, kind), torch.device("meta"))
        counts = [sum(isinstance(own, QuantizedLinear) for own in part.modules()) for part in chosen]
        weights = [_bytes([part]) for part in chosen]
        yield kind, *counts, *(f"{size / GB:.2f}" for size in (*weights, sum(weights) + autoencoder))


def _bytes(modules: Iterable[nn.Module]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(modules))


# -- errors -------------------------------------------------------------------------------------------


def errors() -> Iterator[tuple[Any, ...]]:
    """The error of every shape of layer, then of a forward of each part with one block of each kind."""
    yield "what", *(way.name for way in WAYS)
    for part, (rows, columns) in _shapes():
        layer = nn.Linear(columns, rows, bias=False, device="cpu", dtype=torch.float32)
        nn.init.normal_(layer.weight, std=columns**-0.5)
        x = torch.randn(TOKENS, columns)
        told = (_error(quantized(layer, way.kind, way.dynamic)(x), layer(x)) for way in WAYS)
        yield f"{part}: {columns} to {rows}", *map(_told, told)
    transformer, mllm = _one_block_each()
    for name, run in (("transformer, a forward", _velocity), ("language model, a forward", _states)):
        wanted = run(transformer, mllm)
        yield name, *(_told(_error(run(*_changed(transformer, mllm, way)), wanted)) for way in WAYS)


def _shapes() -> list[tuple[str, tuple[int, int]]]:
    """(part, (out, in)) of each shape of layer that is quantised, in the order they are met."""
    made = parts()
    quantize(made["transformer"], made["mllm"], Quantization("int8", "int8"), torch.device("meta"))
    found = {
        (own.out_features, own.in_features): part
        for part in ("mllm", "transformer")
        for own in reversed(list(made[part].modules()))
        if isinstance(own, QuantizedLinear)
    }
    names = {"transformer": "transformer", "mllm": "language model"}
    return [(names[part], shape) for shape, part in reversed(found.items())]


def _one_block_each() -> tuple[OmniGen2Transformer2DModel, Any]:
    """Both parts in the published width and with one block of each kind, random, in float32."""
    torch.manual_seed(0)
    transformer = OmniGen2Transformer2DModel(**FULL_TRANSFORMER | {"num_layers": 1, "num_refiner_layers": 1})
    config = parts()["mllm"].config
    config.text_config.num_hidden_layers = config.vision_config.depth = 1
    config.text_config.layer_types = ["full_attention"]
    config.text_config.vocab_size = 1024
    mllm = type(parts()["mllm"])(config).float().eval()
    for part in (transformer, mllm):
        for parameter in part.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    return transformer.float().eval(), mllm


def _changed(transformer: Any, mllm: Any, way: Way) -> tuple[Any, Any]:
    transformer, mllm = copy.deepcopy((transformer, mllm))
    quantize(transformer, mllm, Quantization(way.kind, way.kind), CPU)
    _set_dynamic([transformer, mllm], way)
    return transformer, mllm


def _set_dynamic(modules: Iterable[nn.Module], way: Way) -> None:
    for module in modules:
        for own in module.modules():
            if isinstance(own, Fp8Linear):
                own.dynamic = way.dynamic


def _velocity(transformer: OmniGen2Transformer2DModel, _: Any) -> Tensor:
    """Velocities of a picture with a reference."""
    generator = torch.Generator().manual_seed(0)
    channels, patch = transformer.config["in_channels"], transformer.config["patch_size"]
    text = torch.randn(TOKENS, FULL_TRANSFORMER["text_feat_dim"], generator=generator)
    reference = torch.randn(channels, SIDE, SIDE, generator=generator)
    tokens = torch.randn((SIDE // patch) ** 2, channels * patch**2, generator=generator)
    batch = transformer.condition([text], [[reference]], [(SIDE, SIDE)])
    return transformer(tokens, torch.tensor([0.5]), batch)


def _states(_: Any, mllm: Any) -> Tensor:
    """Last states of a text."""
    generator = torch.Generator().manual_seed(0)
    language = mllm.model.language_model
    x = torch.randn(1, TOKENS, language.config.hidden_size, generator=generator)
    return language(inputs_embeds=x, use_cache=False).last_hidden_state


def _error(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def _told(error: float) -> str:
    return f"{error:.4f}"


# -- nano ---------------------------------------------------------------------------------------------


def nano(count: int) -> Iterator[tuple[Any, ...]]:
    """nano's right answers of `count` per task, and its pictures against those of unquantised weights."""
    yield "kept as", *TASKS, "all", "PSNR: mean", "least"
    exact: dict[str, list[Answer]] = {}
    for way in (EXACT, *WAYS):
        model = omnigen2.load("nano", device="cpu", quantize=way.kind)
        _set_dynamic([model.pipeline.transformer, model.pipeline.language.mllm], way)
        given = {task: _answered(model, task, count) for task in TASKS}
        exact = exact or given
        right = [scores(own, lambda _: "all")["all"].right for own in given.values()]
        pairs = zip(_pictures(given), _pictures(exact), strict=True)
        near = [] if way is EXACT else [_decibels(a, b) for a, b in pairs]
        close = (f"{np.mean(near):.1f} dB", f"{min(near):.1f} dB") if near else ("", "")
        yield way.name, *right, f"{sum(right)} of {count * len(TASKS)}", *close


def _answered(model: OmniGen2, task: Any, count: int) -> list[Answer]:
    return list(answers(model, task, "test", count))


def _pictures(given: dict[str, list[Answer]]) -> list[np.ndarray]:
    outputs = (answer.output for own in given.values() for answer in own)
    return [np.asarray(output, np.float64) for output in outputs if not isinstance(output, str)]


def _decibels(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio; at most that of a difference of a tenth of a 255th."""
    return 20 * math.log10(255 / max(0.1, math.sqrt(np.square(a - b).mean())))


# -- telling ------------------------------------------------------------------------------------------


def _print(rows: Iterable[tuple[Any, ...]]) -> None:
    """A table in Markdown, row by row as they come; the first is its head."""
    for number, row in enumerate(rows):
        print(f"| {' | '.join(map(str, row))} |", flush=True)
        if not number:
            print(f"|---|{'---:|' * (len(row) - 1)}", flush=True)
    print(flush=True)


@torch.inference_mode()
def main() -> None:
    """Print the tables that are asked for."""
    names = ("sizes", "errors", "nano")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=list(names), choices=names)
    parser.add_argument("--count", type=int, default=50, help="examples of each of nano's tasks (50)")
    asked = parser.parse_args()
    tables = {"sizes": sizes, "errors": errors, "nano": lambda: nano(asked.count)}
    for name in asked.only:
        _print(tables[name]())


if __name__ == "__main__":
    main()
