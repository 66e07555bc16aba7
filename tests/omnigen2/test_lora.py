"""Adapters at work: what they add, in which rows, alone and in company; and which of them stay loaded."""

import gc
import os
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import omnigen2
from omnigen2.adapters import file as adapter
from omnigen2.adapters import loaded
from omnigen2.adapters.file import Adapter, WeightedAdapter
from omnigen2.adapters.loaded import linear_layers
from omnigen2.denoise import Denoiser, Sample
from omnigen2.engine.engine import Engine
from omnigen2.model import OmniGen2
from omnigen2.task import ImageTask
from tests.omnigen2.golden import PIPELINE, error, model
from tests.omnigen2.test_engine import Gate, task
from tests.omnigen2.test_model import picture

QUICK = {"steps": 2, "width": 32, "height": 32, "seed": 7, "output": "latents"}
LAYER = "layers.0.attn.to_q"


@pytest.fixture
def omnigen() -> OmniGen2:
    return model(PIPELINE / "checkpoint")


def adapter_file(path: Path, seed: int) -> Path:
    """An adapter of one layer."""
    generator = torch.Generator().manual_seed(seed)
    down, up = torch.randn((4, 96), generator=generator), torch.randn((96, 4), generator=generator)
    save_file({f"{LAYER}.lora_A.weight": down, f"{LAYER}.lora_B.weight": up}, path)
    return path


def everywhere(omnigen: OmniGen2, path: Path, seed: int) -> dict[str, Tensor]:
    """Write an adapter of every linear layer; what it adds to their weights."""
    generator = torch.Generator().manual_seed(seed)
    stored, added = {}, {}
    for layer, (out, into) in linear_layers(omnigen.pipeline.transformer).items():
        down = torch.randn((2, into), generator=generator)
        up = 0.2 * torch.randn((out, 2), generator=generator) / into**0.5
        stored |= {f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}
        added[layer] = up @ down
    save_file(stored, path)
    return added


class Merged:
    """The model with the adapters' products added to its weights, for as long as the block runs."""

    def __init__(self, omnigen: OmniGen2, *added: tuple[dict[str, Tensor], float]):
        self.transformer, self.added = omnigen.pipeline.transformer, added
        self.kept: dict[str, Tensor] = {}

    def __enter__(self) -> None:
        for changes, weight in self.added:
            for layer, change in changes.items():
                own = self.transformer.get_submodule(layer).weight
                self.kept.setdefault(layer, own.data)
                own.data = own.data + weight * change  # type: ignore[operator]

    def __exit__(self, *_: object) -> None:
        for layer, weight in self.kept.items():
            self.transformer.get_submodule(layer).weight.data = weight  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[WeightedAdapter, dict[str, Tensor]]]:
    """Four adapters of every layer."""
    folder, omnigen = tmp_path_factory.mktemp("four"), model(PIPELINE / "checkpoint")
    made = []
    for seed in range(4):
        added = everywhere(omnigen, folder / f"{seed}.safetensors", seed)
        made.append((WeightedAdapter(Adapter.of(folder / f"{seed}.safetensors")), added))
    return made


Four = list[tuple[WeightedAdapter, dict[str, Tensor]]]


def tasks(omnigen: OmniGen2, four: Four) -> list[ImageTask]:
    """Twenty tasks of all three kinds, with four adapters and none."""
    kinds = [
        task(omnigen, "a red circle"),
        task(omnigen, "make it green", (picture(32, 48),), width=None, height=None),
        task(omnigen, "both", (picture(48, 32), picture(16, 64)), width=64, cfg_range=(0.3, 0.8)),
        task(omnigen, "a star", num_images=2, scheduler="dpmsolver++", text_guidance_scale=1.0),
    ]
    uses = [(), *((own,) for own, _ in four)]
    return [replace(kind, adapters=use) for use in uses for kind in kinds]


def denoised(omnigen: OmniGen2, samples: list[Sample]) -> list[Tensor]:
    """The last latents of samples that share every forward."""
    denoiser = Denoiser(omnigen.pipeline.transformer, together=True)
    denoiser.add(samples)
    while denoiser.samples:
        denoiser.step()
    return [sample.tokens for sample in samples]


def test_twenty_tasks_in_one_forward_give_what_merged_weights_give_alone(
    omnigen: OmniGen2, four: Four
) -> None:
    pipeline, asked = omnigen.pipeline, tasks(omnigen, four)
    together = denoised(omnigen, [own for each in asked for own in pipeline.prepare(each)[0]])
    alone: list[Tensor] = []
    for each in asked:
        added = [(change, 1.0) for own, change in four if own in each.adapters]
        with Merged(omnigen, *added):
            bare = pipeline.prepare(replace(each, adapters=()))[0]
            alone += denoised(omnigen, bare)
    assert len(alone) == len(together) == 25
    assert max(error(ours, own) for ours, own in zip(together, alone, strict=True)) < 1e-5
    changed = [error(together[n], together[n % 5]) for n in range(5, 25)]
    assert min(changed) > 1e-3, "each adapter changes each picture"


def test_a_bare_picture_in_their_company_is_bit_for_bit_as_without_adapters(
    omnigen: OmniGen2, four: Four
) -> None:
    pipeline = omnigen.pipeline
    bare, other = task(omnigen, "a red circle"), task(omnigen, "a star")
    (with_adapter,) = tasks(omnigen, four)[16:17]
    found = denoised(
        omnigen,
        [*pipeline.prepare(bare)[0], *pipeline.prepare(replace(other, adapters=with_adapter.adapters))[0]],
    )
    wanted = denoised(omnigen, [*pipeline.prepare(bare)[0], *pipeline.prepare(other)[0]])
    assert torch.equal(found[0], wanted[0]) and not torch.equal(found[1], wanted[1])


def test_several_adapters_of_a_picture_add_up_with_their_weights(omnigen: OmniGen2, four: Four) -> None:
    (one, first), (two, second), *_ = four
    named = [{"name": one.adapter.path, "weight": 0.5}, {"name": two.adapter.path, "weight": -1.25}]
    made = omnigen.generate("a circle", lora=named, **QUICK)
    with Merged(omnigen, (first, 0.5), (second, -1.25)):
        assert error(made, omnigen.generate("a circle", **QUICK)) < 1e-5
    texts = [f"{one.adapter.path}:0.5", f"{two.adapter.path}:-1.25"]
    assert torch.equal(omnigen.generate("a circle", lora=texts, **QUICK), made)
    bare = omnigen.generate("a circle", **QUICK)
    assert torch.equal(omnigen.generate("a circle", lora=f"{one.adapter.path}:0", **QUICK), bare)
    assert error(made, bare) > 1e-3


@pytest.fixture
def engine(omnigen: OmniGen2) -> Iterator[Engine]:
    engine = Engine(omnigen)
    yield engine
    engine.close()


def test_tasks_with_other_adapters_do_not_wait_for_each_other(
    omnigen: OmniGen2, engine: Engine, four: Four
) -> None:
    gate = Gate(step=1)
    first = engine.submit(task(omnigen, "a first one", steps=20), gate)
    assert gate.reached.wait(30)
    asked = tasks(omnigen, four)
    assert all(engine.has_room(each) for each in asked[::4])
    tickets = [engine.submit(each) for each in asked]
    gate.open.set()
    wait([ticket.future for ticket in tickets], timeout=120)
    together = [image.tobytes() for ticket in tickets for image in ticket.future.result(0).pictures]
    assert not first.future.done(), "they ran beside the first one"
    first.cancel()
    alone = [image.tobytes() for each in asked for image in engine.submit(each).future.result(60).pictures]
    assert together == alone


@pytest.mark.parametrize("mode", ["offload", "stream"])
def test_two_adapters_give_the_same_in_every_memory_mode(omnigen: OmniGen2, four: Four, mode: str) -> None:
    named: Any = [four[0][0].adapter.path, {"name": four[1][0].adapter.path, "weight": 0.5}]
    other = omnigen2.load(str(PIPELINE / "checkpoint"), device="cpu", dtype="float32", memory=mode)
    asked: Any = {"images": [picture(32, 48)], "lora": named, **QUICK}
    assert torch.equal(other.generate("a circle", **asked), omnigen.generate("a circle", **asked))


def test_nothing_stays_on_the_model(omnigen: OmniGen2, four: Four) -> None:
    transformer = omnigen.pipeline.transformer
    before = omnigen.generate("a circle", **QUICK)
    named = set(transformer.state_dict())
    omnigen.generate("a circle", lora=four[0][0].adapter.path, **QUICK)
    assert set(transformer.state_dict()) == named
    assert not any(layer._forward_hooks for layer in transformer.modules())
    assert torch.equal(omnigen.generate("a circle", **QUICK), before)


def test_a_file_written_anew_is_read_anew(omnigen: OmniGen2, tmp_path: Path) -> None:
    file = adapter_file(tmp_path / "style.safetensors", 1)
    before = omnigen.generate("a circle", lora=file, **QUICK)
    was = file.stat()
    adapter_file(file, 2)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))  # as a copy that keeps times; the size is equal
    after = omnigen.generate("a circle", lora=file, **QUICK)
    assert error(after, before) > 1e-3
    other = adapter_file(tmp_path / "other.safetensors", 2)
    assert torch.equal(omnigen.generate("a circle", lora=other, **QUICK), after)


def test_names_that_differ_by_punctuation_are_two_adapters(omnigen: OmniGen2, tmp_path: Path) -> None:
    made = [
        omnigen.generate("a circle", lora=adapter_file(tmp_path / f"{name}.safetensors", seed), **QUICK)
        for seed, name in enumerate(("style_v1.0", "style_v1_0", "style-v1.0"))
    ]
    assert all(error(made[i], made[j]) > 1e-3 for i, j in ((0, 1), (0, 2), (1, 2)))


def test_equal_files_are_one_adapter_and_only_those_used_last_stay_loaded(
    omnigen: OmniGen2, tmp_path: Path
) -> None:
    first = adapter_file(tmp_path / "0.safetensors", 0)
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(first.read_bytes())
    assert Adapter.of(first) == Adapter.of(copy) and len({Adapter.of(first), Adapter.of(copy)}) == 1
    made = omnigen.generate("a circle", lora=first, **QUICK)
    adapters = omnigen.pipeline.adapters
    (held,) = adapters.get([WeightedAdapter(Adapter.of(first))])
    for seed in range(1, 2 * loaded.KEPT):
        omnigen.generate("a circle", lora=adapter_file(tmp_path / f"{seed}.safetensors", seed), **QUICK)
    assert Adapter.of(first).digest in adapters.digests(), "a picture in the making uses it"
    assert adapters.get([WeightedAdapter(Adapter.of(copy))])[0][0] is held[0], "loaded once"
    del held
    for seed in range(1, 2 * loaded.KEPT):
        adapters.get([WeightedAdapter(Adapter.of(tmp_path / f"{seed}.safetensors"))])
    gc.collect()
    assert len(adapters.digests()) == loaded.KEPT and Adapter.of(first).digest not in adapters.digests()
    assert torch.equal(omnigen.generate("a circle", lora=first, **QUICK), made)
    adapters.forget()
    gc.collect()
    assert not adapters.digests()


def test_a_file_that_changes_between_asking_and_loading_is_refused(omnigen: OmniGen2, tmp_path: Path) -> None:
    asked = Adapter.of(adapter_file(tmp_path / "style.safetensors", 1))
    adapter_file(asked.path, 2)
    with pytest.raises(ValueError, match="changed after it was asked for"):
        omnigen.pipeline.adapters.get([WeightedAdapter(asked)])
    asked.path.unlink()
    with pytest.raises(FileNotFoundError, match=r"lora: style\.safetensors cannot be read"):
        omnigen.pipeline.adapters.get([WeightedAdapter(asked)])


def test_a_digest_pins_the_file(omnigen: OmniGen2, tmp_path: Path) -> None:
    file = adapter_file(tmp_path / "style.safetensors", 1)
    digest = Adapter.of(file).digest
    made = omnigen.generate("a circle", lora=f"{file}@sha256:{digest}", **QUICK)
    assert torch.equal(omnigen.generate("a circle", lora={"name": file, "digest": digest}, **QUICK), made)
    adapter_file(file, 2)
    with pytest.raises(ValueError, match=r"style\.safetensors is not the file with the SHA-256"):
        omnigen.generate("a circle", lora=f"{file}@sha256:{digest}", **QUICK)


def test_pipes_folders_and_giants_are_no_adapters(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ValueError, match="not a regular file"):
        Adapter.of(tmp_path)
    (tmp_path / "pipe.safetensors").unlink()
    with pytest.raises(ValueError, match="holds 0 safetensors files"):
        Adapter.of(tmp_path)
    for name in ("a", "b"):
        adapter_file(tmp_path / f"{name}.safetensors", 1)
    with pytest.raises(ValueError, match="holds 2 safetensors files"):
        Adapter.of(tmp_path)
    with (tmp_path / "giant.safetensors").open("wb") as file:
        file.truncate(adapter.MAX_BYTES + 1)
    with pytest.raises(ValueError, match="at most"):
        Adapter.of(tmp_path / "giant.safetensors")
