"""The last stage: the transformer learns to generate, edit and compose pictures.

The loss is `omnigen2.training.objective.VelocityLoss`, with spatial weights (`loss_weights`) and times drawn
nearer to the noise than the reference's. All three tasks are trained together from the first step: training
on text to image alone destroys the others within minutes. Prompts and references are dropped at random, as
classifier-free guidance requires. The frozen networks of the earlier stages encode pictures and prompts in
the loop's workers.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnigen2.nano.stages.autoencoder import draw_size, to_tensor
from omnigen2.nano.stages.config import Stage
from omnigen2.nano.stages.loss_weights import loss_weights
from omnigen2.nano.stages.understanding import draw, examples_of, numbered, worded
from omnigen2.nano.world import Example, Scene, render
from omnigen2.network.autoencoder import Autoencoder
from omnigen2.network.language import LanguageModel, generation_chat
from omnigen2.network.transformer import OmniGen2Transformer2DModel
from omnigen2.training.objective import VelocityLoss, draw_normal

DROPPED_PROMPT = 0.1
DROPPED_REFERENCES = 0.5
"""Probability that the references are dropped too, given that the prompt is."""
FEATURE_NOISE = 0.1
"""Standard deviation of the noise added to text features, in units of their root mean square; it prevents
memorising prompts."""
ROOM = 3
"""Batches of smaller pictures have up to this many times the examples, so batches are numbered this far
apart."""
ENCODED_TOGETHER = 8
"""Pictures per call of the encoder, which fit into a CPU's cache; all at once take twice as long."""
UNIFORM_TIMES = 0.25
"""Share of times that are uniform; the others are logit-normal near the noise, where the prompt decides the
content."""


class GenerationTask:
    """Batches of encoded prompts, edits and compositions of ShapeWorld, and the loss."""

    name = "generation"

    def __init__(
        self,
        transformer: OmniGen2Transformer2DModel,
        autoencoder: Autoencoder,
        language: LanguageModel,
        stage: Stage,
        seed: int,
        folder: Path,
    ):
        draw(stage, 0)  # an unknown task or kind is an error here, not in a worker of the loop
        self.module = VelocityLoss(transformer)
        self.autoencoder, self.language = autoencoder, language
        autoencoder.vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.stage, self.seed = stage, seed
        self.folder = folder / "encoded"
        self.folder.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def batch(self, number: int) -> dict[str, Any]:
        """A batch of `VelocityLoss`; all pictures have the same size."""
        rng = np.random.default_rng([self.seed, 4, number])
        encoded = self._encoded(number % self.stage.pool if self.stage.pool else number)
        data = encoded["data"].float()
        texts = encoded.pop("text").float()
        texts += FEATURE_NOISE * texts.square().mean().sqrt() * draw_normal(texts.shape, rng)
        return encoded | {
            "texts": list(texts.split(encoded.pop("lengths"))),
            "references": [[latents.float() for latents in own] for own in encoded["references"]],
            "data": data,
            "noise": draw_normal(data.shape, rng),
            "time": torch.from_numpy(draw_times(len(data), rng)),
        }

    def _encoded(self, number: int) -> dict[str, Any]:
        """The encoded examples of a batch, from the pool if they have been encoded before."""
        path = self.folder / f"{number:06}.pt"
        if path.is_file():
            return torch.load(path)
        made = self._encode_examples(number)
        if self.stage.pool:
            temporary = path.with_suffix(f".{os.getpid()}")
            torch.save(made, temporary)
            temporary.rename(path)
        return made

    def _encode_examples(self, number: int) -> dict[str, Any]:
        rng = np.random.default_rng([self.seed, 3, number])
        width, height, share = draw_size(self.stage, rng)
        counts = {name: max(1, round(most * share)) for name, most in self.stage.batch.items()}
        first = ROOM * numbered(self.seed, number)
        examples = [
            one
            for name, count in counts.items()
            for one in examples_of(name, first * self.stage.batch[name], count)
        ]
        texts, kept = self._drop(examples, rng)
        scenes = [scene for one, own in zip(examples, kept, strict=True) for scene in own or ()]
        latents = self._encode([*scenes, *(one.target for one in examples)], width, height)  # pyright: ignore
        sources = iter(latents[: len(scenes)].unbind())
        references = [[next(sources).clone() for _ in own] for own in kept]
        data = latents[len(scenes) :]
        targets = [one.target for one in examples]
        features = self._features(texts)
        return {
            "tasks": list(counts),
            "counts": list(counts.values()),
            "text": torch.cat(features).half(),
            "lengths": [len(own) for own in features],
            "references": [[own.half() for own in several] for several in references],
            "weights": loss_weights(targets, kept, data, references),  # pyright: ignore
            "data": data.half(),
        }

    def _drop(
        self, examples: Sequence[Example], rng: np.random.Generator
    ) -> tuple[list[str], list[tuple[Scene, ...]]]:
        """The prompts and the source scenes of examples, some of them dropped."""
        texts, kept = [], []
        for one in examples:
            dropped = rng.random() < DROPPED_PROMPT
            without_references = dropped and rng.random() < DROPPED_REFERENCES
            texts.append("" if dropped else worded(one.text, rng))
            kept.append(() if without_references else one.inputs)
        return texts, kept

    def _encode(self, scenes: Sequence[Scene], width: int, height: int) -> Tensor:
        pixels = np.stack([render(scene, width, height) for scene in scenes])
        encode = self.autoencoder.vae.encode
        modes = [encode(own).latent_dist.mode() for own in to_tensor(pixels).split(ENCODED_TOGETHER)]  # pyright: ignore
        return (torch.cat(modes) - self.autoencoder.shift) * self.autoencoder.scale

    def _features(self, prompts: Sequence[str]) -> list[Tensor]:
        """The last hidden states of prompts, (L, width) each; the same as those of `LanguageModel.encode`."""
        tokens = self.language.tokenizer([generation_chat(prompt) for prompt in prompts], padding=True)
        mask = torch.tensor(tokens["attention_mask"])
        states = self.language.mllm.model.language_model(
            input_ids=torch.tensor(tokens["input_ids"]), attention_mask=mask
        ).last_hidden_state
        return [own[:length] for own, length in zip(states, mask.sum(1).tolist(), strict=True)]


def draw_times(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) float32 times in (0, 1), 0 is noise: nano's own distribution, a mixture of a uniform and a
    logit-normal one."""
    near_noise = 1 / (1 + np.exp(-rng.normal(-1.5, 1.2, count)))
    uniform = rng.random(count)
    return np.where(rng.random(count) < UNIFORM_TIMES, uniform, near_noise).astype(np.float32)
