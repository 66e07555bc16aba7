"""The trainer: what it makes can be loaded, what was stopped goes on as if it had not been."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Muon

import omnigen2
from omnigen2.checkpoints.card import read_card
from omnigen2.checkpoints.load import load_autoencoder, load_language_model
from omnigen2.checkpoints.locate import resolve
from omnigen2.nano.stages.autoencoder import CONTRAST, HEAVIEST, DecoderTask, to_tensor
from omnigen2.nano.stages.auxiliary_head import SLOTS, symbols
from omnigen2.nano.stages.config import Generation, Stage, StagesConfig
from omnigen2.nano.stages.run import run
from omnigen2.nano.stages.seeing import SeeingTask, embed_patches
from omnigen2.nano.stages.understanding import draw, numbered
from omnigen2.nano.world import COLOURS, Scene, Thing, example, render
from omnigen2.training.config import Schedule, read_config
from omnigen2.training.loop import train
from omnigen2.training.optimizer import Float32Muon, rate_at


class Line(nn.Module):
    """Fits a line."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 1)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"error": (self.layer(batch["x"]) - batch["x"].sum(1, keepdim=True)).square().mean()}


class LineTask:
    """Batches from their number alone; from `stop` on there are none."""

    name = "line"

    def __init__(self, stop: int | None = None) -> None:
        self.module = Line()
        self.stop = stop

    def batch(self, number: int) -> Any:
        if self.stop is not None and number >= self.stop:
            raise RuntimeError("stopped")
        return {
            "x": torch.from_numpy(np.random.default_rng(number).standard_normal((8, 4), dtype=np.float32))
        }


def schedule(**changed: Any) -> Schedule:
    return Schedule.model_validate({"steps": 40, "rate": 0.05, "warmup": 5, "save_every": 10} | changed)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = train(LineTask(), schedule(), tmp_path / "whole", "bf16")
    with pytest.raises(RuntimeError, match="stopped"):
        train(LineTask(stop=29), schedule(), tmp_path / "parts", "bf16")
    (tmp_path / "parts" / "state.new").mkdir()  # killed while it saved
    resumed = train(LineTask(), schedule(), tmp_path / "parts", "bf16")
    assert torch.equal(whole.layer.weight, resumed.layer.weight)  # pyright: ignore
    curves = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "parts")]
    losses = [[(row["step"], row["error"]) for row in map(json.loads, curve)] for curve in curves]
    assert losses[0] == losses[1]
    assert (tmp_path / "whole" / "loss.png").is_file()


def test_the_rate_rises_stays_and_falls() -> None:
    assert rate_at(0, schedule(warmup=10)) == 0.1
    assert rate_at(20, schedule(decay=0.5)) == 1.0
    assert rate_at(30, schedule(decay=0.5)) == 0.5


def test_the_stages_make_a_model_that_loads_draws_and_answers(small: Path) -> None:
    model = omnigen2.load(str(small))
    (picture,) = model.generate("a red circle", seed=1, steps=2)
    assert picture.size == (96, 96)
    assert isinstance(model.describe([picture], "what is in the image?", max_tokens=3), str)
    assert model.generate("a zebra", seed=1, steps=1).notes


def test_stages_go_on_from_a_checkpoint(small: Path, tmp_path: Path) -> None:
    (tmp_path / "further.toml").write_text(
        f'output = "{tmp_path / "run"}"\nstart = "{small}"\n'
        "[seeing]\nsteps = 1\nrate = 1e-3\nsides = [64]\nbatch = { ask = 2, edit = 2 }\n"
        "ema = 0.0\nwarmup = 0\n"
        "[generation]\nsteps = 1\nrate = 1e-3\nsides = [64]\nbatch = { generate = 1, edit = 1 }\n"
        "ema = 0.0\nwarmup = 0\n"
    )
    card = run(read_config(tmp_path / "further.toml", StagesConfig))
    before = read_card(small, "small")
    assert card is not None and (card.title, card.defaults) == (before.title, before.defaults)
    for part, same in (("vae", True), ("mllm", False), ("transformer", False)):
        (weights,) = (small / part).glob("*.safetensors")
        old, new = load_file(weights), load_file(tmp_path / "run" / "model" / part / weights.name)
        assert all(torch.allclose(old[name], new[name], atol=0.01) for name in old)
        assert all(torch.equal(old[name], new[name]) for name in old) == same


def test_what_is_published_has_its_share_of_the_start(small: Path, tmp_path: Path) -> None:
    def trained(share: float) -> dict[str, Tensor]:
        stage = Generation(
            steps=1, rate=1e-2, warmup=0, ema=0, sides=(64,), batch={"generate": 1}, start_share=share
        )
        run(StagesConfig(output=tmp_path / str(share), start=str(small), generation=stage))
        return load_file(next((tmp_path / str(share) / "transformer").glob("*.safetensors")))

    before = load_file(next((small / "transformer").glob("*.safetensors")))
    alone, mixed = trained(0), trained(0.25)
    for name, own in mixed.items():
        torch.testing.assert_close(own, torch.lerp(alone[name], before[name].float(), 0.25))
    assert any((alone[name] != before[name]).any() for name in alone)


@pytest.mark.parametrize(("stage", "start"), [("generation", ""), ("seeing", 'start = "nano"\n')])
def test_only_generation_that_started_somewhere_has_a_share(tmp_path: Path, stage: str, start: str) -> None:
    (tmp_path / "a.toml").write_text(
        f'output = "x"\n{start}[{stage}]\nsteps = 1\nrate = 1\nbatch = {{ ask = 1 }}\nstart_share = 0.5\n',
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match=rf"{stage}\.start_share"):
        read_config(tmp_path / "a.toml", StagesConfig)


def test_the_kinds_of_a_task_go_through_together_but_apart_by_images(small: Path) -> None:
    language = load_language_model(small, torch.float32)
    batch = {"describe": 2, "describe:counted": 2, "ask:which_image": 2, "edit": 1}
    stage = Stage.model_validate({"steps": 1, "rate": 1.0, "batch": batch, "sides": [64]})
    drawn = SeeingTask("seeing", language, stage, 1).batch(0)
    assert {name: len(seen["labels"]) for name, seen in drawn["see"].items()} == {
        "describe": 4,
        "ask_images": 2,
    }
    assert len(drawn["prompts"]["mask"]) == 1


def test_patches_are_embedded_as_the_convolution_does(small: Path) -> None:
    patch_embed = load_language_model(small, torch.float32).mllm.model.visual.patch_embed
    patches = torch.rand(5, patch_embed.proj.weight[0].numel())
    torch.testing.assert_close(embed_patches(patch_embed, patches), patch_embed(patches))


def test_a_changed_weight_is_found_out(small: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(small, changed)
    config = changed / "vae" / "config.json"
    config.write_text(config.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match="digest"):
        omnigen2.load(str(changed))


def test_a_wrong_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('output = "x"\n[generation]\nsteps = 0\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"generation\.steps"):
        read_config(tmp_path / "a.toml", StagesConfig)


def test_steps_in_float32_are_those_of_the_library() -> None:
    for shape in ((24, 64), (64, 24)):
        ours, known = (nn.Parameter(torch.ones(shape)) for _ in range(2))
        options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
        optimizers = Float32Muon([ours], **options), Muon([known], **options)
        for step in range(3):
            gradient = torch.randn(shape, generator=torch.Generator().manual_seed(step))
            for weight, optimizer in zip((ours, known), optimizers, strict=True):
                weight.grad = gradient.clone()
                optimizer.step()
        # The library orthogonalises in bfloat16.
        assert (ours - known).norm() < 0.03 * (known - 1).norm()
        assert optimizers[0].state_dict()["state"][0].keys() == optimizers[1].state_dict()["state"][0].keys()


def test_the_decoder_learns_and_the_encoder_stays(tmp_path: Path) -> None:
    vae = omnigen2.load("nano").pipeline.autoencoder.vae.requires_grad_(True)
    before = {name: weight.clone() for name, weight in vae.named_parameters()}
    stage = Stage(steps=2, rate=1e-3, warmup=0, batch={"scenes": 2}, sides=(64, 96))
    train(DecoderTask(vae, stage, 1), stage, tmp_path, "bf16")
    moved = {name.split(".")[0] for name, weight in vae.named_parameters() if (weight != before[name]).any()}
    assert moved == {"decoder"}


def test_faint_things_weigh_more() -> None:
    vae = omnigen2.load("nano").pipeline.autoencoder.vae
    batch = DecoderTask(vae, Stage(steps=1, rate=1e-3, batch={"scenes": 40}), 1).batch(0)
    pixels, weight = (batch["pixels"] + 1) * 127.5, batch["weight"]
    # How far pixels are from the background, which the corners show nearly always.
    contrast = (pixels - pixels[:, :, :1, :1]).square().sum(1).sqrt()
    assert weight.min() == 1 and 2 < weight.max() <= HEAVIEST
    assert contrast[weight > 2].max() < CONTRAST
    assert (
        contrast[(weight == 1) & (contrast > 20)].median() > contrast[(weight > 2) & (contrast > 20)].median()
    )


def test_an_autoencoder_that_goes_on_keeps_its_latents(tmp_path: Path) -> None:
    config = tmp_path / "further.toml"
    config.write_text(
        f'output = "{tmp_path}/run"\nstart = "nano"\n'
        "[autoencoder]\nsteps = 10\nrate = 1e-4\nwarmup = 0\nbatch = { scenes = 2 }\n",
        encoding="utf-8",
    )
    assert run(read_config(config, StagesConfig)) is not None
    parts = [load_autoencoder(folder, torch.float32, 2).vae for folder in (resolve("nano"), tmp_path / "run")]
    pixels = to_tensor(render(Scene("white", (Thing("star", "red", "large", 0.5, 0.5),)))[None])
    with torch.inference_mode():
        before, after = (part.encode(pixels).latent_dist.mode() for part in parts)
    assert 0 < (after - before).square().mean() < 1e-3
    metrics = json.loads((tmp_path / "run" / "autoencoder" / "metrics.jsonl").read_text())
    assert "distillation" in metrics


def test_a_scene_is_drawn_in_colours_of_ones_own() -> None:
    scene = Scene("white", (Thing("circle", "red", "large", 0.5, 0.5),))
    drawn = render(scene, colours=COLOURS | {"red": (255, 120, 180)})
    assert drawn[48, 48].tolist() == [255, 120, 180]
    assert (drawn[0] == render(scene)[0]).all()


def test_a_batch_may_ask_for_one_kind_of_a_task() -> None:
    stage = Stage(steps=1, rate=1e-3, batch={"ask:where": 3, "generate": 2})
    drawn = [draw(stage, number) for number in range(3)]
    assert {one.kind for batch in drawn for one in batch["ask:where"]} == {"where"}
    assert [len(batch["generate"]) for batch in drawn] == [2, 2, 2]
    texts = [(one.text, one.inputs) for batch in drawn for one in batch["ask:where"]]
    assert len(set(texts)) == 9
    assert draw(stage, 1) == drawn[1]
    assert draw(stage, numbered(1, 1)) == drawn[1] != draw(stage, numbered(2, 1))


def test_symbols_hold_every_target() -> None:
    drawn = [example("compose", "train", number) for number in range(8)]
    made = symbols(drawn)
    assert made["slots"].shape[:2] == (8, SLOTS)
    for own, one in zip(made["slots"], drawn, strict=True):
        assert one.target is not None
        assert int((own[:, 1] >= 0).sum()) == len(one.target.things)
