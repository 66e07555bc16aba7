"""A process that makes pictures with one of the two implementations, and says how long each request took.

    python -P worker.py ours|reference ROOT MODEL DEVICE DTYPE [MEMORY QUANTIZE COMPILE]

Both call their package `omnigen2`, so each has a process of its own, in which it is imported from ROOT, and
nothing of the other is. Requests come as lines of JSON on stdin, answers go as such lines to stdout
(`omnigen2.comparison.compare`).
"""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

from PIL import Image

TURN = "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
CHAT = "{% for message in messages %}" + TURN + "{% endfor %}"
"""What the published model's template makes of a system text and a prompt, for processors that have none."""


class Asked(NamedTuple):
    """A picture to be made; `sampling` has the names and values of `omnigen2.params.ReferenceSampling`."""

    prompt: str
    images: list[Image.Image]
    sampling: dict[str, Any]


class Side(Protocol):
    """One of the two implementations, with a model loaded."""

    facts: dict[str, Any]

    def make(self, asked: list[Asked]) -> list[Image.Image]:
        """One picture for each of some requests that come at the same moment."""
        ...


class Ours:
    """This implementation: requests go to the engine, as a server's do."""

    def __init__(self, model: str, device: str, dtype: str, memory: str, quantize: str, compile: str):
        import omnigen2
        from omnigen2.engine.engine import Engine

        self._model = omnigen2.load(
            model, device=device, dtype=dtype, memory=memory, quantize=quantize, compile=compile
        )
        pipeline = self._model.pipeline
        self._engine = Engine(self._model)
        self.facts = {
            "device": str(pipeline.device),
            "dtype": str(pipeline.transformer.dtype).removeprefix("torch."),
            "threads": self._model.threads,
            "memory": pipeline.residency.mode,
            "quantize": self._model.card.quantize,
            "sampling": [self._model.card.defaults_for(count).model_dump() for count in range(3)],
        }

    def make(self, asked: list[Asked]) -> list[Image.Image]:
        """The pictures of requests that the engine has all at once."""
        from omnigen2.params import ReferenceSampling
        from omnigen2.task import ImageTask

        tickets = [
            self._engine.submit(ImageTask(one.prompt, tuple(one.images), ReferenceSampling(**one.sampling)))
            for one in asked
        ]
        return [ticket.future.result().pictures[0] for ticket in tickets]


class Processor:
    """As much of the model's processor as text to image, edits and compositions use."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        tokenizer.chat_template = tokenizer.chat_template or CHAT


class Reference:
    """The reference implementation, put together from its parts.

    Three things are not as its authors run it. The tokenizer stands for the whole processor, of which nothing
    else is used, and which needs torchvision. Images are encoded to the mode of their distribution instead of
    a sample drawn from the process's generator, so that pictures can be compared. There is no progress bar.
    """

    def __init__(self, model: str, device: str, dtype: str):
        pipelines = import_module("omnigen2.pipelines.omnigen2.pipeline_omnigen2")
        transformers = import_module("omnigen2.models.transformers")
        schedulers = import_module("omnigen2.schedulers.scheduling_flow_match_euler_discrete")

        import torch
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
        from transformers import AutoTokenizer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
        DiagonalGaussianDistribution.sample = lambda self, generator=None: self.mode()
        folder, kind = Path(model), getattr(torch, dtype)

        def part(cls: Any, name: str, **options: Any) -> Any:
            return cls.from_pretrained(folder / name, **options)

        self._pipeline = pipelines.OmniGen2Pipeline(
            transformer=part(transformers.OmniGen2Transformer2DModel, "transformer", torch_dtype=kind),
            vae=part(pipelines.AutoencoderKL, "vae", torch_dtype=kind),
            scheduler=part(schedulers.FlowMatchEulerDiscreteScheduler, "scheduler"),
            mllm=part(pipelines.Qwen2_5_VLForConditionalGeneration, "mllm", dtype=kind),
            processor=Processor(part(AutoTokenizer, "processor")),
        ).to(device)
        self._pipeline.set_progress_bar_config(disable=True)
        self._dtype = kind
        found = import_module("omnigen2.utils.import_utils")
        self.facts = {
            "device": device,
            "dtype": dtype,
            "threads": torch.get_num_threads(),
            "packages": {
                "flash_attn": found.is_flash_attn_available(),
                "triton": found.is_triton_available(),
            },
        }

    def make(self, asked: list[Asked]) -> list[Image.Image]:
        """The pictures, one after another: it takes one request at a time."""
        return [self._one(one) for one in asked]

    def _one(self, asked: Asked) -> Image.Image:
        import torch

        sampling, pipeline = asked.sampling, self._pipeline
        width, height = sampling["width"], sampling["height"]
        channels, factor = pipeline.transformer.config.in_channels, pipeline.vae_scale_factor
        shape = (1, channels, height // factor, width // factor)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(sampling["seed"]))
        made = pipeline(
            prompt=asked.prompt,
            input_images=asked.images or None,
            width=width,
            height=height,
            num_inference_steps=sampling["steps"],
            max_sequence_length=1024,
            text_guidance_scale=sampling["text_guidance_scale"],
            image_guidance_scale=sampling["image_guidance_scale"],
            cfg_range=tuple(sampling["cfg_range"]),
            negative_prompt=sampling["negative_prompt"],
            latents=noise.to(self._dtype),
        )
        return made.images[0]


def serve(side: Side, requests: TextIO, answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer each line until there are no more; pictures are read before and written after the clock runs."""
    import torch

    gpu = torch.cuda.is_available()
    for line in requests:
        asked = json.loads(line)
        pictures = [
            Asked(one["prompt"], [Image.open(path).convert("RGB") for path in one["images"]], one["sampling"])
            for one in asked["pictures"]
        ]
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        started, busy = time.perf_counter(), time.process_time()
        made = side.make(pictures)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - busy
        for image, one in zip(made, asked["pictures"], strict=True):
            image.save(one["to"])
        peak = torch.cuda.max_memory_allocated() / 1e9 if gpu else None
        answer({"seconds": seconds, "cpu_seconds": cpu_seconds, "device_gb": peak})


def main() -> None:
    """Load the model, say what it runs on, answer requests."""
    side, root, *arguments = sys.argv[1:]
    sys.path.insert(0, root)
    stdout = sys.stdout

    def answer(told: dict[str, Any]) -> None:
        print(json.dumps(told), file=stdout, flush=True)

    with contextlib.redirect_stdout(sys.stderr):  # what libraries print is no answer
        try:
            loaded: Side = {"ours": Ours, "reference": Reference}[side](*arguments)
        except ModuleNotFoundError as error:
            answer({"missing": error.name})
            return
        answer(loaded.facts)
        serve(loaded, sys.stdin, answer)


if __name__ == "__main__":
    main()
