"""Large pictures through the autoencoder in strips: how far from whole ones, how long and in how much memory.

    python -m benchmarks.large_pictures                              # differences to pictures computed whole
    python -m benchmarks.large_pictures --pictures a.jpg b.png       # of these, instead of generated ones
    python -m benchmarks.large_pictures --count 1024 2048            # memory at full size, counted
    python -m benchmarks.large_pictures --peak 1024                  # memory and seconds, measured

Differences are of nano's trained autoencoder in every precision, and of the full-size one, which has random
weights. Memory is what tensors take beside the weights, counted on tensors without values; or what a process
of its own takes in fact. A CPU needs minutes for a side of 1024.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor

from benchmarks.counting import GPU, counting
from benchmarks.shapes import parts
from omnigen2.network import strips
from omnigen2.network.autoencoder import to_image, to_pixels

NANO = Path(__file__).parents[1] / "omnigen2" / "nano" / "weights" / "vae"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MB = 1e6


def full_size(dtype: torch.dtype) -> AutoencoderKL:
    """The autoencoder of the published checkpoint, with random weights."""
    torch.manual_seed(0)
    vae = parts(dtype=dtype)["vae"].to_empty(device="cpu")
    for module in vae.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return vae


def encoded(vae: AutoencoderKL, pixels: Tensor, whole: bool) -> Tensor:
    """Latents (1, C, h, w)."""
    return vae.encode(pixels).latent_dist.mode() if whole else strips.encode(vae, pixels)  # pyright: ignore


def decoded(vae: AutoencoderKL, latents: Tensor, whole: bool) -> Tensor:
    """Pixels (1, 3, height, width)."""
    return vae.decode(latents).sample if whole else strips.decode(vae, latents)  # pyright: ignore


def compare(name: str, vae: AutoencoderKL, picture: Image.Image, exact: AutoencoderKL) -> None:
    """Print how far latents and pixels are from those of the picture computed whole, in small strips.

    `exact`, the same in float32, says how much of that is rounding.
    """
    size = tuple(side // 16 * 16 for side in picture.size)
    pixels = to_pixels(picture.convert("RGB").resize(size, Image.Resampling.LANCZOS))[None].to(vae.dtype)  # pyright: ignore
    strips.STRIP_PIXELS = size[0] * 64
    latents = encoded(vae, pixels, whole=True)
    error = (encoded(vae, pixels, whole=False) - latents).float().norm() / latents.float().norm()
    one, other = (decoded(vae, latents, whole)[0] for whole in (True, False))
    levels = 127.5 * (one - other).float().abs()
    best = decoded(exact, latents.float(), whole=True)[0]
    seen = (to_pixels(to_image(one)) - to_pixels(to_image(other))).abs() * 127.5
    _print(
        autoencoder=name, dtype=str(vae.dtype)[6:], size=size, strips=-(-size[1] // 64),
        latents_relative=error.item(), max_255ths=levels.max().item(), mean_255ths=levels.mean().item(),
        changed_share=(seen > 0.5).float().mean().item(),
        rounding_max_255ths=[127.5 * (made.float() - best).abs().max().item() for made in (one, other)],
        rounding_mean_255ths=[127.5 * (made.float() - best).abs().mean().item() for made in (one, other)],
    )  # fmt: skip


def count(side: int, dtype: str, direction: str, whole: bool) -> None:
    """Print the memory that encoding or decoding takes beside the weights, and the work."""
    kind = DTYPES[dtype]
    vae = parts(dtype=kind)["vae"]
    with counting() as counter:
        given = torch.empty(_shape(direction, side), dtype=kind, device=GPU)
        with counter.counted() as work:
            (encoded if direction == "encode" else decoded)(vae, given, whole)
    _print(
        direction=direction, side=side, dtype=dtype, how="whole" if whole else "strips",
        counted_mb=round(work.peak_bytes / MB), tflop=(work.product_flop + work.attention_flop) / 1e12,
    )  # fmt: skip


def _shape(direction: str, side: int) -> tuple[int, int, int, int]:
    return (1, 3, side, side) if direction == "encode" else (1, 16, side // 8, side // 8)


def peak(side: int, dtype: str, direction: str, whole: bool) -> None:
    """Print the seconds and the memory that encoding or decoding takes on top of the weights."""
    vae = full_size(DTYPES[dtype])
    run: Callable[[AutoencoderKL, Tensor, bool], Tensor] = encoded if direction == "encode" else decoded
    run(vae, torch.randn(_shape(direction, 512), dtype=vae.dtype), whole)  # what libraries take once
    given = torch.randn(_shape(direction, side), dtype=vae.dtype)
    before = psutil.Process().memory_info().rss
    started = time.perf_counter()
    assert run(vae, given, whole).isfinite().all()
    seconds = time.perf_counter() - started
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    _print(
        direction=direction, side=side, dtype=dtype, how="whole" if whole else "strips",
        peak_mb=round(most / MB), seconds=round(seconds, 1),
    )  # fmt: skip


def _print(**facts: object) -> None:
    def short(fact: object) -> object:
        if isinstance(fact, list):
            return [short(part) for part in fact]
        return float(f"{fact:.3g}") if isinstance(fact, float) else fact

    print(json.dumps({name: short(fact) for name, fact in facts.items()}), flush=True)


def main() -> None:
    """Measure differences, or peaks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pictures", nargs="+", type=Path, help="pictures to compare with")
    parser.add_argument("--peak", nargs="+", type=int, metavar="SIDE", help="measure memory at these sides")
    parser.add_argument("--count", nargs="+", type=int, metavar="SIDE", help="count memory at these sides")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="precision of these")
    parser.add_argument("--directions", nargs="+", choices=("encode", "decode"), default=["encode", "decode"])
    parser.add_argument("--how", nargs="+", choices=("whole", "strips"), default=["whole", "strips"])
    options = parser.parse_args()
    sides: list[int] = options.count or options.peak or []
    cases = [(side, to, how) for side in sides for to in options.directions for how in options.how]
    with torch.inference_mode():
        if options.count or len(cases) == 1:
            for side, direction, how in cases:
                (count if options.count else peak)(side, options.dtype, direction, how == "whole")
            return
        for side, direction, how in cases:
            words = ["--peak", str(side), "--dtype", options.dtype, "--directions", direction, "--how", how]
            subprocess.run([sys.executable, "-m", "benchmarks.large_pictures", *words], check=True)
        if cases:
            return None
        noise = Image.effect_noise((640, 400), 60).convert("RGB").resize((640, 400), Image.Resampling.BICUBIC)
        pictures = [Image.open(path) for path in options.pictures or ()] or [noise]
        nano = {dtype: AutoencoderKL.from_pretrained(NANO, torch_dtype=dtype) for dtype in DTYPES.values()}
        for vae in nano.values():
            for picture in pictures:
                compare("nano", vae, picture, nano[torch.float32])
        large = full_size(torch.float32)
        compare("full size, random weights", large, pictures[0].resize((384, 256)), large)


if __name__ == "__main__":
    main()
