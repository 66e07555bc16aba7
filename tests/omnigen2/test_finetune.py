"""Fine-tuning: what it leaves can be used, what is known stays, data that cannot be used is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import omnigen2
from omnigen2.nano.world import example, render
from omnigen2.training.config import Finetune, FinetuneConfig, read_config
from omnigen2.training.finetune import FinetuneTask, adapter_config, finetune, read_lines


def examples_folder(folder: Path, known: bool = False) -> Path:
    folder.mkdir()
    lines = []
    for number in range(3):
        one = example("edit", "train", number)
        assert one.target is not None
        Image.fromarray(render(one.inputs[0], 64, 64)).save(folder / f"{number}a.png")
        Image.fromarray(render(one.target, 64, 48)).save(folder / f"{number}b.png")
        paths = {"input_images": [f"{number}a.png"], "output_image": f"{number}b.png"}
        lines.append({"instruction": one.text, "known": known} | paths)
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder


@pytest.mark.parametrize("rank", [2, 0])
def test_fine_tuning_leaves_what_can_be_used(small: Path, tmp_path: Path, rank: int) -> None:
    data = examples_folder(tmp_path / "data")
    (tmp_path / "tune.toml").write_text(
        f'output = "{tmp_path / "out"}"\n[finetune]\nmodel = "{small}"\ndata = "{data}"\n'
        f"steps = 2\nrate = 0.01\nwarmup = 0\nlora_rank = {rank}\n"
        "batch = 2\naccumulate = 2\ncheckpoint_gradients = true\n",
        encoding="utf-8",
    )
    finetune(read_config(tmp_path / "tune.toml", FinetuneConfig))
    asked: dict[str, Any] = {"seed": 1, "steps": 2, "output": "latents"}
    before = omnigen2.load(str(small)).generate("a red circle", **asked)
    if rank:
        after = omnigen2.load(str(small)).generate("a red circle", lora=tmp_path / "out", **asked)
    else:
        after = omnigen2.load(str(tmp_path / "out" / "model")).generate("a red circle", **asked)
    assert not torch.equal(before, after)


def test_of_what_is_known_an_adapter_learns_to_change_nothing(small: Path, tmp_path: Path) -> None:
    data = examples_folder(tmp_path / "data", known=True)
    settings = Finetune(data=data, steps=1, rate=1e-2, warmup=0, batch=3)
    task = FinetuneTask(omnigen2.load(str(small)).pipeline, settings, read_lines(data), 1)
    batch = task.batch(0)
    new = task.module(batch | {"known": [False] * 3})["velocity"]
    task.module.transformer.add_adapter(adapter_config(2))
    assert new > 0.1
    assert task.module(batch)["velocity"] < 1e-10
    some = task.module(batch | {"known": [True, False, True]})
    assert 0 < some["velocity"] < new
    some["velocity"].backward()
    assert any(weight.grad is not None for weight in task.module.parameters())


def test_what_is_known_needs_an_adapter(small: Path, tmp_path: Path) -> None:
    data = examples_folder(tmp_path / "data", known=True)
    settings = Finetune(model=str(small), data=data, steps=1, rate=1e-2, lora_rank=0)
    with pytest.raises(ValueError, match="line 1: known"):
        finetune(FinetuneConfig(output=tmp_path / "out", finetune=settings))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"output_image": "b.png"}', "line 1: instruction"),
        ('{"instruction": "x", "output_image": "b.png", "known": 3}', "line 1: known"),
        ("{", "line 1"),
        ('{"instruction": "x", "output_image": "none.png"}', "none.png cannot be read"),
    ],
)
def test_data_that_cannot_be_used_is_named(small: Path, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "train.jsonl").write_text(line, encoding="utf-8")
    (tmp_path / "tune.toml").write_text(
        f'output = "{tmp_path / "out"}"\n[finetune]\nmodel = "{small}"\n'
        f'data = "{tmp_path}"\nsteps = 1\nrate = 1\n',
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match=said):
        finetune(read_config(tmp_path / "tune.toml", FinetuneConfig))


@pytest.mark.parametrize("rank", [2, 0])
def test_what_was_fine_tuned_has_its_share_of_the_start(small: Path, tmp_path: Path, rank: int) -> None:
    data = examples_folder(tmp_path / "data")

    def trained(share: float) -> dict[str, Tensor]:
        output = tmp_path / str(share)
        settings = Finetune(
            model=str(small), data=data, steps=2, rate=1e-2, warmup=0, lora_rank=rank, start_share=share
        )
        finetune(FinetuneConfig(output=output, finetune=settings))
        folder = output if rank else output / "model" / "transformer"
        return load_file(next(folder.glob("*.safetensors")))

    before = load_file(next((small / "transformer").glob("*.safetensors")))
    alone, mixed = trained(0), trained(0.25)
    for name, own in mixed.items():
        if rank:
            wanted = alone[name] * (0.75 if name.endswith("lora_B.weight") else 1)
        else:
            wanted = torch.lerp(alone[name], before[name].float(), 0.25)
        torch.testing.assert_close(own, wanted)


def test_a_run_may_be_made_shorter_than_it_is(small: Path, tmp_path: Path) -> None:
    data = examples_folder(tmp_path / "data")
    for steps in (2, 1):
        settings = Finetune(model=str(small), data=data, steps=steps, rate=1e-2, batch=1)
        assert finetune(FinetuneConfig(output=tmp_path / "out", finetune=settings))
