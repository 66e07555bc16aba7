"""Stage 2: the language model learns to see scenes, to answer about them, and to read prompts.

Seeing: captions and questions, cross-entropy of the answer's words. Reading: `omnigen2.nano.stages.reader`.
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

from omnigen2.language import LanguageModel, generation_chat
from omnigen2.nano.stages.autoencoder import CLOSE
from omnigen2.nano.stages.config import Stage
from omnigen2.nano.stages.hints import HINTS, IGNORED, plans_of, seen_of
from omnigen2.nano.stages.reader import Reader, symbols
from omnigen2.nano.stages.tokens import with_unknown_word
from omnigen2.nano.world import COLOURS, Example, example, render

RARE = 40
"""Examples among which there is one of any kind, nearly always: batches of a kind lie that far apart."""
SEEDS_APART = 1_000_000
"""Batches; no stage takes as many steps."""
SEARCHED = 10_000
"""Examples beyond that among which a kind is looked for before it counts as misspelt."""
UNKNOWN_WORD = 0.1
"""Chance that a prompt has a word that the model does not know."""


class UnderstandingLoss(nn.Module):
    """Losses of seeing and reading."""

    def __init__(self, mllm: Qwen2_5_VLForConditionalGeneration):
        super().__init__()
        self.mllm = mllm
        text = mllm.config.get_text_config()
        self.reader = Reader(text.hidden_size, text.vocab_size)

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = self._read(batch["read"])
        for name, seen in batch["see"].items():
            losses |= answer_losses(name, self.mllm(**seen["inputs"]).logits, seen["labels"])
        return losses

    def _read(self, read: dict[str, Any]) -> dict[str, Tensor]:
        states = self.mllm.model.language_model(
            input_ids=read["input_ids"], attention_mask=read["mask"].long()
        ).last_hidden_state
        return self.reader(states, read["input_ids"], read["mask"], read["symbols"])


class UnderstandingTask:
    """ShapeWorld's questions and prompts, for the loop."""

    name = "understanding"

    def __init__(self, language: LanguageModel, stage: Stage, seed: int):
        draw(stage, 0)  # what is misspelt is told here, and not by a worker of the loop
        self.module = UnderstandingLoss(language.mllm)
        self.language, self.stage, self.seed = language, stage, seed

    def batch(self, number: int) -> dict[str, Any]:
        """Prompts to read, and pictures with questions and answers."""
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
    """The number of a batch among those of all seeds: another seed draws other examples."""
    return (seed - 1) * SEEDS_APART + number


def draw(stage: Stage, number: int) -> dict[str, list[Example]]:
    """The examples of a batch, by task, or by `task:kind`; see `examples_of`."""
    return {name: examples_of(name, number * count, count) for name, count in stage.batch.items()}


def examples_of(name: str, first: int, count: int) -> list[Example]:
    """So many examples of a task, or of a `task:kind`, from about that number on; `faint` is a kind, too: a
    thing that hardly stands out.

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
        raise ValueError(f"batch: {name!r} is asked for; {task} has no examples of the kind {kind!r}")
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
    """The chat strings of prompts: `input_ids` and `mask`, (n, L), padded to the longest."""
    texts = [generation_chat(worded(one.text, rng)) for one in examples]
    tokens = language.tokenizer(texts, padding=True)
    ids = torch.tensor(tokens["input_ids"])
    return {"input_ids": ids, "mask": torch.tensor(tokens["attention_mask"], dtype=torch.bool)}


def conversations(
    language: LanguageModel, examples: Sequence[Example], sides: Sequence[int], rng: np.random.Generator
) -> dict[str, Any]:
    """Questions with pictures and answers, padded to the longest: `inputs` of the model, `labels` (n, L), and
    `hints`, what states inside the model must tell, (n, L, heads) by name.

    Only the answer is to be predicted; -100 is for all else.
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
    hints = {name: torch.full((*shape, len(hint.asked)), IGNORED) for name, hint in HINTS.items()}
    for n, (one, question, answer) in enumerate(rows):
        start = question["input_ids"].shape[1]
        ids[n, : lengths[n]] = torch.cat([question["input_ids"][0], torch.tensor(answer)])
        labels[n, start : lengths[n]] = torch.tensor(answer)
        mask[n, : lengths[n]] = 1
        seen = ids[n] == language.mllm.config.image_token_id
        grids = (question["image_grid_thw"][:, 1:] // language.image_processor.merge_size).tolist()
        for name, own in seen_of(one.inputs, grids).items():
            hints[name][n, seen] = own
        if one.task == "describe":
            planned = plans_of(one.inputs[0], language.tokenizer.convert_ids_to_tokens(answer))
            hints["plans"][n, start - 1 : start - 1 + len(planned)] = planned
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": torch.cat([question["pixel_values"] for _, question, _ in rows]),
        "image_grid_thw": torch.cat([question["image_grid_thw"] for _, question, _ in rows]),
        "mm_token_type_ids": (ids == language.mllm.config.image_token_id).int(),
    }
    return {"inputs": inputs, "labels": labels, "hints": hints}


def answer_losses(name: str, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of the answers of conversations, and the share of answers without a fault."""
    logits, wanted = logits[:, :-1].float(), labels[:, 1:]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)
    right = ((logits.argmax(-1) == wanted) | (wanted == IGNORED)).all(-1)
    return {name: loss, f"{name}_right": right.float().mean()}


def _size(sides: Sequence[int], rng: np.random.Generator) -> tuple[int, int]:
    if rng.random() < 0.6:
        return sides[0], sides[0]
    return int(rng.choice(sides)), int(rng.choice(sides))


def worded(text: str, rng: np.random.Generator) -> str:
    """The text as a user might say it, now and then with a word that the model does not know."""
    return with_unknown_word(text, rng) if rng.random() < UNKNOWN_WORD else text
