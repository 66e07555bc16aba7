"""Stage 3: the transformer learns to make, edit and compose pictures, by rectified flow (Liu et al. 2022).

x_t = t * data + (1 - t) * noise, the target is data - noise, the loss the mean squared error. All three abilities
are learnt together from the first step on: learnt alone, text to image erases the others in minutes. Prompts and
references are dropped now and then, so that guidance has something to contrast with. Pictures and prompts are
encoded by the frozen networks of the first two stages where the batch is made.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from omnigen2.autoencoder import Autoencoder
from omnigen2.language import LanguageModel, generation_chat
from omnigen2.shapeworld import Example, Scene, example, render
from omnigen2.training.config import Stage
from omnigen2.training.understanding import worded
from omnigen2.transformer import OmniGen2Transformer2DModel, patchify

DROPPED_PROMPT = 0.1
DROPPED_REFERENCES = 0.5
"""Chance that the references go too, where the prompt was dropped."""
UNIFORM_TIMES = 0.25
"""Share of the times drawn uniformly; the others lie near the noise, where the prompt decides what is drawn."""


class GenerationLoss(nn.Module):
    """The mean squared error of the velocity, over all pictures and of each task."""

    def __init__(self, transformer: OmniGen2Transformer2DModel):
        super().__init__()
        self.transformer = transformer

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        patch = self.transformer.config["patch_size"]
        data, noise, time = batch["data"], batch["noise"], batch["time"]
        noisy = torch.lerp(noise, data, time[:, None, None, None])
        size = (data.shape[-2], data.shape[-1])
        packed = self.transformer.condition(batch["texts"], batch["references"], [size] * len(data))
        velocity = self.transformer(patchify(noisy, patch).flatten(0, 1), time, packed)
        wanted = patchify(data - noise, patch)
        error = (velocity.float().view_as(wanted) - wanted).square().mean(dim=(1, 2))
        per_task = {
            name: own.mean().detach() for name, own in zip(batch["tasks"], error.split(batch["counts"]), strict=True)
        }
        return {"velocity": error.mean()} | per_task


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
    ):
        self.module = GenerationLoss(transformer)
        self.autoencoder, self.language = autoencoder, language
        self.stage, self.seed = stage, seed

    @torch.inference_mode()
    def batch(self, number: int) -> dict[str, Any]:
        """Latents, text features, noise and times of the examples with that number, all of one size."""
        rng = np.random.default_rng([self.seed, 3, number])
        width, height = self._size(rng)
        share = self.stage.sides[0] ** 2 / (width * height)  # as many pixels, whatever the size
        examples: list[Example] = []
        counts: list[int] = []
        for task, most in self.stage.batch.items():
            counts.append(max(1, round(most * share)))
            drawn = range(number * most * 2, number * most * 2 + counts[-1])
            examples += [example(task, "train", own) for own in drawn]  # pyright: ignore[reportArgumentType]
        texts, kept = self._drop(examples, rng)
        scenes = [scene for one, own in zip(examples, kept, strict=True) for scene in own or ()]
        latents = self._encode([*scenes, *(one.target for one in examples)], width, height)  # pyright: ignore
        sources = iter(latents[: len(scenes)])
        data = latents[len(scenes) :]
        return {
            "tasks": list(self.stage.batch),
            "counts": counts,
            "texts": self._features(texts),
            "references": [[next(sources) for _ in own] for own in kept],
            "data": data,
            "noise": torch.from_numpy(rng.standard_normal(data.shape, dtype=np.float32)),
            "time": torch.from_numpy(draw_times(len(examples), rng)),
        }

    def _size(self, rng: np.random.Generator) -> tuple[int, int]:
        """Width and height; most batches have the commonest side."""
        sides = self.stage.sides
        if rng.random() < 0.75:
            return sides[0], sides[0]
        return int(rng.choice(sides)), int(rng.choice(sides))

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
        tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
        mode = self.autoencoder.vae.encode(tensor).latent_dist.mode()  # pyright: ignore
        return (mode - self.autoencoder.shift) * self.autoencoder.scale

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
