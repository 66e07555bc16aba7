"""What requests take at full size, counted on the real code without a GPU and without weights.

    python -m benchmarks.plan                     # a table
    python -m benchmarks.plan --json              # one object per case and line
    python -m benchmarks.plan --case edit --side 1024 --memory resident
    python -m benchmarks.plan --against FOLDER    # a checkout of the reference: how much longer it takes

Text to image, an edit of one picture and compositions of two and three run through pipeline and
`Denoiser.step` on tensors without values, in bfloat16, as they would on CUDA (`benchmarks/counting.py`).
FLOPs, bytes, kernels, copies and synchronisations are those of one denoising step after the first, with full
guidance; the peak is that of the whole request. Prompt and negative prompt have 300 and 100 tokens,
references the picture's size. Seconds are computed from assumed rates (`benchmarks/machines.py`), `compiled`
for compiled blocks (`benchmarks/fused.py`). With `--against`, whole requests of 50 steps are counted here and
in the reference, and what is assumed is printed (`benchmarks/beside.py`).
"""

import argparse
import copy
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from benchmarks import beside
from benchmarks.counting import GPU, Counter, Work, counting
from benchmarks.fused import fused
from benchmarks.machines import MACHINES
from benchmarks.shapes import PROCESSOR, Size, parts
from omnigen2.checkpoints.card import published_card
from omnigen2.denoise import Denoiser
from omnigen2.memory import quantize
from omnigen2.memory.choice import MODES, MemoryChoice, Mode
from omnigen2.memory.placement import KINDS, Kind, Quantization
from omnigen2.memory.residency import Residency
from omnigen2.memory.weights import tensors_of
from omnigen2.network.autoencoder import Autoencoder
from omnigen2.network.language import LanguageModel, generation_chat
from omnigen2.network.transformer import OmniGen2Transformer2DModel
from omnigen2.pipeline import Pipeline, decoded
from omnigen2.task import ImageTask

CASES = {"text to image": 0, "edit": 1, "compose": 2, "compose three": 3}
"""How many references each case has."""
SIDES = (512, 1024, 2048)
PROMPT_TOKENS, NEGATIVE_TOKENS = 300, 100
GB, TERA = 1e9, 1e12
T = TypeVar("T")


@dataclass
class Case:
    """A request in a memory mode: what each of its stages does, and the weights that are there meanwhile."""

    case: str
    side: int
    memory: Mode
    quantize: Kind
    task: ImageTask
    stages: dict[str, Work]
    blocks: "Blocks"

    def told(self) -> dict[str, Any]:
        """The figures, as they are printed."""
        step = self.stages["step"]
        return {
            "case": self.case,
            "side": self.side,
            "memory": self.memory,
            "quantize": self.quantize,
            "weights_gb": _gb(max(work.peak_weights for work in self.stages.values())),
            "peak_gb": _gb(max(work.peak_bytes for work in self.stages.values())),
            "tflops": round((step.product_flop + step.attention_flop) / TERA, 2),
            "elementwise_gb": _gb(step.elementwise_bytes),
            "kernels": step.kernels,
            "copies": step.copies,
            "syncs": step.syncs,
            "attention_tflops": round(step.attention_flop / TERA, 2),
            "copied_gb": _gb(step.copied_bytes),
            "stages": {
                name: {
                    "weights_gb": _gb(work.peak_weights),
                    "activations_gb": _gb(work.peak_bytes - work.peak_weights),
                    "tflops": round((work.product_flop + work.attention_flop) / TERA, 2),
                }
                for name, work in self.stages.items()
            },
        }

    def compiled_step(self) -> Work:
        """A step of the full size whose blocks are compiled."""
        step, own, compiled = self.stages["step"], self.blocks, fused(self.quantize)
        return replace(
            step,
            elementwise_bytes=step.elementwise_bytes - own.moved + compiled.moved(own.tokens, own.calls),
            kernels=step.kernels - own.kernels + compiled.kernels * own.calls,
        )

    def expected(self) -> dict[str, Any]:
        """What a step takes if each block is compiled, and how long it takes on some GPUs: computed."""
        compiled = self.compiled_step()
        in_fp8 = self.blocks.product_flop if self.quantize == "fp8" else 0

        def seconds(step: Work, steps: int, digits: int) -> dict[str, float | None]:
            return {
                own.name: round(steps * own.seconds(step, in_fp8), digits)
                if own.fp8_products or not in_fp8
                else None  # it cannot multiply such values
                for own in MACHINES
            }

        written = self.stages["step"]
        return {
            "compiled_elementwise_gb": _gb(compiled.elementwise_bytes),
            "compiled_kernels": compiled.kernels,
            **{f"{name}_step_s": took for name, took in seconds(written, 1, 4).items()},
            **{f"{name}_50_steps_s": took for name, took in seconds(written, 50, 2).items()},
            **{f"{name}_compiled_50_steps_s": took for name, took in seconds(compiled, 50, 2).items()},
        }


class Blocks:
    """What of the counted work is done in the transformer's blocks."""

    def __init__(self, counter: Counter, transformer: OmniGen2Transformer2DModel):
        self._counter = counter
        self.clear()
        for block in transformer.blocks():
            block.register_forward_pre_hook(self._before)
            block.register_forward_hook(self._after)

    def clear(self) -> None:
        """Count anew."""
        self.calls = self.tokens = self.kernels = self.moved = self.product_flop = 0

    def _before(self, block: Any, inputs: tuple[Tensor, ...]) -> None:
        self.calls += 1
        self.tokens += len(inputs[0])
        self._add(-1)

    def _after(self, *_: Any) -> None:
        self._add(1)

    def _add(self, sign: int) -> None:
        work = self._counter.work
        self.kernels += sign * work.kernels
        self.moved += sign * work.elementwise_bytes
        self.product_flop += sign * work.product_flop


def make_pipeline(
    counter: Counter,
    memory: Mode,
    size: Size = "full",
    kind: Kind = "none",
    dtype: torch.dtype = torch.bfloat16,
) -> Pipeline:
    """A model whose weights rest on a host, and come to `GPU` as the memory mode says."""
    made = parts(size, torch.float16)  # not the precision of the device: then every weight has to be copied
    with mock.patch.object(quantize, "multiplies_fp8", lambda _: True):
        quantize.quantize(made["transformer"], made["mllm"], Quantization(kind, kind), GPU)
    counter.host(tensors_of(made.values()))
    transformer = made["transformer"]
    autoencoder = Autoencoder(made["vae"], transformer.config["patch_size"])
    tokenizer = AutoTokenizer.from_pretrained(PROCESSOR)
    language = LanguageModel(made["mllm"], tokenizer, Qwen2VLImageProcessorPil.from_pretrained(PROCESSOR))
    chosen = MemoryChoice(memory)
    residency = Residency(transformer, language, autoencoder, GPU, dtype, chosen, ahead=True)
    return Pipeline(transformer, autoencoder, language, published_card("full"), residency)


def make_task(
    pipeline: Pipeline, references: int, side: int, tokens: tuple[int, int] = (PROMPT_TOKENS, NEGATIVE_TOKENS)
) -> ImageTask:
    """A picture of `side` x `side` pixels with the published defaults, in three steps.

    Its prompt and its negative prompt have so many `tokens`.
    """
    chosen = pipeline.card.defaults_for(references).model_copy(
        update={
            "width": side,
            "height": side,
            "steps": 3,
            "seed": 0,
            "negative_prompt": _text(pipeline, tokens[1]),
        }
    )
    images = [Image.new("RGB", (side, side), (n, n, n)) for n in range(references)]
    return ImageTask(_text(pipeline, tokens[0]), tuple(images), chosen)


def count(
    case: str,
    side: int,
    memory: Mode,
    size: Size = "full",
    kind: Kind = "none",
    dtype: torch.dtype = torch.bfloat16,
    tokens: tuple[int, int] = (PROMPT_TOKENS, NEGATIVE_TOKENS),
) -> Case:
    """Run a case, stage by stage."""
    stages: dict[str, Work] = {}
    with counting() as counter:
        pipeline = make_pipeline(counter, memory, size, kind, dtype)
        limits = pipeline.card.limits.model_copy(update={"max_pixels": side * side, "max_input_side": side})

        def stage(name: str, run: Callable[[], T]) -> T:
            with counter.counted() as stages[name]:
                return run()

        task = make_task(pipeline, CASES[case], side, tokens)
        stage("text", lambda: pipeline.caption(task.prompt, limits))
        if task.images:
            stage("encode", lambda: pipeline.encode_references(decoded(task), limits))
        samples, _ = stage("prepare", lambda: pipeline.prepare(task, limits))
        denoiser = Denoiser(pipeline.transformer)
        denoiser.add(samples)
        blocks = Blocks(counter, pipeline.transformer)
        stage("first step", denoiser.step)
        blocks.clear()
        stage("step", denoiser.step)
        blocks = copy.copy(blocks)
        denoiser.step()
        stage("decode", lambda: pipeline.finish(task, samples, limits))
    return Case(case, side, memory, kind, task, stages, blocks)


def _text(pipeline: Pipeline, tokens: int) -> str:
    """A prompt whose chat has that many tokens."""

    def length(words: int) -> int:
        return len(pipeline.language.tokenizer(generation_chat(" a" * words))["input_ids"])

    return " a" * ((tokens - length(0)) // (length(2) - length(1)))


def _gb(count: int) -> float:
    return round(count / GB, 3)


def _table(rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Rows of a table in Markdown, with its head: what is counted, and the seconds of 50 steps."""
    for number, row in enumerate(rows):
        shown = {name: value for name, value in row.items() if name != "stages" and "step_s" not in name}
        if not number:
            yield f"| {' | '.join(name.replace('_', ' ') for name in shown)} |"
            yield f"|{'---|' * 4}{'---:|' * (len(shown) - 4)}"
        yield f"| {' | '.join('' if value is None else str(value) for value in shown.values())} |"


def main() -> None:
    """Count the cases that are asked for, all of them unless told."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--case", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument(
        "--side", nargs="+", type=int, metavar="PIXELS", help=f"of pictures; {SIDES} if absent"
    )
    parser.add_argument("--memory", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--quantize", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument(
        "--against", type=Path, metavar="FOLDER", help="count the reference, too; 1024 pixels, all resident"
    )
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the code")
    asked = parser.parse_args()
    size: Size = "tiny" if asked.tiny else "full"
    if asked.against:
        both = itertools.product(asked.case, asked.side or [1024])
        beside.show(asked.against, [count(*own, "resident", size) for own in both], size, asked.json)
        return
    cases = itertools.product(asked.case, asked.side or SIDES, asked.memory, asked.quantize)
    counted = (count(case, side, memory, size, kind) for case, side, memory, kind in cases)
    rows = (own.told() | ({} if asked.tiny else own.expected()) for own in counted)
    for line in map(json.dumps, rows) if asked.json else _table(rows):
        print(line, flush=True)


if __name__ == "__main__":
    main()
