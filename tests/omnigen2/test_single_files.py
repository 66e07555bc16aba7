"""Models from single files, as ComfyUI uses them: what is recognised, and what comes out."""

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import omnigen2
from benchmarks.shapes import parameters, parts
from omnigen2.checkpoints import convert, locate
from omnigen2.checkpoints.published import CONFIGS, REPOSITORY
from omnigen2.manager import Manager
from server.cli.models import app
from tests.omnigen2.golden import KEPT
from tests.omnigen2.hub_server import Hub, serve, use_endpoint

CHECKPOINT = KEPT / "pipeline" / "checkpoint"
WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "mllm": "model.safetensors",
}
FILES = {
    "transformer": "diffusion_models/omnigen2_fp16.safetensors",
    "mllm": "text_encoders/qwen_2.5_vl_fp16.safetensors",
    "vae": "vae/ae.safetensors",
}
Weights = dict[str, Tensor]


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """The golden checkpoint in the published layout, with its weights rounded to float16."""
    shutil.copytree(CHECKPOINT, tmp_path / "half")
    for part, name in WEIGHTS.items():
        file = tmp_path / "half" / part / name
        save_file({key: value.half() for key, value in load_file(file).items()}, file, {"format": "pt"})
    return tmp_path / "half"


@pytest.fixture
def comfy(tmp_path: Path, half: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same weights in ComfyUI's folders, files and names; processor and small configs lie beside."""
    monkeypatch.setenv("OMNIGEN2_MODELS", str(tmp_path / "models"))
    folder = tmp_path / "ComfyUI" / "models"
    for part, name in FILES.items():
        weights = load_file(half / part / WEIGHTS[part])
        write(folder / name, {ldm_name(key): v for key, v in weights.items()} if part == "vae" else weights)
        (folder / part).mkdir(exist_ok=True)
        shutil.copy(half / part / "config.json", folder / part)
    file = folder / FILES["vae"]  # attention of the original is made of 1 x 1 convolutions
    squares = re.compile(r"attn_1\.(q|k|v|proj_out)\.weight")
    write(file, {k: v[:, :, None, None] if squares.search(k) else v for k, v in load_file(file).items()})
    shutil.copytree(half / "processor", folder / "processor")
    return folder


def write(file: Path, weights: Weights) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in weights.items()}, file)


def ldm_name(name: str) -> str:
    """The original name of a weight of the autoencoder."""
    for ours, theirs in (
        (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        ("conv_shortcut", "nin_shortcut"),
        ("conv_norm_out", "norm_out"),
    ):
        name = re.sub(ours, theirs, name)
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)


def picture(folder: Path) -> np.ndarray:
    model = omnigen2.load(str(folder), device="cpu")
    options = {"width": 64, "height": 64, "steps": 2, "seed": 1}
    return np.asarray(model.generate("a red circle", **options)[0])  # pyright: ignore


def change(file: Path, to: Callable[[Weights], Weights]) -> None:
    write(file, to(load_file(file)))


def test_the_picture_is_that_of_the_published_layout(
    comfy: Path, half: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "SHARD_BYTES", 100_000)  # several shards
    change(comfy / FILES["transformer"], lambda own: {f"model.{key}": value for key, value in own.items()})
    made = convert.convert([comfy], tmp_path / "made")
    assert made.taken["vae"] == comfy / "vae" / "ae.safetensors"
    assert made.taken["vae/config.json"] == comfy / "vae" / "config.json"
    assert len(list((tmp_path / "made" / "transformer").glob("*.safetensors"))) > 1
    assert (tmp_path / "made" / "mllm" / WEIGHTS["mllm"]).samefile(
        comfy / FILES["mllm"]
    )  # as it is published
    np.testing.assert_array_equal(picture(tmp_path / "made"), picture(half))


@pytest.mark.parametrize("prefix", ["model.", "model.diffusion_model."])
def test_prefixes_and_new_names_are_read(comfy: Path, half: Path, tmp_path: Path, prefix: str) -> None:
    def renamed(own: Weights) -> Weights:
        new = {
            re.sub("^visual", "model.visual", re.sub("^model", "model.language_model", key)): value
            for key, value in own.items()
        }
        return new | {"lm_head.weight": own["model.embed_tokens.weight"].clone()}

    change(comfy / FILES["transformer"], lambda own: {prefix + key: value for key, value in own.items()})
    change(comfy / FILES["mllm"], renamed)
    convert.convert([comfy / FILES["transformer"]], tmp_path / "made")  # the others are found
    for part, name in WEIGHTS.items():
        made, wanted = load_file(tmp_path / "made" / part / name), load_file(half / part / name)
        assert made.keys() == wanted.keys()
        assert all(torch.equal(made[key], wanted[key]) for key in wanted), part


def test_parts_in_one_file_are_read(comfy: Path, half: Path, tmp_path: Path) -> None:
    """A checkpoint as ComfyUI saves it, with everything in one file."""
    prefixes = {"transformer": "model.diffusion_model.", "vae": "vae."}
    prefixes["mllm"] = "text_encoders.qwen25_3b.transformer."
    whole: Weights = {}
    for part, prefix in prefixes.items():
        whole |= {prefix + key: value for key, value in load_file(comfy / FILES[part]).items()}
        (comfy / FILES[part]).unlink()
    write(comfy / "checkpoints" / "all.safetensors", whole)
    convert.convert([comfy / "checkpoints" / "all.safetensors"], tmp_path / "made")
    for part, name in WEIGHTS.items():
        made, wanted = load_file(tmp_path / "made" / part / name), load_file(half / part / name)
        assert all(torch.equal(made[key], wanted[key]) for key in wanted), part


def test_eight_bit_floats_are_multiplied_by_their_scales(comfy: Path, tmp_path: Path) -> None:
    layer = "layers.0.attn.to_q"

    def scaled(own: Weights) -> Weights:
        small = (own[f"{layer}.weight"].float() / 0.5).to(torch.float8_e4m3fn)
        extra = {f"{layer}.scale_weight": torch.tensor(0.5), "scaled_fp8": torch.zeros(2)}
        return own | extra | {f"{layer}.weight": small}

    change(comfy / FILES["transformer"], scaled)
    small = load_file(comfy / FILES["transformer"])[f"{layer}.weight"]
    convert.convert([comfy], tmp_path / "made")
    made = load_file(tmp_path / "made" / "transformer" / WEIGHTS["transformer"])[f"{layer}.weight"]
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, (small.float() * 0.5).bfloat16())
    change(comfy / FILES["transformer"], lambda own: own | {f"{layer}.scale_weight": torch.ones(3, 3)})
    with pytest.raises(FileNotFoundError, match=r"to_q\.scale_weight has 9 scales, neither one nor"):
        convert.convert([comfy], tmp_path / "blocks")


def test_what_a_file_is_not_is_said(comfy: Path, tmp_path: Path) -> None:
    flux = tmp_path / "flux.safetensors"
    write(flux, {"double_blocks.0.img_attn.qkv.weight": torch.zeros(1)})
    with pytest.raises(
        ValueError, match=r"is a FLUX model; it holds no part of OmniGen2.*time_caption_embed"
    ):
        convert.convert([flux, comfy], tmp_path / "made")
    with pytest.raises(ValueError, match="FLUX"):
        locate.resolve(str(flux))
    data = (comfy / FILES["vae"]).read_bytes()
    (comfy / FILES["vae"]).write_bytes(data[: len(data) // 2])
    with pytest.raises(FileNotFoundError, match=r"no file for vae .*ae\.safetensors is damaged"):
        convert.convert([comfy], tmp_path / "made")
    (comfy / FILES["vae"]).write_bytes(b"\xff" * 8 + data)
    with pytest.raises(ValueError, match="is damaged"):
        convert.convert([comfy / FILES["vae"]], tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_what_does_not_fit_or_is_missing_is_said(comfy: Path, tmp_path: Path) -> None:
    shutil.copy(comfy / FILES["transformer"], comfy / "diffusion_models" / "other.safetensors")
    with pytest.raises(ValueError, match=r"several files fit as transformer: .*omnigen2_fp16.*other"):
        convert.convert([comfy], tmp_path / "made")
    given = [comfy / "diffusion_models" / "other.safetensors", comfy]
    assert convert.convert(given, tmp_path / "other").taken["transformer"] == given[0]
    given[0].unlink()
    shutil.move(comfy / "processor", tmp_path / "processor")
    with (
        patch.dict("os.environ", HF_HUB_OFFLINE="1"),
        patch("huggingface_hub.constants.HF_HUB_OFFLINE", True),
        pytest.raises(FileNotFoundError, match=r"no processor/ .*hf download OmniGen2/OmniGen2 --include"),
    ):
        convert.convert([comfy], tmp_path / "made")
    (comfy / "transformer" / "config.json").unlink()  # now it would have to be of the published size
    with pytest.raises(FileNotFoundError, match=r"does not fit as transformer: missing .*layers"):
        convert.convert([comfy], tmp_path / "made")


def test_files_are_imported_when_they_are_loaded_and_again_when_they_change(comfy: Path, half: Path) -> None:
    for source in (comfy, comfy / FILES["transformer"]):
        manager = Manager(str(source), device="cpu")
        assert manager.card().title == "OmniGen2"
        assert manager.identify() is None
        first = manager.acquire().result().card.digest
        assert manager.identify() == manager.acquire().result().card
        folder = locate.resolve(str(source))
        assert (folder / "transformer" / WEIGHTS["transformer"]).samefile(comfy / FILES["transformer"])
        before = (comfy / FILES["vae"]).read_bytes()
        change(comfy / FILES["vae"], lambda own: {key: value + 0.5 for key, value in own.items()})
        assert manager.identify() is None
        assert manager.acquire().result().card.digest != first
        manager.close()
        (comfy / FILES["vae"]).write_bytes(before)
        np.testing.assert_array_equal(picture(source), picture(half))
        assert [left.name for left in folder.parent.glob(".*.partial")] == []


@pytest.mark.parametrize("changed", [FILES["transformer"], FILES["mllm"], "transformer/config.json"])
def test_a_file_with_its_old_size_and_time_is_seen_to_be_another(comfy: Path, changed: str) -> None:
    """The transformer is converted, the text encoder is linked, and so is what took its name since."""
    change(comfy / FILES["transformer"], lambda own: {f"model.{key}": value for key, value in own.items()})
    convert.import_once(str(comfy))
    assert not locate.awaits_import(str(comfy))
    file = comfy / changed
    before, data = file.stat(), file.read_bytes()
    file.unlink()
    file.write_bytes(data[:-2] + data[-1:] + data[-2:-1])
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert locate.awaits_import(str(comfy))


def test_a_missing_processor_comes_from_the_hub(
    comfy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {f"processor/{own.name}": own.read_bytes() for own in (comfy / "processor").iterdir()}
    files |= {f"{part}/{name}": b"large" for part, name in WEIGHTS.items()}
    shutil.rmtree(comfy / "processor")
    hub = Hub(REPOSITORY, files)
    with serve(hub) as endpoint:
        use_endpoint(monkeypatch, endpoint)
        for name in ("one", "two"):
            made = convert.convert([comfy], tmp_path / name)
    asked = [name for name, _ in hub.requests]
    assert sorted(asked) == sorted(name for name in files if name.startswith("processor/"))  # once
    assert (tmp_path / "two" / "processor" / "preprocessor_config.json").is_file()
    assert made.taken["processor"].is_relative_to(locate.models_folder())


def test_a_command_makes_a_named_model(comfy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    app(["import", str(comfy), "--json"], result_action="return_value", exit_on_error=False)
    said = json.loads(capsys.readouterr().out)
    assert said["model"] == "imported/omnigen2_fp16" in locate.names()
    assert said["taken"]["mllm"].endswith("qwen_2.5_vl_fp16.safetensors")
    assert picture(locate.resolve(said["model"])).shape == (64, 64, 3)
    with pytest.raises(FileExistsError, match="is there already"):
        app(["import", str(comfy)], result_action="return_value", exit_on_error=False)


def test_the_configurations_are_those_of_the_published_model() -> None:
    sizes = {
        part: sum(math.prod(shape) for shape in convert.wanted_shapes(part, config).values())
        for part, config in CONFIGS.items()
    }
    assert sizes == {part: parameters(module) for part, module in parts().items()}
