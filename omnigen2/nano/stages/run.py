"""The runner of the stages that make nano, in order.

Every stage loads the parts it needs from the output folder and saves its own there: `vae`, `mllm` with
`processor`, and `transformer`. A part that exists already is trained further; `start` copies those of a
checkpoint. Once all parts exist, the finished model is written to `model`.
"""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from omnigen2.checkpoints.card import ModelCard, read_card
from omnigen2.checkpoints.load import load_autoencoder, load_language_model
from omnigen2.checkpoints.locate import resolve
from omnigen2.nano.stages.architecture import new_autoencoder, new_language_model, new_transformer
from omnigen2.nano.stages.autoencoder import AutoencoderTask, DecoderTask
from omnigen2.nano.stages.config import STAGES, Stage, StageName, StagesConfig
from omnigen2.nano.stages.generation import GenerationTask
from omnigen2.nano.stages.publish import missing_parts, publish
from omnigen2.nano.stages.seeing import SeeingTask
from omnigen2.nano.stages.tokens import make_tokenizer, vocabulary
from omnigen2.nano.stages.understanding import UnderstandingTask
from omnigen2.nano.world.words import CANNOT_TELL
from omnigen2.network.transformer import OmniGen2Transformer2DModel
from omnigen2.training.loop import train
from omnigen2.training.publish import mix_in


def run(config: StagesConfig, only: StageName | None = None) -> ModelCard | None:
    """Train the configured stages, or `only` one of them; the card of the model if it is complete.

    An interrupted stage resumes from its last checkpoint; a finished one is not trained again.

    Raises:
        ValueError: a stage needs a part that does not exist, or is not configured.
    """
    if config.start:
        _copy_parts(config.start, config.output)
    stages: list[StageName] = [only] if only else [name for name in STAGES if getattr(config, name)]
    for name in stages:
        if getattr(config, name) is None:
            raise ValueError(
                f"{name}: the configuration has no such table; it has {', '.join(_present(config))}"
            )
        _RUNNERS[name](config)
    if missing_parts(config.output):
        return None
    return publish(config.output, config.output / "model", _card(config))


def _copy_parts(start: str, output: Path) -> None:
    """Copy the parts of a checkpoint that the output folder does not have yet."""
    folder = resolve(start)
    for part in missing_parts(output):
        temporary = output / f"{part}.new"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(folder / part, temporary)
        temporary.rename(output / part)


def _card(config: StagesConfig) -> Mapping[str, Any]:
    """The card to publish: the configuration's, or else that of the `start` checkpoint."""
    if config.card or not config.start:
        return config.card
    card = read_card(resolve(config.start), config.start)
    return card.model_dump(mode="json", exclude={"id", "digest", "vocabulary"}, exclude_none=True)


def _present(config: StagesConfig) -> list[str]:
    return [name for name in STAGES if getattr(config, name)] or ["none"]


def _autoencoder(config: StagesConfig) -> None:
    assert config.autoencoder is not None
    if trained := (config.output / "vae").is_dir():
        vae = load_autoencoder(config.output, torch.float32, 1).vae
    else:
        vae = new_autoencoder(config.model["vae"], config.seed)
    task = AutoencoderTask(vae, config.autoencoder, config.seed, trained)
    train(task, config.autoencoder, config.output / task.name, config.precision)
    task.even_out()
    task.module.vae.save_pretrained(config.output / "vae")


def _decoder(config: StagesConfig) -> None:
    assert config.decoder is not None
    vae = load_autoencoder(_with(config.output, "vae"), torch.float32, 1).vae
    task = DecoderTask(vae, config.decoder, config.seed)
    train(task, config.decoder, config.output / task.name, config.precision)
    vae.save_pretrained(config.output / "vae")


def _understanding(config: StagesConfig) -> None:
    assert config.understanding is not None
    if (config.output / "mllm").is_dir():
        language = load_language_model(config.output, torch.float32)
    else:
        side = config.understanding.sides[0]
        tokenizer = make_tokenizer(vocabulary(), [CANNOT_TELL])
        language = new_language_model(config.model["mllm"], tokenizer, side * side, config.seed)
    task = UnderstandingTask(language, config.understanding, config.seed)
    train(task, config.understanding, config.output / task.name, config.precision)
    language.mllm.save_pretrained(config.output / "mllm")
    language.tokenizer.save_pretrained(config.output / "processor")
    language.image_processor.save_pretrained(config.output / "processor")


def _looking(config: StagesConfig) -> None:
    assert config.looking is not None
    _see(config, "looking", config.looking)


def _seeing(config: StagesConfig) -> None:
    assert config.seeing is not None
    _see(config, "seeing", config.seeing)


def _see(config: StagesConfig, name: StageName, stage: Stage) -> None:
    language = load_language_model(_with(config.output, "mllm"), torch.float32)
    torch.manual_seed(config.seed)
    task = SeeingTask(name, language, stage, config.seed)
    train(task, stage, config.output / name, config.precision)
    language.mllm.save_pretrained(config.output / "mllm")


def _generation(config: StagesConfig) -> None:
    assert config.generation is not None
    if (config.output / "transformer").is_dir():
        transformer = OmniGen2Transformer2DModel.from_pretrained(config.output / "transformer").float()
    else:
        transformer = new_transformer(config.model["transformer"], config.seed)
    patch = transformer.config["patch_size"]
    autoencoder = load_autoencoder(_with(config.output, "vae"), torch.float32, patch)
    language = load_language_model(_with(config.output, "mllm"), torch.float32)
    folder = config.output / GenerationTask.name
    task = GenerationTask(transformer, autoencoder, language, config.generation, config.seed, folder)
    train(task, config.generation, folder, config.precision)
    if config.start and config.generation.start_share:
        mix_in(config.start, transformer, config.generation.start_share)
    transformer.save_pretrained(config.output / "transformer")


_RUNNERS: dict[StageName, Callable[[StagesConfig], None]] = {
    "autoencoder": _autoencoder,
    "decoder": _decoder,
    "understanding": _understanding,
    "looking": _looking,
    "seeing": _seeing,
    "generation": _generation,
}


def _with(folder: Path, part: str) -> Path:
    """The output folder, checked to contain that part."""
    if not (folder / part).is_dir():
        raise ValueError(f"{folder} has no {part} yet: train the stage that makes it first")
    return folder
