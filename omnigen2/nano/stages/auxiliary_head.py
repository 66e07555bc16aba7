"""Auxiliary heads that decode the target scene of a prompt from the language model's last hidden states.

The last hidden state of a small language model encodes the current token 200 times more weakly than the next
one, too weakly to condition the transformer. During training, heads therefore predict from the normalised
last states, plus noise, the current token, the previous token and, together with the source scenes, the whole
target scene. The heads are discarded; the states keep the information.
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
"""Standard deviation of the noise, for states with root mean square 1."""
SLOTS = 5  # largest number of things in a target
BINS = 24  # classes of a coordinate
FREQUENCIES = 4
_SHAPES, _COLOURS, _SIZES = tuple(SHAPES), tuple(COLOURS), tuple(SIZES)
SLOT_CLASSES = {"shape": len(SHAPES) + 1, "colour": len(COLOURS), "size": len(SIZES), "x": BINS, "y": BINS}
"""The number of classes of each property of a slot; the last class of `shape` is an empty slot."""


@dataclass(frozen=True)
class Symbols:
    """Scenes as tensors: B examples, S source tokens.

    `tokens` (B, S, 4) int64: kind + 1 (0 pads, 1 is a background, 2 on are shapes), colour, size, index of
    the image; `places` (B, S, 2): x, y; `slots` (B, SLOTS, 5) int64: the classes of `SLOT_CLASSES`, -100
    for none; `background` (B,) int64.
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
    slots = np.full((len(rows), SLOTS, len(SLOT_CLASSES)), -100, np.int64)
    slots[:, :, 0] = len(SHAPES)
    background = np.zeros(len(rows), np.int64)
    for n, (row, example) in enumerate(zip(rows, examples, strict=True)):
        for m, (kind, colour, size, image, x, y) in enumerate(row):
            tokens[n, m] = (kind, colour, size, image)
            places[n, m] = (x, y)
        assert example.target is not None
        background[n] = _COLOURS.index(example.target.background)
        for m, thing in enumerate(example.target.things[:SLOTS]):
            slots[n, m] = _slot(thing)
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
            shape, colour, size = class_ids(thing)
            found.append((2 + shape, colour, size, image, thing.x, thing.y))
    return found


def class_ids(thing: Thing) -> tuple[int, int, int]:
    """The class indices of a thing's shape, colour and size."""
    return _SHAPES.index(thing.shape), _COLOURS.index(thing.colour), _SIZES.index(thing.size)


def _slot(thing: Thing) -> tuple[int, ...]:
    x, y = (min(BINS - 1, int(value * BINS)) for value in (thing.x, thing.y))
    return (*class_ids(thing), x, y)


class SceneHead(nn.Module):
    """A transformer encoder with a query for each slot and one for the background, over source scenes and
    hidden states (B, L, channels)."""

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
        self.slots = nn.ModuleDict({name: nn.Linear(width, count) for name, count in SLOT_CLASSES.items()})
        self.word = nn.Linear(channels, words)
        self.word_before = nn.Linear(channels, words)

    def forward(
        self, states: Tensor, ids: Tensor, mask: Tensor, symbols: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """The losses, and as `scenes_read` the share of scenes decoded without error.

        `states` (B, L, channels); `ids` (B, L) the tokens, `mask` (B, L) false where they are padding.
        """
        normed = F.rms_norm(states, states.shape[-1:])
        normed = normed + NOISE * torch.randn_like(normed)
        known = ids.masked_fill(~mask, -100)
        losses = {
            "word": 0.3 * _cross_entropy(self.word(normed), known),
            "word_before": 0.2 * _cross_entropy(self.word_before(normed[:, 1:]), known[:, :-1]),
        }
        decoded = self._decode(normed, mask, symbols)
        losses["scene_background"] = F.cross_entropy(
            self.background(decoded[:, 0]).float(), symbols["background"]
        )
        right = self.background(decoded[:, 0]).argmax(-1) == symbols["background"]
        for n, (name, head) in enumerate(self.slots.items()):
            logits, labels = head(decoded[:, 1:]), symbols["slots"][:, :, n]
            losses[f"scene_{name}"] = _cross_entropy(logits, labels)
            close = (logits.argmax(-1) - labels).abs() <= (1 if name in "xy" else 0)
            right = right & (close | (labels < 0)).all(-1)
        return losses | {"scenes_read": right.float().mean()}

    def _decode(self, normed: Tensor, mask: Tensor, symbols: dict[str, Tensor]) -> Tensor:
        """(B, SLOTS + 1, width): the outputs of the queries."""
        kind, colour, size, image = symbols["tokens"].unbind(-1)
        source = self.kind(kind) + self.colour(colour) + self.size(size) + self.image(image)
        source = source + self.place(_fourier_features(symbols["places"]))
        queries = self.queries.expand(len(normed), -1, -1)
        everything = torch.cat([queries, source, self.text(normed)], dim=1)
        absent = torch.cat([torch.zeros_like(queries[..., 0], dtype=torch.bool), kind == 0, ~mask], dim=1)
        return self.layers(everything, src_key_padding_mask=absent)[:, : SLOTS + 1]


def _fourier_features(places: Tensor) -> Tensor:
    """Fourier features of positions: (..., 2) -> (..., 4 * FREQUENCIES)."""
    angles = places[..., None] * (math.pi * 2.0 ** torch.arange(FREQUENCIES, device=places.device))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=-100)
