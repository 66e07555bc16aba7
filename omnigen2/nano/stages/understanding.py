"""Stage 2: the language model learns captions, questions and the representation of prompts.

Losses: the cross-entropy of the answers' tokens, and for prompts those of `auxiliary_head`. The batches of
conversations here are also those of the stage `seeing`.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from omnigen2.nano.stages.autoencoder import CLOSE
from omnigen2.nano.stages.auxiliary_head import SceneHead, symbols
from omnigen2.nano.stages.auxiliary_losses import AUXILIARY, IGNORED, plan_labels, visual_labels
from omnigen2.nano.stages.config import Stage
from omnigen2.nano.stages.tokens import with_unknown_word
from omnigen2.nano.world import COLOURS, Example, example, render
from omnigen2.network.language import LanguageModel, generation_chat

RARE = 40
"""Any kind occurs nearly always among this many examples; batches of one kind are numbered this far apart."""
SEEDS_APART = 1_000_000
"""Batches between the numbers of two seeds; more than any stage has steps."""
SEARCHED = 10_000
"""Further examples that are searched for a kind before it is an error."""
UNKNOWN_WORD = 0.1
"""Probability that a prompt contains an unknown word."""


class UnderstandingLoss(nn.Module):
    """The losses of conversations and prompts."""

    def __init__(self, mllm: Qwen2_5_VLForConditionalGeneration):
        super().__init__()
        self.mllm = mllm
        text = mllm.config.get_text_config()
        self.scene_head = SceneHead(text.hidden_size, text.vocab_size)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = self._read(batch["read"])
        for name, seen in batch["see"].items():
            losses |= answer_losses(name, self.mllm(**seen["inputs"]).logits, seen["labels"])
        return losses

    def _read(self, read: dict[str, Any]) -> dict[str, Tensor]:
        states = self.mllm.model.language_model(
            input_ids=read["input_ids"], attention_mask=read["mask"].long()
        ).last_hidden_state
        return self.scene_head(states, read["input_ids"], read["mask"], read["symbols"])


class UnderstandingTask:
    """Batches of ShapeWorld's conversations and prompts, and the loss."""

    name = "understanding"

    def __init__(self, language: LanguageModel, stage: Stage, seed: int):
        draw(stage, 0)  # an unknown task or kind is an error here, not in a worker of the loop
        self.module = UnderstandingLoss(language.mllm)
        self.language, self.stage, self.seed = language, stage, seed

    def batch(self, number: int) -> dict[str, Any]:
        """`read`: prompts with their scenes; `see`: conversations by task."""
        rng = np.random.default_rng([self.seed, 2, number])
        drawn = draw(self.stage, numbered(self.seed, number))
        see = {task: drawn[task] for task in drawn if drawn[task][0].answer is not None}
        read = [one for task in drawn if task not in see for one in drawn[task]]
        return {
            "read": prompts(self.language, read, rng) | {"symbols": symbols(read)},
            "see": {
                task: conversations(self.language, examples, self.stage.sides, rng)
                for task, examples in see.items()
            },
        }


def numbered(seed: int, number: int) -> int:
    """The number of a batch among those of all seeds, so that seeds draw different examples."""
    return (seed - 1) * SEEDS_APART + number


def draw(stage: Stage, number: int) -> dict[str, list[Example]]:
    """The examples of a batch by task or `task:kind`; see `examples_of`."""
    return {name: examples_of(name, number * count, count) for name, count in stage.batch.items()}


def examples_of(name: str, first: int, count: int) -> list[Example]:
    """`count` training examples of a task or a `task:kind`, from about the number `first` on.

    `faint` is a kind of every task: some thing's colour is close to its background's.

    Raises:
        ValueError: there is no such task, or it has no such kind.
    """
    task, _, kind = name.partition(":")
    start = first * RARE if kind else first
    numbers = range(start, start + (RARE * count + SEARCHED if kind else count))
    drawn = (example(task, "train", number) for number in numbers)  # pyright: ignore[reportArgumentType]
    fitting = (one for one in drawn if not kind or one.kind == kind or (kind == "faint" and _faint(one)))
    found = list(itertools.islice(fitting, count))
    if len(found) < count:
        raise ValueError(f"batch: {name!r} given; {task} has no examples of the kind {kind!r}")
    return found


def _faint(one: Example) -> bool:
    scenes = [*one.inputs, one.target] if one.target else one.inputs
    return any(
        math.dist(COLOURS[thing.colour], COLOURS[scene.background]) < CLOSE[1]
        for scene in scenes
        for thing in scene.things
    )


def prompts(
    language: LanguageModel, examples: Sequence[Example], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Prompts in the chat template, padded to the longest: `input_ids` and `mask` (bool), both (n, L)."""
    texts = [generation_chat(worded(one.text, rng)) for one in examples]
    tokens = language.tokenizer(texts, padding=True)
    ids = torch.tensor(tokens["input_ids"])
    return {"input_ids": ids, "mask": torch.tensor(tokens["attention_mask"], dtype=torch.bool)}


def conversations(
    language: LanguageModel, examples: Sequence[Example], sides: Sequence[int], rng: np.random.Generator
) -> dict[str, Any]:
    """Questions with pictures and answers, padded to the longest: `inputs` of the model, `labels` (n, L), and
    `auxiliary`, labels of the auxiliary losses (n, L, kinds) by task.

    Labels are -100 except for the tokens of the answer.
    """
    rows = []
    for one in examples:
        pictures = [Image.fromarray(render(scene, *_size(sides, rng))) for scene in one.inputs]
        question = language.question_inputs(pictures, worded(one.text, rng))
        rows.append((one, question, language.tokenizer(f"{one.answer}<|im_end|>")["input_ids"]))
    lengths = [question["input_ids"].shape[1] + len(answer) for _, question, answer in rows]
    shape = (len(rows), max(lengths))
    ids = torch.full(shape, language.tokenizer.pad_token_id)  # pyright: ignore
    labels, mask = torch.full(shape, IGNORED), torch.zeros(shape, dtype=torch.int64)
    auxiliary = {name: torch.full((*shape, len(task.classes)), IGNORED) for name, task in AUXILIARY.items()}
    for n, (one, question, answer) in enumerate(rows):
        start = question["input_ids"].shape[1]
        ids[n, : lengths[n]] = torch.cat([question["input_ids"][0], torch.tensor(answer)])
        labels[n, start : lengths[n]] = torch.tensor(answer)
        mask[n, : lengths[n]] = 1
        seen = ids[n] == language.mllm.config.image_token_id
        grids = (question["image_grid_thw"][:, 1:] // language.image_processor.merge_size).tolist()
        for name, own in visual_labels(one.inputs, grids).items():
            auxiliary[name][n, seen] = own
        if one.task == "describe":
            planned = plan_labels(one.inputs[0], language.tokenizer.convert_ids_to_tokens(answer))
            auxiliary["plans"][n, start - 1 : start - 1 + len(planned)] = planned
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.cat([question["pixel_values"] for _, question, _ in rows]),
        "image_grid_thw": torch.cat([question["image_grid_thw"] for _, question, _ in rows]),
        "mm_token_type_ids": (ids == language.mllm.config.image_token_id).int(),
    }
    return {"inputs": inputs, "labels": labels, "auxiliary": auxiliary}


def answer_losses(name: str, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The cross-entropy of answers as `name`, and as `name_right` the share of answers without error."""
    logits, labels = logits[:, :-1].float(), labels[:, 1:]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    right = ((logits.argmax(-1) == labels) | (labels == IGNORED)).all(-1)
    return {name: loss, f"{name}_right": right.float().mean()}


def _size(sides: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    if rng.random() < 0.6:
        return sides[0], sides[0]
    return int(rng.choice(sides)), int(rng.choice(sides))


def worded(text: str, rng: np.random.Generator) -> str:
    """The text, with probability `UNKNOWN_WORD` with an unknown word in it."""
    return with_unknown_word(text, rng) if rng.random() < UNKNOWN_WORD else text
