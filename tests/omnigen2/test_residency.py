"""Weights that come to the device and leave it: they are truly gone in between, and nothing else changes."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import omnigen2
from omnigen2.checkpoints import fit
from omnigen2.checkpoints.fit import choose_memory, needed_bytes
from omnigen2.checkpoints.locate import find
from omnigen2.denoise import Denoiser
from omnigen2.engine.engine import Engine
from omnigen2.memory.choice import MODES, MemoryChoice
from omnigen2.memory.residency import Residency
from omnigen2.memory.weights import Slots, tensors_of
from omnigen2.model import OmniGen2
from omnigen2.network.writing import Writer
from omnigen2.params import Decoding, ReferenceSampling
from omnigen2.pipeline import Pipeline
from omnigen2.task import ImageTask, TextTask
from tests.omnigen2.golden import PIPELINE

FOLDER = PIPELINE / "checkpoint"
CPU = torch.device("cpu")
PICTURE = Image.effect_noise((64, 48), 60).convert("RGB")


def loaded(memory: str, dtype: str = "float32", folder: Path = FOLDER) -> OmniGen2:
    return omnigen2.load(str(folder), device="cpu", dtype=dtype, memory=memory)


@pytest.fixture(scope="module")
def resident() -> OmniGen2:
    return loaded("resident")


def everything(model: OmniGen2) -> list[Tensor | str]:
    """An edit, a picture of words alone, and a text about a picture: every part in every order."""
    size = {"width": 64, "height": 48, "steps": 3, "seed": 1}
    return [
        model.generate("a red circle", [PICTURE], output="latents", **size),  # type: ignore
        model.describe([PICTURE], "what is it?", max_tokens=5),
        model.generate("a red circle", output="latents", **size),  # type: ignore
        model.describe([], "why?", max_tokens=5),
    ]


def same(ours: list[Tensor | str], theirs: list[Tensor | str]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)  # type: ignore


def gone(model: OmniGen2) -> int:
    """Number of weights that are not on the device."""
    parts = model.pipeline
    modules = (parts.transformer, parts.language.mllm, parts.autoencoder.vae)
    return sum(tensor.is_floating_point() and bool(tensor.isnan().all()) for tensor in tensors_of(modules))


@pytest.mark.parametrize("mode", ["offload", "stream"])
def test_a_model_gives_the_same_in_every_mode(resident: OmniGen2, mode: str) -> None:
    model = loaded(mode)
    assert gone(model) > 100
    assert same(everything(model), everything(resident))
    assert gone(model) > 50
    assert model.pipeline.memory_bytes() < resident.pipeline.memory_bytes()


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model = loaded("stream")
    mllm = model.pipeline.language.mllm
    with model.pipeline.language.weights:
        head, embedding = mllm.get_output_embeddings().weight, mllm.get_input_embeddings().weight
        assert (head is embedding) == mllm.config.get_text_config().tie_word_embeddings
        assert not head.isnan().any()
    assert head.isnan().all()


def test_what_was_forgotten_gives_nan_and_not_a_wrong_picture() -> None:
    model = loaded("offload")
    model.pipeline.transformer.weights = model.pipeline.autoencoder.weights  # nobody fetches the transformer
    latents = model.generate("a", width=32, height=32, steps=1, seed=1, output="latents")
    assert isinstance(latents, Tensor) and latents.isnan().all()


@pytest.mark.parametrize("mode", ["offload", "stream"])
def test_weights_may_rest_narrower_than_they_are_computed_with(tmp_path: Path, mode: str) -> None:
    model = loaded("resident", "bfloat16")
    for module, part in (
        (model.pipeline.transformer, "transformer"), (model.pipeline.autoencoder.vae, "vae"),
        (model.pipeline.language.mllm, "mllm"),
    ):  # fmt: skip
        module.save_pretrained(tmp_path / part)
    shutil.copytree(FOLDER / "processor", tmp_path / "processor")
    narrow = loaded(mode, "float32", tmp_path)
    assert narrow.pipeline.transformer.dtype == torch.float32
    assert same(everything(narrow), everything(loaded("resident", "float32", tmp_path)))


def test_modes_can_be_changed_at_any_time(resident: OmniGen2) -> None:
    wanted = everything(resident)
    model = loaded("resident")
    for mode in (*MODES, *reversed(MODES), "resident"):
        model.pipeline.residency.arrange(mode)
        model.pipeline.forget()
        assert same(everything(model), wanted), mode
    assert gone(model) == 0


def test_pictures_and_text_take_turns_where_their_weights_do(resident: OmniGen2) -> None:
    model = loaded("offload")
    sampling = ReferenceSampling(width=64, height=48, steps=20, seed=3).filled(model.card.defaults_for(0))
    picture = ImageTask("a", (), sampling)
    text = TextTask("what?", (PICTURE,), Decoding(max_tokens=12, temperature=0.0))
    alone = Engine(resident)
    wanted = [alone.submit(task, lambda _: None).future.result(60) for task in (picture, text)]
    alone.close()
    engine = Engine(model)
    tickets = [engine.submit(task, lambda _: None) for task in (picture, text, picture)]
    found = [ticket.future.result(60) for ticket in tickets]
    engine.close()
    assert found[1].text == wanted[1].text
    assert found[0].pictures[0].tobytes() == found[2].pictures[0].tobytes()
    assert found[0].pictures[0].tobytes() == wanted[0].pictures[0].tobytes()


def test_a_failure_within_a_block_leaves_the_model_usable(
    resident: OmniGen2, monkeypatch: pytest.MonkeyPatch
) -> None:
    for ahead in (False, True):
        model = loaded("resident")
        parts = model.pipeline
        parts.residency = Residency(
            parts.transformer, parts.language, parts.autoencoder, CPU, torch.float32, MemoryChoice("stream"),
            ahead=ahead,
        )  # fmt: skip
        block = parts.transformer.layers[0].attn
        with monkeypatch.context() as broken:
            broken.setattr(block, "forward", lambda *_: (_ for _ in ()).throw(MemoryError("no")))
            with pytest.raises(MemoryError):
                model.generate("a", width=32, height=32, steps=2, seed=1)
        assert gone(model) > 50
        assert same(everything(model), everything(resident))


def test_files_that_are_overwritten_while_weights_rest_in_them_are_noticed(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    model = loaded("stream", folder=folder)
    model.generate("a", width=32, height=32, steps=1, seed=1)
    file = next((folder / "transformer").glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-100:] = bytes(100)
    with file.open("r+b") as opened:
        opened.write(data)
    with pytest.raises(OSError, match="overwritten"):
        model.generate("a", width=32, height=32, steps=1, seed=1)


def test_a_file_that_is_cut_short_while_it_is_used_is_noticed_at_the_next_block(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    model = loaded("stream", folder=folder)
    file = next((folder / "transformer").glob("*.safetensors"))
    model.pipeline.transformer.layers[0].register_forward_hook(lambda *_: os.truncate(file, 0))
    with pytest.raises(OSError, match="overwritten"):
        model.generate("a", width=32, height=32, steps=1, seed=1)


def test_files_that_were_only_touched_are_still_the_same(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER, tmp_path / "model")
    model = loaded("stream", folder=folder)
    before = model.generate("a", width=32, height=32, steps=1, seed=1, output="latents")
    os.utime(next((folder / "transformer").glob("*.safetensors")), (1, 1))
    after = model.generate("a", width=32, height=32, steps=1, seed=1, output="latents")
    assert same([after], [before])  # type: ignore


def test_the_quickest_mode_that_fits_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = find(str(FOLDER))
    needed = [needed_bytes(checkpoint, torch.float32, mode) for mode in MODES]
    assert needed == sorted(set(needed), reverse=True)
    picked: list[str] = []
    for free in (*needed, 10):
        monkeypatch.setattr(fit, "free_bytes", lambda _, free=free: free)
        picked.append(choose_memory(checkpoint, torch.float32, CPU, "auto").mode)
    assert picked == [*MODES, "stream"]
    with pytest.raises(ValueError, match="allowed: auto, resident, offload, stream"):
        loaded("disk")


@pytest.mark.parametrize(
    ("owner", "place"),
    [(Denoiser, "step"), (Pipeline, "finish"), (Pipeline, "begin_text"), (Writer, "step")],
)
def test_where_memory_runs_out_less_of_the_model_stays_on_the_device(
    resident: OmniGen2, monkeypatch: pytest.MonkeyPatch, owner: type, place: str
) -> None:
    model = loaded("resident")
    residency = model.pipeline.residency
    whole = getattr(owner, place)

    def short(*given: Any, **more: Any) -> Any:
        if residency.mode == "resident":
            raise torch.OutOfMemoryError("too little")
        return whole(*given, **more)

    monkeypatch.setattr(owner, place, short)
    monkeypatch.setattr(Residency, "can_lower", property(lambda self: self.mode != "stream"))
    sampling = ReferenceSampling(width=64, height=48, steps=3, seed=1).filled(model.card.defaults_for(0))
    text = TextTask("why?", (), Decoding(max_tokens=5, temperature=0.0))
    task = text if owner is Writer or place == "begin_text" else ImageTask("a red circle", (), sampling)
    engine = Engine(model)
    outcome = engine.submit(task, lambda _: None).future.result(60)
    engine.close()
    assert engine.memory_choice().mode == "offload"
    assert engine.memory_choice().reason == "after running out of memory with resident"
    monkeypatch.undo()
    alone = Engine(resident)
    wanted = alone.submit(task, lambda _: None).future.result(60)
    alone.close()
    assert outcome.text == wanted.text
    assert [p.tobytes() for p in outcome.pictures] == [p.tobytes() for p in wanted.pictures]


@pytest.mark.parametrize(("mode", "quantize"), [("resident", "none"), ("stream", "none"), ("offload", "nf4")])
def test_weights_that_left_are_gone_and_come_back_as_they_were(mode: str, quantize: str) -> None:
    model = omnigen2.load(str(FOLDER), device="cpu", dtype="float32", memory=mode, quantize=quantize)
    before, size = everything(model), model.pipeline.memory_bytes()
    model.leave()
    assert model.pipeline.memory_bytes() < size / 1000
    model.come_back(lambda: False)
    assert same(everything(model), before)


def test_a_mode_that_cannot_be_changed_to_leaves_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded("offload")
    before = everything(model)
    with monkeypatch.context() as patch:
        patch.setattr(Slots, "reserve", lambda *_: (_ for _ in ()).throw(MemoryError("no")))
        with pytest.raises(MemoryError):
            model.pipeline.residency.arrange("stream")
    assert model.pipeline.residency.mode == "offload"
    assert same(everything(model), before)
