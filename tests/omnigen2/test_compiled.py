"""Blocks as compiled code: the same numbers, and three graphs, in any company and memory mode."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.fused import block_of, scheduled
from omnigen2.adapters.apply import LoadedAdapter, LowRank, number
from omnigen2.adapters.loaded import linear_layers
from omnigen2.checkpoints.load import load_transformer
from omnigen2.memory import quantize
from omnigen2.memory.placement import Kind
from omnigen2.network.compiled import CompiledBlocks, compile_blocks, wanted
from omnigen2.network.transformer import OmniGen2Transformer2DModel, patchify
from tests.omnigen2.golden import BAR, PIPELINE, described, error, model, tensors

graphs: list[Any] = []
runs: list[int] = []


def counted(graph: torch.fx.GraphModule, examples: Any) -> Callable[..., Any]:
    """A backend that runs graphs as they were traced, and counts them and their runs."""
    graphs.append(graph)

    def run(*given: Any) -> Any:
        runs.append(1)
        return graph.forward(*given)

    return run


@pytest.fixture(scope="module")
def compiled() -> Iterator[CompiledBlocks]:
    """Compiled blocks of the golden checkpoint, for all tests here: to trace is what takes time."""
    transformer = load_transformer(PIPELINE / "checkpoint", torch.float32).eval()
    torch._dynamo.reset()
    graphs.clear()
    compile_blocks(transformer, counted)
    assert isinstance(transformer.compiled, CompiledBlocks)
    yield transformer.compiled
    torch._dynamo.reset()


def company(
    transformer: OmniGen2Transformer2DModel, rng: random.Random, adapters: Sequence[LoadedAdapter] = ()
) -> tuple[Tensor, Tensor, Any]:
    """Tokens, times and batch of one to eight pictures, each with up to two references and three branches.

    Some have some of the adapters.
    """
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))
    conditions, of, tokens = [], [], []
    for n in range(rng.randint(1, 8)):
        branches, size = rng.randint(1, 3), (2 * rng.randint(1, 4), 2 * rng.randint(1, 5))
        shown = [
            torch.randn(16, 2 * rng.randint(1, 3), 4, generator=generator) for _ in range(rng.randint(0, 2))
        ]
        texts = [torch.randn(rng.randint(1, 20), 64, generator=generator) for _ in range(branches)]
        own = tuple((each, rng.uniform(0.3, 1.2)) for each in adapters if rng.random() < 0.3)
        conditions += transformer.conditions(texts, [shown] * branches, [size] * branches, own)
        of += [n] * branches
        tokens.append(patchify(torch.randn(16, *size, generator=generator)))
    times = torch.rand(of[-1] + 1, generator=generator)
    return torch.cat(tokens), times, transformer.pack(conditions, of)


def adapter(transformer: OmniGen2Transformer2DModel, rank: int) -> LoadedAdapter:
    """Random changes of every second layer."""
    generator = torch.Generator().manual_seed(rank)

    def drawn(*shape: int) -> Tensor:
        return 0.05 * torch.randn(shape, generator=generator)

    layers = [*linear_layers(transformer).items()][rank % 2 :: 2]
    return LoadedAdapter({name: LowRank(drawn(rank, into), drawn(out, rank)) for name, (out, into) in layers})


@torch.inference_mode()
def check(
    transformer: OmniGen2Transformer2DModel, compiled: Any, times: int, bar: float, adapters: bool
) -> None:
    """Compiled code gives the numbers of the code as it is written, in three graphs for all companies."""
    own = [adapter(transformer, rank) for rank in (1, 4)] if adapters else []
    runs.clear()
    for seed in range(times):
        made: list[Tensor] = []
        for way in (None, compiled):
            transformer.compiled = way
            transformer.numbered = number(transformer, transformer.blocks()) if way else {}
            made.append(transformer(*company(transformer, random.Random(seed), own)))
        assert error(made[1], made[0]) < bar
    assert len(graphs) == 3 and len(runs) >= 7 * times


@pytest.mark.parametrize("adapters", [False, True])
def test_no_company_makes_a_fourth_graph_or_another_picture(compiled: CompiledBlocks, adapters: bool) -> None:
    transformer = load_transformer(PIPELINE / "checkpoint", torch.float32).eval()
    check(transformer, compiled, 12, 1e-5, adapters)


@pytest.mark.parametrize(("kind", "bar"), [("int8", 1e-5), ("nf4", 1e-5), ("fp8", 0.02)])
def test_quantised_blocks_are_compiled_as_others_are(
    kind: Kind, bar: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In three graphs, also where activations are rounded: there, a last bit may be rounded otherwise."""
    monkeypatch.setattr(quantize, "multiplies_fp8", lambda device: True)
    transformer = load_transformer(PIPELINE / "checkpoint", torch.float32).eval()
    for block in transformer.blocks():
        quantize.quantize_block(block, kind, transformer.device)
    graphs.clear()
    compile_blocks(transformer, counted)
    check(transformer, transformer.compiled, 4, bar, adapters=True)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, when it is imported
def test_a_gpu_rounds_activations_where_it_makes_them() -> None:
    """By the compiler's schedule for it: three kernels more than without, and little more traffic."""
    kernels, moved = scheduled(block_of("fp8"), 1009)
    assert kernels == 8 + 1 + 6 + 3
    assert moved < 1.2 * 60_120 * 2 * 1009  # values that pass through memory without, in bfloat16


@pytest.mark.golden
@pytest.mark.parametrize("memory", ["resident", "offload", "stream", "ahead"])
def test_a_request_by_compiled_code_ends_where_the_reference_ends(
    compiled: CompiledBlocks, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    omnigen = model(PIPELINE / "checkpoint", memory)
    monkeypatch.setattr(omnigen.pipeline.transformer, "compiled", compiled)
    stored = tensors(PIPELINE / "pipeline_t2i")
    case = described(PIPELINE / "cases")["cases"]["pipeline_t2i"]
    runs.clear()
    latents = omnigen.generate(
        case["prompt"],
        negative_prompt=case["negative_prompt"],
        width=case["width"],
        height=case["height"],
        steps=case["num_inference_steps"],
        noise=stored["noise"],
        text_guidance_scale=case["text_guidance_scale"],
        cfg_range=tuple(case.get("cfg_range", (0.0, 1.0))),
        scheduler=case["scheduler"],
        max_pixels=case["max_pixels"],
        output="latents",
    )
    assert error(latents, stored["final_latents"]) < BAR
    assert len(graphs) == 3 and runs


def test_a_model_that_cannot_be_compiled_runs_as_it_is_written(caplog: pytest.LogCaptureFixture) -> None:
    def broken(graph: Any, examples: Any) -> Any:
        raise RuntimeError("there is no compiler")

    transformer = load_transformer(PIPELINE / "checkpoint", torch.float32).eval()
    compile_blocks(transformer, broken)
    assert transformer.compiled is None
    assert "runs without compiled code" in caplog.text


def test_only_a_gpu_compiles_and_only_if_it_may() -> None:
    assert wanted("auto", torch.device("cuda")) and not wanted("auto", torch.device("cpu"))
    assert not wanted("never", torch.device("cuda"))
    with pytest.raises(ValueError, match=r"compile: 'always' is unknown; allowed: auto, never"):
        wanted("always", torch.device("cpu"))
