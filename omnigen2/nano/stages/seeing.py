"""Stage 3: the language model learns to see sharply, while it goes on reading as it did.

First it only looks (`looking`), then it also answers (`seeing`). Three kinds of losses: the answers to
questions about pictures; what states inside must tell (`hints.py`), which teaches without the
detour through words; and, for prompts, the distance from the states of the model before this stage. The last
one keeps the states as the transformer knows them, so that this stage may run beside or after the
transformer's.
"""

import copy
from collections import defaultdict
from collections.abc import Sequence
from types import MethodType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from omnigen2.language import LanguageModel
from omnigen2.nano.stages.config import Stage
from omnigen2.nano.stages.hints import HINTS, IGNORED, Heads, cells_of
from omnigen2.nano.stages.understanding import answer_losses, conversations, draw, numbered, prompts
from omnigen2.nano.world import Example, Scene, render, sample_scene

SCENES = "scenes"
"""The name by which a stage's `batch` says how many pictures are looked at without a question."""
LOYALTY = 10.0
"""Weight of the distance between states, of root mean square 1."""
ALONE = 100
"""First batches, in which new heads learn from states as they are; what they would change in them is noise
until then."""


class SeeingLoss(nn.Module):
    """Losses of answering, of looking, and of loyalty."""

    def __init__(self, mllm: Qwen2_5_VLForConditionalGeneration):
        super().__init__()
        self.mllm = mllm
        mllm.model.visual.patch_embed.forward = MethodType(embed_patches, mllm.model.visual.patch_embed)
        text = mllm.config.get_text_config()
        self.heads = Heads(text.hidden_size)
        self.depths = {name: round(hint.depth * text.num_hidden_layers) for name, hint in HINTS.items()}

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = self._look(batch[SCENES]) if batch[SCENES] else {}
        if batch["prompts"]:
            losses |= self._stay(batch["prompts"])
        for name, seen in batch["see"].items():
            answered = self.mllm(**seen["inputs"], output_hidden_states=True)
            losses |= answer_losses(name, answered.logits, seen["labels"])
            states = {name: answered.hidden_states[depth] for name, depth in self.depths.items()}
            for hint, own in self._hinted(states, seen["hints"], batch["settled"]).items():
                losses[hint] = losses.get(hint, 0) + own
        return losses

    def _hinted(
        self, states: dict[str, Tensor], wanted: dict[str, Tensor], settled: bool
    ) -> dict[str, Tensor]:
        return {
            asked: HINTS[name].weight * _cross_entropy(*told)
            for name, own in states.items()
            for asked, told in self.heads(name, own if settled else own.detach(), wanted[name]).items()
            if told[1].numel()
        }

    def _look(self, scenes: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens = self.mllm.model.visual(
            scenes["pixel_values"], grid_thw=scenes["image_grid_thw"]
        ).pooler_output
        told = self.heads("cells", tokens, scenes["cells"])
        right = [(logits.argmax(-1) == own) | (own == IGNORED) for logits, own in told.values()]
        losses = {f"look_{name}": _cross_entropy(*own) for name, own in told.items()}
        return losses | {"cells_right": torch.stack(right).all(0).float().mean()}

    def _stay(self, told: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = told["mask"]
        states = self.mllm.model.language_model(
            input_ids=told["input_ids"], attention_mask=mask.long()
        ).last_hidden_state
        return {"loyalty": LOYALTY * (states - told["states"])[mask].float().square().mean()}


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=IGNORED)


def embed_patches(patch_embed: Any, patches: Tensor) -> Tensor:
    """(n, values of a patch) -> (n, width): what the convolution gives, whose kernel is the patch.

    As a product of matrices its backward pass is several times faster on a CPU.
    """
    return F.linear(patches, patch_embed.proj.weight.flatten(1))


class SeeingTask:
    """ShapeWorld's pictures and questions, for the loop."""

    def __init__(self, name: str, language: LanguageModel, stage: Stage, seed: int):
        self.name = name
        self.module = SeeingLoss(language.mllm)
        self.language, self.stage, self.seed = language, stage, seed
        self._asked = stage.model_copy(update={"batch": self._tasks()})
        draw(self._asked, 0)  # what is misspelt is told here, and not by a worker of the loop
        self.before = copy.deepcopy(language.mllm.model.language_model).eval().requires_grad_(False)

    def batch(self, number: int) -> dict[str, Any]:
        """Conversations, pictures to look at, and prompts with the states they had before."""
        rng = np.random.default_rng([self.seed, 5, number])
        drawn = draw(self._asked, numbered(self.seed, number))
        see: dict[str, list[Example]] = defaultdict(list)
        read: list[Example] = []
        for name, examples in drawn.items():
            if examples[0].answer is None:
                read += examples
                continue
            # A pass over many has less cost of its own; one image beside five would be mostly padding.
            for one in examples:
                see[name.partition(":")[0] + ("_images" if len(one.inputs) > 1 else "")].append(one)
        told = self._told(read, rng)
        return {
            "settled": number >= ALONE,
            SCENES: self._scenes([sample_scene(rng) for _ in range(self.stage.batch.get(SCENES, 0))], rng),
            "prompts": told,
            "see": {
                task: conversations(self.language, examples, self.stage.sides, rng)
                for task, examples in see.items()
            },
        }

    def _told(self, examples: Sequence[Example], rng: np.random.Generator) -> dict[str, Tensor]:
        """Prompts with the states they had before this stage."""
        if not examples:
            return {}
        told = prompts(self.language, examples, rng)
        with torch.no_grad():
            states = self.before(input_ids=told["input_ids"], attention_mask=told["mask"].long())
        return told | {"states": states.last_hidden_state}

    def _tasks(self) -> dict[str, int]:
        return {task: count for task, count in self.stage.batch.items() if task != SCENES}

    def _scenes(self, scenes: Sequence[Scene], rng: np.random.Generator) -> dict[str, Tensor]:
        """Patches of pictures of scenes, and what each visual token must tell; nothing of no scenes."""
        if not scenes:
            return {}
        sides = self.stage.sides
        sizes = [
            (int(rng.choice(sides)), int(rng.choice(sides))) if rng.random() < 0.3 else (sides[0], sides[0])
            for _ in scenes
        ]
        pictures = [Image.fromarray(render(scene, *size)) for scene, size in zip(scenes, sizes, strict=True)]
        processor = self.language.image_processor
        seen = processor(images=pictures, return_tensors="pt")
        merge = processor.merge_size
        grids = [(int(rows) // merge, int(columns) // merge) for _, rows, columns in seen["image_grid_thw"]]
        return {
            "pixel_values": seen["pixel_values"],
            "image_grid_thw": seen["image_grid_thw"],
            "cells": torch.cat(list(map(cells_of, scenes, grids))),
        }
