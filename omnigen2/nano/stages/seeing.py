"""Stage 3: vision training of the language model, with its representation of prompts held fixed.

`looking` trains on pictures alone, `seeing` on conversations too. The losses are the cross-entropy of
answers, the auxiliary losses on hidden states (`auxiliary_losses`), and for prompts the distance of the last
hidden states from those before this stage (distillation). Because of the latter the transformer's inputs stay
the same, and this stage may run before, beside or after the transformer's.
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

from omnigen2.nano.stages.auxiliary_losses import AUXILIARY, IGNORED, AuxiliaryHeads, cell_labels
from omnigen2.nano.stages.config import Stage
from omnigen2.nano.stages.understanding import answer_losses, conversations, draw, numbered, prompts
from omnigen2.nano.world import Example, Scene, render, sample_scene
from omnigen2.network.language import LanguageModel

SCENES = "scenes"
"""The key of a stage's `batch` for the number of pictures without a question."""
DISTILLATION = 10.0
"""Weight of the mean squared distance of states, whose root mean square is 1."""
HEADS_ONLY = 100
"""First batches, in which the auxiliary losses train their new heads alone: until then, gradients through
untrained heads are noise."""


class SeeingLoss(nn.Module):
    """The losses of answers, pictures and prompts."""

    def __init__(self, mllm: Qwen2_5_VLForConditionalGeneration):
        super().__init__()
        self.mllm = mllm
        mllm.model.visual.patch_embed.forward = MethodType(embed_patches, mllm.model.visual.patch_embed)
        text = mllm.config.get_text_config()
        self.heads = AuxiliaryHeads(text.hidden_size)
        self.depths = {name: round(task.depth * text.num_hidden_layers) for name, task in AUXILIARY.items()}

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = self._look(batch[SCENES]) if batch[SCENES] else {}
        if batch["prompts"]:
            losses |= self._distil(batch["prompts"])
        for name, seen in batch["see"].items():
            answered = self.mllm(**seen["inputs"], output_hidden_states=True)
            losses |= answer_losses(name, answered.logits, seen["labels"])
            states = {name: answered.hidden_states[depth] for name, depth in self.depths.items()}
            for kind, own in self._auxiliary(states, seen["auxiliary"], batch["settled"]).items():
                losses[kind] = losses.get(kind, 0) + own
        return losses

    def _auxiliary(
        self, states: dict[str, Tensor], labels: dict[str, Tensor], settled: bool
    ) -> dict[str, Tensor]:
        return {
            kind: AUXILIARY[name].weight * _cross_entropy(*predicted)
            for name, own in states.items()
            for kind, predicted in self.heads(name, own if settled else own.detach(), labels[name]).items()
            if predicted[1].numel()
        }

    def _look(self, scenes: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens = self.mllm.model.visual(
            scenes["pixel_values"], grid_thw=scenes["image_grid_thw"]
        ).pooler_output
        predicted = self.heads("cells", tokens, scenes["cells"])
        right = [(logits.argmax(-1) == own) | (own == IGNORED) for logits, own in predicted.values()]
        losses = {f"look_{name}": _cross_entropy(*own) for name, own in predicted.items()}
        return losses | {"cells_right": torch.stack(right).all(0).float().mean()}

    def _distil(self, read: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = read["mask"]
        states = self.mllm.model.language_model(
            input_ids=read["input_ids"], attention_mask=mask.long()
        ).last_hidden_state
        return {"distillation": DISTILLATION * (states - read["states"])[mask].float().square().mean()}


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, ignore_index=IGNORED)


def embed_patches(patch_embed: Any, patches: Tensor) -> Tensor:
    """(n, values of a patch) -> (n, width): equal to the convolution, whose kernel is the size of a patch.

    As a matrix product, its backward pass is several times faster on a CPU.
    """
    return F.linear(patches, patch_embed.proj.weight.flatten(1))


class SeeingTask:
    """Batches of ShapeWorld's pictures, conversations and prompts, and the loss."""

    def __init__(self, name: str, language: LanguageModel, stage: Stage, seed: int):
        self.name = name
        self.module = SeeingLoss(language.mllm)
        self.language, self.stage, self.seed = language, stage, seed
        self._stage = stage.model_copy(update={"batch": self._tasks()})
        draw(self._stage, 0)  # an unknown task or kind is an error here, not in a worker of the loop
        self.before = copy.deepcopy(language.mllm.model.language_model).eval().requires_grad_(False)

    def batch(self, number: int) -> dict[str, Any]:
        """Conversations by task, pictures, and prompts with their states before this stage."""
        rng = np.random.default_rng([self.seed, 5, number])
        drawn = draw(self._stage, numbered(self.seed, number))
        see: dict[str, list[Example]] = defaultdict(list)
        read: list[Example] = []
        for name, examples in drawn.items():
            if examples[0].answer is None:
                read += examples
                continue
            # Fewer, larger passes cost less; one image beside five would be mostly padding.
            for one in examples:
                see[name.partition(":")[0] + ("_images" if len(one.inputs) > 1 else "")].append(one)
        prompts_before = self._with_states(read, rng)
        return {
            "settled": number >= HEADS_ONLY,
            SCENES: self._scenes([sample_scene(rng) for _ in range(self.stage.batch.get(SCENES, 0))], rng),
            "prompts": prompts_before,
            "see": {
                task: conversations(self.language, examples, self.stage.sides, rng)
                for task, examples in see.items()
            },
        }

    def _with_states(self, examples: Sequence[Example], rng: np.random.Generator) -> dict[str, Tensor]:
        """Prompts with their last hidden states before this stage; empty if there are no examples."""
        if not examples:
            return {}
        made = prompts(self.language, examples, rng)
        with torch.no_grad():
            states = self.before(input_ids=made["input_ids"], attention_mask=made["mask"].long())
        return made | {"states": states.last_hidden_state}

    def _tasks(self) -> dict[str, int]:
        return {task: count for task, count in self.stage.batch.items() if task != SCENES}

    def _scenes(self, scenes: Sequence[Scene], rng: np.random.Generator) -> dict[str, Tensor]:
        """The patches of pictures of scenes and the labels of their visual tokens; empty without scenes."""
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
            "cells": torch.cat(list(map(cell_labels, scenes, grids))),
        }
