"""The memory that is foretold is the memory that the code takes, as it is counted at full size."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.counting import GPU, counting
from benchmarks.plan import count, make_pipeline
from benchmarks.shapes import parts
from omnigen2.checkpoints import fit
from omnigen2.checkpoints.card import published_card
from omnigen2.checkpoints.headers import TensorInfo
from omnigen2.checkpoints.locate import Checkpoint
from omnigen2.memory.choice import Mode
from omnigen2.memory.footprint import MOST_TOKENS, Footprint, token_budget, token_bytes
from omnigen2.memory.placement import Kind, Quantization
from omnigen2.memory.quantize import quantized
from omnigen2.network.blocks import FeedForward


def headers(part: str) -> dict[str, TensorInfo]:
    tensors = parts()[part].state_dict()
    tied = {"lm_head.weight"} if part == "mllm" else set[str]()
    return {name: TensorInfo(tuple(t.shape), "BF16") for name, t in tensors.items() if name not in tied}


FULL = {part: headers(part) for part in ("transformer", "vae", "mllm")}


@pytest.mark.parametrize(("memory", "kind"), [("resident", "none"), ("stream", "int8")])
def test_a_request_takes_what_the_checkpoint_is_said_to_need(
    memory: Mode, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "read_headers", lambda folder: FULL.get(folder.name, {}))
    checkpoint = Checkpoint(Path(), published_card("full"))
    needs = fit.needs(checkpoint, torch.bfloat16, torch.device("cuda"), Quantization(kind, kind))
    needed = needs[memory].device_bytes
    counted = count("edit", 1024, memory, kind=kind)
    assert needed == pytest.approx(max(work.peak_bytes for work in counted.stages.values()), rel=0.05)


def test_a_layer_that_multiplies_8_bit_floats_takes_more_for_each_token() -> None:
    with counting() as counter, torch.device("meta"), torch.inference_mode():
        layer = FeedForward(2520, 10240).bfloat16()
        for name, linear in list(layer.named_children()):
            layer.set_submodule(name, quantized(linear, "fp8", dynamic=True))  # type: ignore
        x = torch.empty(1000, 2520, dtype=torch.bfloat16)
        held = counter.held_bytes
        with counter.counted() as work:
            layer(x)
        others = 5 * 2520 * 2  # the tokens before, between and after
        expected = 1000 * (token_bytes(2520, 10240, 2, in_fp8=True) - others)
        assert work.peak_bytes - held == pytest.approx(expected, rel=0.05)


def test_pictures_are_decoded_in_the_memory_that_is_said() -> None:
    footprint = Footprint.of(FULL["transformer"], FULL["vae"])
    assert footprint is not None and footprint.token_pixels == 256
    with counting() as counter:
        autoencoder = make_pipeline(counter, "resident").autoencoder
        for width, height in ((512, 512), (1536, 1024)):
            with counter.counted() as work:
                autoencoder.decode(torch.empty(16, height // 8, width // 8, device=GPU))
            counted = work.peak_bytes - work.peak_weights
            assert footprint.decode_bytes(width * height, 2) == pytest.approx(counted, rel=0.1)
            with counter.counted() as work:
                autoencoder.encode(Image.new("RGB", (width, height)), width * height, 2048)
            assert work.peak_bytes - work.peak_weights < counted


def test_as_many_tokens_share_a_step_as_memory_has_room_for() -> None:
    each = token_bytes(2520, 10240, 2)
    assert each == 66_160
    assert token_budget(10**9, each) == 13_603
    assert token_budget(10**12, each) == MOST_TOKENS
    assert token_budget(-1, each) == 1
