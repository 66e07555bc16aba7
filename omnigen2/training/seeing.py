"""Stage 3: the language model learns to see sharply, while it goes on reading as it did.

First it only looks (`looking`), then it also answers (`seeing`). Four losses: the answers to questions about
pictures; what each visual token must tell of its cell (the thing whose centre lies there, its shape, colour
and size, and the background), which teaches the eye without the detour through words; what each visual token
must tell halfway through the language model (its row, its column, its picture), because nothing but the
rotations of attention says where it lies, and answers alone took thousands of steps without finding out; and,
for prompts, the distance from the states of the model before this stage. The last one keeps the states as the
transformer knows them, so that this stage may run beside or after the transformer's.
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
from omnigen2.params import MAX_REFERENCES
from omnigen2.shapeworld import COLOURS, SHAPES, SIZES, Example, Scene, render, sample_scene
from omnigen2.training.config import Stage
from omnigen2.training.understanding import IGNORED, answer_losses, conversations, draw, numbered, prompts

SCENES = "scenes"
"""The name by which a stage's `batch` says how many pictures are looked at without a question. If it says
none, what visual tokens must tell is left out: its heads are new in each run, and shake an eye that sees."""
ASKED = ("taken", "shape", "colour", "size", "background")
"""What a visual token must tell of its cell."""
LOYALTY = 10.0
"""Weight of the distance between states, of root mean square 1."""
PLACED = {"row": 12, "column": 12, "picture": MAX_REFERENCES}
"""What a visual token must tell halfway, and how many of each there can be."""
PLACING = 0.2
"""Weight of the losses of places."""
_SHAPES, _COLOURS, _SIZES = tuple(SHAPES), tuple(COLOURS), tuple(SIZES)
EMPTY, TAKEN = 0, 1


class SeeingLoss(nn.Module):
    """Losses of answering, of looking, and of loyalty."""

    def __init__(self, mllm: Qwen2_5_VLForConditionalGeneration):
        super().__init__()
        self.mllm = mllm
        mllm.model.visual.patch_embed.forward = MethodType(embed_patches, mllm.model.visual.patch_embed)
        text = mllm.config.get_text_config()
        width, self.halfway = text.hidden_size, text.num_hidden_layers // 2
        counts = (2, len(_SHAPES), len(_COLOURS), len(_SIZES), len(_COLOURS))
        self.heads = nn.ModuleDict(
            {name: nn.Linear(width, count) for name, count in zip(ASKED, counts, strict=True)}
        )
        self.places = nn.ModuleDict({name: nn.Linear(width, count) for name, count in PLACED.items()})

    def forward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        losses = self._look(batch[SCENES]) if batch[SCENES] else {}
        if batch["prompts"]:
            losses |= self._stay(batch["prompts"])
        for name, seen in batch["see"].items():
            answered = self.mllm(**seen["inputs"], output_hidden_states=True)
            losses |= answer_losses(name, answered.logits, seen["labels"])
            if batch[SCENES]:
                place = self._place(answered.hidden_states[self.halfway], seen["places"])
                losses["places"] = losses.get("places", 0) + place
        return losses

    def _place(self, states: Tensor, places: Tensor) -> Tensor:
        states = F.rms_norm(states, states.shape[-1:])
        logits = [head(states).float().flatten(0, 1) for head in self.places.values()]
        wanted = places.flatten(0, 1).unbind(-1)
        own = [F.cross_entropy(*pair, ignore_index=IGNORED) for pair in zip(logits, wanted, strict=True)]
        return PLACING * torch.stack(own).sum()

    def _look(self, scenes: dict[str, Tensor]) -> dict[str, Tensor]:
        tokens = self.mllm.model.visual(
            scenes["pixel_values"], grid_thw=scenes["image_grid_thw"]
        ).pooler_output
        tokens = F.rms_norm(tokens, tokens.shape[-1:])
        logits = {name: head(tokens).float() for name, head in self.heads.items()}
        losses = {
            f"look_{name}": F.cross_entropy(own, scenes[name], ignore_index=IGNORED)
            for name, own in logits.items()
        }
        right = torch.stack(
            [(own.argmax(-1) == scenes[name]) | (scenes[name] == IGNORED) for name, own in logits.items()]
        ).all(0)
        return losses | {"cells_right": right.float().mean()}

    def _stay(self, told: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = told["mask"]
        states = self.mllm.model.language_model(
            input_ids=told["input_ids"], attention_mask=mask.long()
        ).last_hidden_state
        return {"loyalty": LOYALTY * (states - told["states"])[mask].float().square().mean()}


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
        self.before = copy.deepcopy(language.mllm.model.language_model).eval().requires_grad_(False)

    def batch(self, number: int) -> dict[str, Any]:
        """Conversations, pictures to look at, and prompts with the states they had before."""
        rng = np.random.default_rng([self.seed, 5, number])
        drawn = draw(self.stage.model_copy(update={"batch": self._tasks()}), numbered(self.seed, number))
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
        cells = np.concatenate([cells_of(scene, grid) for scene, grid in zip(scenes, grids, strict=True)])
        return {
            "pixel_values": seen["pixel_values"],
            "image_grid_thw": seen["image_grid_thw"],
        } | dict(zip(ASKED, torch.from_numpy(cells).unbind(1), strict=True))


def cells_of(scene: Scene, grid: tuple[int, int]) -> np.ndarray:
    """(rows * columns, 5) int64: per cell what `ASKED` names; shape, colour and size are a thing's whose
    centre lies there."""
    rows, columns = grid
    cells = np.full((rows, columns, len(ASKED)), IGNORED, dtype=np.int64)
    cells[..., 0] = EMPTY
    cells[..., 4] = _COLOURS.index(scene.background)
    for thing in scene.things:
        row, column = min(rows - 1, int(thing.y * rows)), min(columns - 1, int(thing.x * columns))
        named = _SHAPES.index(thing.shape), _COLOURS.index(thing.colour), _SIZES.index(thing.size)
        cells[row, column, :4] = (TAKEN, *named)
    return cells.reshape(-1, len(ASKED))
