"""The full-size model with random weights, through the library and the engine: seconds and memory.

    python -m benchmarks.full_size --make FOLDER            # a checkpoint of the published layout, 15.6 GB
    python -m benchmarks.full_size --run FOLDER             # on any machine; 256 x 256 on a CPU
    python -m benchmarks.full_size --run FOLDER --memory resident offload stream --side 1024     # on a GPU
    python -m benchmarks.full_size --make FOLDER --tiny     # the same code, tiny; or --mid

Random weights cost what trained ones cost. Each mode runs in a process of its own, and prints a JSON object
for loading and for each case: a picture, an edit of one picture, an answer of 8 tokens.
"""

import argparse
import itertools
import json
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import omnigen2
from benchmarks.shapes import GOLDEN, Size, parts
from omnigen2.engine.engine import Engine
from omnigen2.memory.choice import MODES
from omnigen2.params import Decoding, ReferenceSampling
from omnigen2.task import ImageTask, Progress, Task, TextTask

SHARD_BYTES = 4_000_000_000
NOISE = 1 << 22
"""Values of the block of noise that is repeated."""
NAMES = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "mllm": "model"}
GB = 1e9
CASES = ("picture", "edit", "answer")


# -- making a checkpoint ------------------------------------------------------------------------------


def make(folder: Path, size: Size) -> None:
    """Write a checkpoint with random bfloat16 weights, in shards."""
    for name, part in parts(size).items():
        part.save_config(folder / name) if name != "mllm" else part.config.save_pretrained(folder / name)
        _write_shards(folder / name, NAMES[name], part)
    for name in ("processor", "scheduler"):
        shutil.copytree(GOLDEN / name, folder / name, dirs_exist_ok=True)
    size = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    print(json.dumps({"folder": str(folder), "gb": round(size / GB, 2)}))


def _write_shards(folder: Path, name: str, part: nn.Module) -> None:
    tied = getattr(part, "_tied_weights_keys", None) or ()
    tensors = {key: value for key, value in part.state_dict().items() if key not in tied}
    shards: list[dict[str, Tensor]] = [{}]
    for key, value in tensors.items():
        if _bytes(shards[-1]) + 2 * value.numel() > SHARD_BYTES:
            shards.append({})
        shards[-1][key] = value
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"{name}-{number:05}-of-{len(shards):05}.safetensors"
        if len(shards) == 1:
            file = f"{name}.safetensors"
        _write(folder / file, shard)
        places |= dict.fromkeys(shard, file)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": 2 * sum(map(Tensor.numel, tensors.values()))},
            "weight_map": places,
        }
        (folder / f"{name}.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    """A safetensors file: length of the header, header, values."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        end = start + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    generator = torch.Generator().manual_seed(0)
    noise = (0.02 * torch.randn(NOISE, generator=generator)).bfloat16().view(torch.uint8).numpy().tobytes()
    ones = torch.ones(NOISE, dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, tensor in tensors.items():
            block = ones if tensor.ndim == 1 and name.endswith("weight") else noise  # norms begin with ones
            rest = 2 * tensor.numel()
            while rest:
                rest -= file.write(block[: min(rest, len(block))])


def _bytes(tensors: dict[str, Tensor]) -> int:
    return sum(2 * tensor.numel() for tensor in tensors.values())


# -- running it ---------------------------------------------------------------------------------------


class Peak:
    """The most memory this process has taken, in GB: anonymous, with mapped files, and the device's."""

    def __init__(self) -> None:
        self.anonymous = self.all = 0.0

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Watch within the block."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.02):
                self._look()

        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch)
            try:
                yield
            finally:
                over.set()
                watching.result()

    def _look(self) -> None:
        lines = Path("/proc/self/status").read_text().splitlines()
        found = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
        anonymous = int(found["RssAnon"]) * 1024 / GB
        mapped = int(found["RssFile"]) * 1024 / GB
        self.anonymous, self.all = max(self.anonymous, anonymous), max(self.all, anonymous + mapped)

    def told(self) -> dict[str, float | None]:
        """The peaks so far."""
        device = torch.cuda.max_memory_allocated() / GB if torch.cuda.is_available() else None
        whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GB
        return {
            "anonymous_gb": round(self.anonymous, 2),
            "host_gb": round(max(whole, self.all), 2),
            "device_gb": None if device is None else round(device, 2),
        }


def run(folder: Path, memory: str, side: int, steps: int, dtype: str, cases: Sequence[str]) -> None:
    """Load the checkpoint in a mode, and time some cases."""
    peak = Peak()
    with peak.watched():
        started = time.perf_counter()
        model = omnigen2.load(str(folder), memory=memory, dtype=dtype)
        mode = model.pipeline.residency.mode
        pipeline = model.pipeline
        _print(
            case="load", memory=mode, device=str(pipeline.device), dtype=str(pipeline.transformer.dtype),
            seconds=time.perf_counter() - started, weights_gb=pipeline.memory_bytes() / GB, **peak.told(),
        )  # fmt: skip
        engine = Engine(model)
        for name in cases:
            task = _task(name, model, side, steps)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            _print(case=name, memory=mode, side=side, **_timed(engine, task), **peak.told())
        engine.close()


def make_task(model: Any, side: int, steps: int, references: int) -> ImageTask:
    """A picture made from that many references of its own size."""
    images = tuple(Image.effect_noise((side, side), 60 + n).convert("RGB") for n in range(references))
    asked = ReferenceSampling(width=side, height=side, steps=steps, seed=0, speed="exact")
    return ImageTask("a cat " * 60, images, asked.filled(model.card.defaults_for(references)))


def _task(name: str, model: Any, side: int, steps: int) -> Task:
    """What a case asks for."""
    if name == "answer":
        image = Image.effect_noise((side, side), 60).convert("RGB")
        return TextTask("what is this?", (image,), Decoding(max_tokens=8, temperature=0.0))
    return make_task(model, side, steps, int(name == "edit"))


def _timed(engine: Engine, task: Task) -> dict[str, Any]:
    """Seconds of one task: in all, to its first step, and the mean of the steps after that."""
    at: list[float] = []
    busy: list[float] = []

    def progress(told: Progress) -> None:
        if told.step:
            at.append(time.perf_counter())
            busy.append(time.process_time())

    started = time.perf_counter()
    outcome = engine.submit(task, progress).future.result()
    assert outcome.pictures or outcome.text is not None
    later = [after - before for before, after in itertools.pairwise(at)]
    return {
        "seconds": time.perf_counter() - started,
        "first_step_s": at[0] - started,
        "step_s": sum(later) / len(later) if later else None,
        "step_cpu_s": (busy[-1] - busy[0]) / len(later) if later else None,
        **{name: value for name, value in outcome.timings.items() if name in ("encode_ms", "decode_ms")},
    }


def _print(**facts: Any) -> None:
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in facts.items()}
    print(json.dumps(rounded), flush=True)


def main() -> None:
    """Make a checkpoint, or measure one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="write a checkpoint with random weights")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="measure a checkpoint")
    parser.add_argument("--tiny", action="store_true", help="make a tiny one, to try the code")
    parser.add_argument("--mid", action="store_true", help="make one with 63 million parameters")
    parser.add_argument("--cases", nargs="+", default=[*CASES], choices=CASES, help="what to measure")
    parser.add_argument("--memory", nargs="+", default=["auto"], choices=["auto", *MODES])
    parser.add_argument("--dtype", default="auto", help="precision of the computation")
    parser.add_argument("--side", type=int, help="side of the pictures in pixels (1024; 256 on a CPU)")
    parser.add_argument("--steps", type=int, help="denoising steps of a picture (10; 2 on a CPU)")
    options = parser.parse_args()
    gpu = torch.cuda.is_available()
    if options.make:
        make(options.make, "tiny" if options.tiny else "mid" if options.mid else "full")
    if options.run and len(options.memory) == 1:
        side, steps = options.side or (1024 if gpu else 256), options.steps or (10 if gpu else 2)
        run(options.run, options.memory[0], side, steps, options.dtype, options.cases)
    elif options.run:
        words = [word for word in sys.argv[1:] if word not in ("--memory", *options.memory)]
        for memory in options.memory:
            subprocess.run(
                [sys.executable, "-m", "benchmarks.full_size", *words, "--memory", memory], check=True
            )
    if not (options.make or options.run):
        parser.error("give --make FOLDER, --run FOLDER, or both")


if __name__ == "__main__":
    main()
