"""The last stage: the transformer learns to make, edit and compose pictures.

Rectified flow (Liu et al. 2022): x_t = t * data + (1 - t) * noise, the target is data - noise, the loss the
mean squared error. All three abilities are learnt together from the first step on: learnt alone, text to
image erases the others in minutes. Prompts and references are dropped now and then, so that guidance has
something to contrast with. Pictures and prompts are encoded by the frozen networks of the first two stages
where the batch is made.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omnigen2.autoencoder import Autoencoder
from omnigen2.language import LanguageModel, generation_chat
from omnigen2.nano.stages.autoencoder import draw_size, to_tensor
from omnigen2.nano.stages.config import Stage
from omnigen2.nano.stages.emphasis import emphasis
from omnigen2.nano.stages.understanding import draw, examples_of, numbered, worded
from omnigen2.nano.world import Example, Scene, render
from omnigen2.training.objective import VelocityLoss, draw_normal
from omnigen2.transformer import OmniGen2Transformer2DModel

DROPPED_PROMPT = 0.1
DROPPED_REFERENCES = 0.5
"""Chance that the references go too, where the prompt was dropped."""
FEATURE_NOISE = 0.1
"""Deviation of the noise on text features, in units of their root mean square: no prompt is learnt by
heart."""
ROOM = 3
"""A batch of small pictures has up to so many times the examples: batches lie that far apart."""
ENCODED_TOGETHER = 8
"""Pictures that fit into a CPU's cache: encoded all at once they take twice as long."""
UNIFORM_TIMES = 0.25
"""Share of the times drawn uniformly; the others lie near the noise, where the prompt decides what is
drawn."""


class GenerationTask:
    """ShapeWorld's prompts, edits and compositions, encoded, for the loop."""

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
        draw(stage, 0)  # what is misspelt is told here, and not by a worker of the loop
        self.module = VelocityLoss(transformer)
        self.autoencoder, self.language = autoencoder, language
        autoencoder.vae.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.stage, self.seed = stage, seed
        self.folder = folder / "encoded"
        self.folder.mkdir(parents=True, exist_ok=True)

    @torch.no_grad()
    def batch(self, number: int) -> dict[str, Any]:
        """Latents and text features, all pictures of one size, with noise and times of their own."""
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
        """The encoded examples of a batch, from the pool if they were made before."""
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
            "weights": emphasis(targets, kept, data, references),  # pyright: ignore
            "data": data.half(),
        }

    def _drop(
        self, examples: Sequence[Example], rng: np.random.Generator
    ) -> tuple[list[str], list[tuple[Scene, ...]]]:
        """What is told and shown of each example."""
        texts, kept = [], []
        for one in examples:
            silent = rng.random() < DROPPED_PROMPT
            blind = silent and rng.random() < DROPPED_REFERENCES
            texts.append("" if silent else worded(one.text, rng))
            kept.append(() if blind else one.inputs)
        return texts, kept

    def _encode(self, scenes: Sequence[Scene], width: int, height: int) -> Tensor:
        pixels = np.stack([render(scene, width, height) for scene in scenes])
        encode = self.autoencoder.vae.encode
        modes = [encode(own).latent_dist.mode() for own in to_tensor(pixels).split(ENCODED_TOGETHER)]  # pyright: ignore
        return (torch.cat(modes) - self.autoencoder.shift) * self.autoencoder.scale

    def _features(self, prompts: Sequence[str]) -> list[Tensor]:
        """The last hidden states of prompts, as `LanguageModel.encode` gives them one by one."""
        tokens = self.language.tokenizer([generation_chat(prompt) for prompt in prompts], padding=True)
        mask = torch.tensor(tokens["attention_mask"])
        states = self.language.mllm.model.language_model(
            input_ids=torch.tensor(tokens["input_ids"]), attention_mask=mask
        ).last_hidden_state
        return [own[:length] for own, length in zip(states, mask.sum(1).tolist(), strict=True)]


def draw_times(count: int, rng: np.random.Generator) -> np.ndarray:
    """(count,) float32 flow times in (0, 1)."""
    near_noise = 1 / (1 + np.exp(-rng.normal(-1.5, 1.2, count)))
    uniform = rng.random(count)
    return np.where(rng.random(count) < UNIFORM_TIMES, uniform, near_noise).astype(np.float32)
