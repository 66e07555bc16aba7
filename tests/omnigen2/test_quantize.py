"""Weights in 8 and 4 bits: how far off they are, in every memory mode, and what is said of them."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import omnigen2
from omnigen2.adapters.apply import LoadedAdapter, LowRank, adapted, terms
from omnigen2.checkpoints.fit import needed_bytes
from omnigen2.checkpoints.locate import find
from omnigen2.manager import Manager
from omnigen2.memory.choice import MODES
from omnigen2.memory.placement import KINDS, Kind, Quantization
from omnigen2.memory.quantize import FP8, Fp8Linear, QuantizedLinear, quantize, quantized, quantized_bytes
from omnigen2.model import OmniGen2
from omnigen2.network import compiled
from server.http.status import status
from server.settings import Settings
from tests.omnigen2.golden import PIPELINE
from tests.omnigen2.test_residency import everything, gone, same
from tools.recipe import identity

FOLDER = PIPELINE / "checkpoint"
QUANTIZED: tuple[Kind, ...] = ("int8", "fp8", "nf4")
ERRORS: dict[Kind, float] = {"int8": 0.012, "fp8": 0.03, "nf4": 0.1}
"""Relative errors of a product that each kind stays below, for normally distributed weights."""
CPU = torch.device("cpu")


def loaded(kind: str, memory: str = "resident") -> OmniGen2:
    return omnigen2.load(str(FOLDER), device="cpu", dtype="float32", memory=memory, quantize=kind)


def linear(rows: int, columns: int) -> nn.Linear:
    torch.manual_seed(0)
    layer = nn.Linear(columns, rows, bias=False, device="cpu", dtype=torch.float32)
    nn.init.normal_(layer.weight)
    return layer


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("shape", [(2520, 2520), (840, 2520), (48, 30)])
def test_a_layer_is_close_to_what_it_was(kind: Kind, shape: tuple[int, int]) -> None:
    layer = linear(*shape)
    x = torch.randn(2, 3, shape[1])
    made = quantized(layer, kind)
    assert made(x).dtype == x.dtype and made(x.bfloat16()).dtype == torch.bfloat16
    assert (made(x) - layer(x)).norm() < ERRORS[kind] * layer(x).norm()
    assert quantized_bytes(*shape, kind) == sum(own.numel() * own.element_size() for own in made.buffers())
    layer.weight.data *= 0.01
    assert quantized(layer, kind)(300 * x.half()).isfinite().all()  # float16 ends at 65,504
    layer.weight.data.zero_()
    assert torch.equal(quantized(layer, kind)(x), layer(x))


def test_products_of_8_bit_floats_ignore_the_padding() -> None:
    """The kernel of the GPU, which a CPU has as well; on both it takes whole tiles, and 2520 is none."""
    layer, x = linear(2520, 2520), torch.randn(2, 5, 2520)
    made = quantized(layer, "fp8", dynamic=True)
    assert isinstance(made, Fp8Linear) and made.bits.shape == (2528, 2528)
    assert (made(x) - layer(x)).norm() < 0.045 * layer(x).norm()
    beyond = copy.deepcopy(made)
    beyond.bits[2520:] = torch.randint(0, 120, (8, 2528), dtype=torch.uint8)
    beyond.bits[:, 2520:] = torch.randint(0, 120, (2528, 8), dtype=torch.uint8)
    assert torch.equal(beyond(x), made(x))
    assert made(torch.zeros(0, 2520)).shape == (0, 2520)


def test_the_padding_is_what_the_kernel_asks_for() -> None:
    made = quantized(linear(2520, 2520), "fp8", dynamic=True).to("meta")
    assert made(torch.empty(3, 2520, dtype=torch.bfloat16, device="meta")).shape == (3, 2520)
    rows, weight = (torch.empty(count, 2520, device="meta", dtype=FP8) for count in (3, 2520))
    scales = torch.ones(3, 1, device="meta"), torch.ones(1, 2520, device="meta")
    with pytest.raises(RuntimeError, match="divisible by 16"):
        torch._scaled_mm(rows, weight.t(), *scales, out_dtype=torch.bfloat16)


@pytest.mark.parametrize("kind", QUANTIZED)
def test_a_quantised_model_gives_the_same_in_every_mode(kind: str) -> None:
    model = loaded(kind)
    layers = [own for own in model.pipeline.transformer.modules() if isinstance(own, QuantizedLinear)]
    assert len(layers) == 7 * len(list(model.pipeline.transformer.blocks()))
    wanted = everything(model)
    for memory in MODES[1:]:
        other = loaded(kind, memory)
        assert gone(other) > 50
        assert same(everything(other), wanted), memory
    assert not same(wanted, everything(loaded("none")))


@pytest.mark.parametrize("memory", ["resident", "stream"])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_adapters_change_the_rows_of_quantised_layers_that_use_them(kind: str, memory: str) -> None:
    transformer = loaded(kind, memory).pipeline.transformer
    name, place = "layers.0.attn.to_q", 0
    block, layer = transformer.layers[0], transformer.get_submodule(name)
    assert isinstance(layer, QuantizedLinear)
    inside: list[tuple[torch.Tensor, torch.Tensor]] = []
    inputs = compiled.first_inputs(block, CPU, torch.float32, tokens=compiled.TOKENS)  # type: ignore
    first, second = (
        LoadedAdapter({name: LowRank(torch.randn(4, layer.in_features), torch.randn(layer.out_features, 4))})
        for _ in range(2)
    )
    active = [((first, 0.5),), (), ((second, 1.0),), ((first, -1.0), (second, 2.0))]
    rows = [300, 200, 400, 97]
    inputs[place].normal_()

    def seen(_: nn.Module, given: tuple[torch.Tensor], made: torch.Tensor) -> None:
        inside.append((given[0].clone(), made.clone()))

    with torch.inference_mode(), transformer.weights:
        for added in ({}, terms(active, lambda _: rows)):
            with adapted(transformer, added):
                hook = layer.register_forward_hook(seen)
                block(*inputs)
                hook.remove()
    (x, plain), (same_x, changed) = inside
    wanted = plain.clone()
    for own, part in zip(active, torch.arange(sum(rows)).split(rows), strict=True):
        for adapter, weight in own:
            change = adapter.layers[name]
            wanted[part] += weight * (x[part] @ change.down.T) @ change.up.T
    assert torch.equal(x, same_x) and torch.equal(plain[300:500], changed[300:500])
    assert not torch.allclose(plain, changed) and torch.allclose(changed, wanted, rtol=1e-4, atol=1e-4)


def test_each_part_can_be_quantised_alone() -> None:
    model = loaded("language=int8").pipeline
    assert not any(isinstance(own, QuantizedLinear) for own in model.transformer.modules())
    own = model.language.mllm.model
    layers = [layer for layer in model.language.mllm.modules() if isinstance(layer, QuantizedLinear)]
    assert len(layers) == 7 * len(own.language_model.layers) + 5 * len(own.visual.blocks)


def test_a_model_with_other_layers_is_refused() -> None:
    model = loaded("none").pipeline
    model.transformer.layers[0].attn.to_q = nn.Identity()  # type: ignore
    with pytest.raises(ValueError, match="layers to quantise instead of"):
        quantize(model.transformer, model.language.mllm, Quantization("int8"), CPU)


def test_the_setting_is_read_and_refused_in_words() -> None:
    for text in (*KINDS, "transformer=fp8,language=nf4", "transformer=int8"):
        assert str(Quantization.parse(text)) == text
    both = Settings(quantize="language=int8, transformer=int8")
    assert both.placement.quantize == Quantization("int8", "int8")
    for text in ("int4", "vae=int8", "transformer=", "", "int8,fp8"):
        with pytest.raises(ValueError, match="allowed: none, int8, fp8, nf4, or one for a part"):
            Settings(quantize=text)


def test_records_and_status_name_the_precision() -> None:
    exact, small = Manager(str(FOLDER)), Manager(str(FOLDER), quantize=Quantization("fp8", "nf4"))
    asked = exact.card().defaults_for(0)
    numerics = identity(exact.card(), asked)["numerics"]
    assert identity(small.card(), asked)["numerics"] == f"{numerics} transformer=fp8,language=nf4"
    assert small.identify() == small.acquire().result().card
    (told,) = status(SimpleNamespace(manager=small))["models"]  # type: ignore
    assert told["quantize"] == "transformer=fp8,language=nf4"
    assert told["memory"]["mode"] in told["memory"]["needs"] and "fits" in told["memory"]["reason"]
    small.close()


def test_less_memory_is_needed() -> None:
    checkpoint = find(str(FOLDER))
    for memory in MODES:
        needed = [
            needed_bytes(checkpoint, torch.bfloat16, memory, Quantization(kind, kind))
            for kind in ("none", "int8")
        ]
        assert needed[0] > needed[1]
