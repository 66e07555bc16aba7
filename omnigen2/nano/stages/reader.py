"""A teacher of reading: what a prompt wants must be readable from its last hidden states, through noise.

The last state of a small language model says what comes next, and says the word itself 200 times too quietly
to condition on. So while the language model learns, three small heads ask its normed last states, plus noise,
for the word itself, for the word before it, and for the whole scene that the prompt makes of the scenes it is
given. The heads are thrown away; what stays is a language model whose states are loud. The flow then only
learns to draw.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnigen2.nano.world import COLOURS, SHAPES, SIZES, Example, Scene
from omnigen2.nano.world.scene import Thing

NOISE = 0.5
"""Deviation of the noise, of states with root mean square 1."""
SLOTS = 5  # most things in a target
BINS = 24  # places along an axis
FREQUENCIES = 4
_SHAPES, _COLOURS, _SIZES = tuple(SHAPES), tuple(COLOURS), tuple(SIZES)
PARTS = {"shape": len(SHAPES) + 1, "colour": len(COLOURS), "size": len(SIZES), "x": BINS, "y": BINS}
"""What is asked of each slot, and how many answers there are; the last shape is: nothing here."""


@dataclass(frozen=True)
class Symbols:
    """Scenes as numbers. B examples, S source tokens.

    `tokens` (B, S, 5) int64: kind + 1 (0 pads, 1 is a background, 2 on are shapes), colour, size, image,
    filler; `places` (B, S, 2): x, y; `slots` (B, SLOTS, 5) int64: the answers of `PARTS`, -100 where there is
    none; `background` (B,) int64.
    """

    tokens: Tensor
    places: Tensor
    slots: Tensor
    background: Tensor


def symbols(examples: Sequence[Example]) -> dict[str, Tensor]:
    """The scenes of examples as tensors, in the order of `Symbols`."""
    rows = [_source(example.inputs) for example in examples]
    longest = max(1, *(len(row) for row in rows))
    tokens = np.zeros((len(rows), longest, 4), np.int64)
    places = np.zeros((len(rows), longest, 2), np.float32)
    slots = np.full((len(rows), SLOTS, len(PARTS)), -100, np.int64)
    slots[:, :, 0] = len(SHAPES)
    background = np.zeros(len(rows), np.int64)
    for n, (row, example) in enumerate(zip(rows, examples, strict=True)):
        for m, (kind, colour, size, image, x, y) in enumerate(row):
            tokens[n, m] = (kind, colour, size, image)
            places[n, m] = (x, y)
        assert example.target is not None
        background[n] = _COLOURS.index(example.target.background)
        for m, thing in enumerate(example.target.things[:SLOTS]):
            slots[n, m] = _answers(thing)
    return {
        "tokens": torch.from_numpy(tokens),
        "places": torch.from_numpy(places),
        "slots": torch.from_numpy(slots),
        "background": torch.from_numpy(background),
    }


def _source(scenes: Sequence[Scene]) -> list[tuple[int, int, int, int, float, float]]:
    found = []
    for image, scene in enumerate(scenes):
        found.append((1, _COLOURS.index(scene.background), 0, image, 0.5, 0.5))
        for thing in scene.things:
            shape, colour, size = numbers_of(thing)
            found.append((2 + shape, colour, size, image, thing.x, thing.y))
    return found


def numbers_of(thing: Thing) -> tuple[int, int, int]:
    """The numbers of a thing's shape, colour and size."""
    return _SHAPES.index(thing.shape), _COLOURS.index(thing.colour), _SIZES.index(thing.size)


def _answers(thing: Thing) -> tuple[int, ...]:
    x, y = (min(BINS - 1, int(value * BINS)) for value in (thing.x, thing.y))
    return (*numbers_of(thing), x, y)


class Reader(nn.Module):
    """Reads target scenes from hidden states (B, L, channels) and source scenes."""

    def __init__(self, channels: int, words: int, width: int = 128, layers: int = 2):
        super().__init__()
        self.text = nn.Linear(channels, width)
        self.kind = nn.Embedding(2 + len(SHAPES), width, padding_idx=0)
        self.colour = nn.Embedding(len(COLOURS), width)
        self.size = nn.Embedding(len(SIZES), width)
        self.image = nn.Embedding(5, width)
        self.place = nn.Linear(4 * FREQUENCIES, width)
        self.queries = nn.Parameter(torch.randn(SLOTS + 1, width) * 0.5)
        layer = nn.TransformerEncoderLayer(
            width, width // 32, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.background = nn.Linear(width, len(COLOURS))
        self.slots = nn.ModuleDict({name: nn.Linear(width, count) for name, count in PARTS.items()})
        self.word = nn.Linear(channels, words)
        self.word_before = nn.Linear(channels, words)

    def forward(
        self, states: Tensor, ids: Tensor, mask: Tensor, symbols: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Losses, and the share of scenes that were read without a fault.

        `states` (B, L, channels); `ids`, `mask` (B, L): the words and which of them are there.
        """
        heard = F.rms_norm(states, states.shape[-1:])
        heard = heard + NOISE * torch.randn_like(heard)
        known = ids.masked_fill(~mask, -100)
        losses = {
            "word": 0.3 * _cross_entropy(self.word(heard), known),
            "word_before": 0.2 * _cross_entropy(self.word_before(heard[:, 1:]), known[:, :-1]),
        }
        thought = self._think(heard, mask, symbols)
        losses["scene_background"] = F.cross_entropy(
            self.background(thought[:, 0]).float(), symbols["background"]
        )
        right = self.background(thought[:, 0]).argmax(-1) == symbols["background"]
        for n, (name, head) in enumerate(self.slots.items()):
            logits, wanted = head(thought[:, 1:]), symbols["slots"][:, :, n]
            losses[f"scene_{name}"] = _cross_entropy(logits, wanted)
            close = (logits.argmax(-1) - wanted).abs() <= (1 if name in "xy" else 0)
            right = right & (close | (wanted < 0)).all(-1)
        return losses | {"scenes_read": right.float().mean()}

    def _think(self, heard: Tensor, mask: Tensor, symbols: dict[str, Tensor]) -> Tensor:
        """(B, SLOTS + 1, width): what the queries found among the scenes and the words."""
        kind, colour, size, image = symbols["tokens"].unbind(-1)
        source = self.kind(kind) + self.colour(colour) + self.size(size) + self.image(image)
        source = source + self.place(_waves(symbols["places"]))
        queries = self.queries.expand(len(heard), -1, -1)
        everything = torch.cat([queries, source, self.text(heard)], dim=1)
        absent = torch.cat([torch.zeros_like(queries[..., 0], dtype=torch.bool), kind == 0, ~mask], dim=1)
        return self.layers(everything, src_key_padding_mask=absent)[:, : SLOTS + 1]


def _waves(places: Tensor) -> Tensor:
    """(..., 2) -> (..., 4 * FREQUENCIES)."""
    angles = places[..., None] * (math.pi * 2.0 ** torch.arange(FREQUENCIES, device=places.device))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def _cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), wanted.flatten(), ignore_index=-100)
