"""Whether counted memory is what is taken: peaks on a CPU, measured, beside those that are counted.

    python -m benchmarks.peaks            # tiny and mid-size models, one JSON object per stage and line

Each model runs in a process of its own, which gives freed memory back at once. Measured is the most resident
memory of the process beyond what it had before the stage; counted is what tensors held when the same code ran
without values (`benchmarks/counting.py`).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from benchmarks.counting import GPU, counting
from benchmarks.plan import make_task
from benchmarks.shapes import PROCESSOR, parts
from omnigen2.checkpoints.card import published_card
from omnigen2.denoise import Denoiser, Sample
from omnigen2.memory.residency import Residency
from omnigen2.network.autoencoder import Autoencoder
from omnigen2.network.language import LanguageModel
from omnigen2.pipeline import Pipeline

SIZES = {"tiny": 1024, "mid": 1024}
"""Side of the edited picture, for each model."""
MB = 1e6
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TOP_PAD_": "0", "MALLOC_TRIM_THRESHOLD_": "0"}
"""Lets glibc give back what is freed."""


def _pipeline(size: str, device: torch.device) -> Pipeline:
    made = parts(size, torch.float32)
    if device != GPU:
        made = {name: part.to_empty(device=device) for name, part in made.items()}
        for part in made.values():
            for tensor in (*part.parameters(), *part.buffers()):
                tensor.data.fill_(0.01)
    transformer = made["transformer"]
    autoencoder = Autoencoder(made["vae"], transformer.config["patch_size"])
    tokenizer = AutoTokenizer.from_pretrained(PROCESSOR)
    language = LanguageModel(made["mllm"], tokenizer, Qwen2VLImageProcessorPil.from_pretrained(PROCESSOR))
    with mock.patch.object(Tensor, "cpu", lambda tensor: tensor):  # weights are where they are used
        residency = Residency(transformer, language, autoencoder, device, torch.float32)
    return Pipeline(transformer, autoencoder, language, published_card("peaks"), residency)


def _stages(pipeline: Pipeline, side: int) -> Iterator[tuple[str, Callable[[], object]]]:
    """The stages of an edit; each is called before the next one is asked for."""
    task = make_task(pipeline, 1, side)
    samples: list[Sample] = []
    yield "prepare", lambda: samples.extend(pipeline.prepare(task)[0])
    denoiser = Denoiser(pipeline.transformer, together=False)
    denoiser.add(samples)
    yield "step", denoiser.step
    yield "decode", lambda: pipeline.finish(task, samples)


def counted(size: str, side: int) -> dict[str, int]:
    """Bytes that each stage holds at its peak, beyond what was held before."""
    peaks: dict[str, int] = {}
    with counting(lambda _: _CodeForCpu()) as counter:
        for stage, run in _stages(_pipeline(size, GPU), side):
            before = counter.held_bytes
            with counter.counted() as work:
                run()
            peaks[stage] = work.peak_bytes - before
    return peaks


def measured(size: str, side: int) -> dict[str, int]:
    """The same, of resident memory, as the kernel of the system counts it for this process."""
    pipeline = _pipeline(size, torch.device("cpu"))
    for _, run in _stages(pipeline, 64):  # loads what has to be loaded
        run()
    pipeline.forget()
    peaks: dict[str, int] = {}
    for stage, run in _stages(pipeline, side):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = _memory("VmRSS")
        run()
        peaks[stage] = _memory("VmHWM") - before
    return peaks


def measured_apart(size: str, side: int) -> dict[str, int]:
    """`measured`, in a new process."""
    code = f"from benchmarks.peaks import *; print(json.dumps(measured({size!r}, {side})))"
    environment = {**os.environ, **ALLOCATOR, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


class _CodeForCpu(TorchFunctionMode):
    """Lets attention take the fused kernel that it takes on a CPU, where convolutions copy their input.

    oneDNN wants it in a layout of its own. Of a GPU such copies are not counted: nobody knows cuDNN's.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.tensor and given.get("device") == GPU:
            return func(*args, **given | {"device": "cpu"}).to(GPU)
        if func is F.scaled_dot_product_attention and args[0].device == GPU:
            return _attend(*args, mask=given.get("attn_mask"))
        made = func(*args, **given)
        if func is torch.conv2d and args[0].device == GPU:
            torch.empty_like(args[0])
        return made


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, attn_mask=mask)[0]


def _memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    """Print every stage."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", default=list(SIZES), choices=SIZES)
    for size in parser.parse_args().size:
        taken = measured_apart(size, SIZES[size])
        for stage, expected in counted(size, SIZES[size]).items():
            told = {"model": size, "side": SIZES[size], "stage": stage}
            told |= {"counted_mb": round(expected / MB, 1), "measured_mb": round(taken[stage] / MB, 1)}
            print(json.dumps(told | {"ratio": round(taken[stage] / expected, 3)}), flush=True)


if __name__ == "__main__":
    main()
