"""A process that counts what the reference implementation does, without a GPU and without weights.

    python -P reference.py FOLDER < ASKED

Its package is called `omnigen2`, like ours, so it has a process of its own, in which it is imported from
FOLDER. ASKED is an object in JSON (`benchmarks.beside.asked`) with requests; for each, a line of JSON says
the work of its stages, by the names of `benchmarks.counting.Work`.

A batch has one request, so every mask is true everywhere; where the code reads how many values are true, it
gets that number. The index of the first time step is known, too. Norms are counted as the one kernel each
that Triton makes of them.
"""

import contextlib
import json
import sys
import types
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

sys.path.append(str(Path(__file__).parents[1]))  # behind the reference's folder, which comes first
from benchmarks.counting import GPU, CodeForGpu, Counter, Work, attend, counting

STEPS = 2


class Processor:
    """As much of the model's processor as the pipeline uses."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer


class ReferenceForGpu(CodeForGpu):
    """Lets the reference take the way that it takes on CUDA, with a single request in its batch."""

    def __init__(self, counter: Counter):
        super().__init__(counter)
        self._counted = counter

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None and first.is_meta:
            if func is torch.equal:
                self._counted.launch(args)
                self._counted.work.syncs += 1
                return True
            if func is torch.Tensor.sum and first.dtype == torch.bool:
                self._counted.launch([first])
                return self._counted.made(torch.full(first.shape[:-1], first.shape[-1], dtype=torch.int32))
            if func is torch.nonzero:
                self._counted.launch([first])
                self._counted.work.syncs += 1
                return self._counted.made(torch.arange(first.numel()))[:, None]
        return super().__torch_function__(func, types, args, kwargs)


def flash_attention(counter: Counter) -> dict[str, types.ModuleType]:
    """Modules that stand for those of flash_attn: its operators, as the kernels that they launch."""

    def varlen(q: Tensor, k: Tensor, v: Tensor, max_seqlen_q: int, softmax_scale: float, **_: Any) -> Tensor:
        if not max_seqlen_q:
            return q  # of a picture without references
        q, k, v = (x.view(-1, max_seqlen_q, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        return attend(q, k, v, scale=softmax_scale).transpose(1, 2).flatten(0, 1)

    def pad(x: Tensor, indices: Tensor, batch: int, length: int) -> Tensor:
        padded = torch.zeros(batch * length, *x.shape[1:], dtype=x.dtype, device=x.device)
        padded[indices] = x
        return padded.view(batch, length, *x.shape[1:])

    def swiglu(x: Tensor, y: Tensor) -> Tensor:
        made = torch.empty_like(x)
        counter.launch([x, y, made])
        return made

    def module(name: str, **functions: Any) -> types.ModuleType:
        made = types.ModuleType(name)
        made.__spec__ = ModuleSpec(name, None)
        vars(made).update(functions)
        return made

    modules = (
        module("flash_attn", flash_attn_varlen_func=varlen),
        module(
            "flash_attn.bert_padding",
            index_first_axis=lambda x, indices: x.index_select(0, indices),
            pad_input=pad,
            unpad_input=None,
        ),
        module("flash_attn.ops"),
        module("flash_attn.ops.activations", swiglu=swiglu),
    )
    return {made.__name__: made for made in modules}


def make_pipeline(asked: dict[str, Any]) -> Any:
    """The reference's pipeline, with parts of the shapes that are asked for."""
    pipelines = import_module("omnigen2.pipelines.omnigen2.pipeline_omnigen2")
    transformers = import_module("omnigen2.models.transformers")
    schedulers = import_module("omnigen2.schedulers.scheduling_flow_match_euler_discrete")
    dtype = getattr(torch, asked["dtype"])
    torch.set_default_dtype(dtype)
    with torch.device(GPU):
        transformer = transformers.OmniGen2Transformer2DModel(**asked["transformer"])
        autoencoder = AutoencoderKL(**asked["vae"])
        mllm = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**asked["mllm"]))
    torch.set_default_dtype(torch.float32)
    scheduler = schedulers.FlowMatchEulerDiscreteScheduler()
    scheduler.index_for_timestep = lambda *_: 0
    pipeline = pipelines.OmniGen2Pipeline(
        transformer=transformer.eval(),
        vae=autoencoder.eval(),
        scheduler=scheduler,
        mllm=mllm.to(dtype).eval(),
        processor=Processor(AutoTokenizer.from_pretrained(asked["processor"])),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def count(pipeline: Any, asked: dict[str, Any], counter: Counter) -> dict[str, Work]:
    """A request's stages: what comes before the first step, a step, and what comes after the last one."""
    side, stages = asked["side"], {}
    images = [Image.new("RGB", (side, side), (n, n, n)) for n in range(asked["references"])]
    with contextlib.ExitStack() as stack:
        stages["before"] = stack.enter_context(counter.counted())
        runs: list[int] = []

        def processing(**given: Any) -> Any:
            stack.pop_all().close()
            stages["step"] = stack.enter_context(counter.counted())
            return type(pipeline).processing(pipeline, **given)

        def stepped(index: int, total: int) -> None:
            runs.append(index)
            stack.pop_all().close()
            stages["after" if index == total - 1 else "step"] = stack.enter_context(counter.counted())

        pipeline.processing = processing
        pipeline(
            prompt=asked["prompt"],
            negative_prompt=asked["negative_prompt"],
            input_images=images or None,
            width=side,
            height=side,
            max_pixels=side * side,
            max_input_image_side_length=side,
            num_inference_steps=STEPS,
            max_sequence_length=1024,
            text_guidance_scale=asked["text_guidance_scale"],
            image_guidance_scale=asked["image_guidance_scale"],
            step_func=stepped,
        )
    assert runs == list(range(STEPS))
    return stages


@contextlib.contextmanager
def kernels(counter: Counter, flash: bool) -> Iterator[None]:
    """Let the reference find flash_attn, or not."""
    with mock.patch.dict(sys.modules, flash_attention(counter) if flash else {}):
        vars(import_module("omnigen2.utils.import_utils"))["_flash_attn_available"] = flash
        yield


def main() -> None:
    """Count each request."""
    sys.path.insert(0, sys.argv[1])
    asked = json.load(sys.stdin)
    answers = sys.stdout
    with contextlib.redirect_stdout(sys.stderr), counting(ReferenceForGpu) as counter:
        with kernels(counter, asked["flash_attn"]):
            pipeline = make_pipeline(asked)
            for request in asked["requests"]:
                stages = count(pipeline, request, counter)
                told = {name: asdict(work) for name, work in stages.items()}
                print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main()
