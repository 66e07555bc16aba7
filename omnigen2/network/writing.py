"""Writing of many texts at once, a token of each at a time.

A `Writer` holds the texts being written. One `step` gives each of them its next token; texts join and leave
between steps. Every text has its own penalty, temperature and seed.

On a CPU each text has a forward of its own, and so comes out as it does alone: products of matrices round
differently with the number of rows, and a text that differs in one token goes on differently. On a GPU, where
a single text leaves it idle, one forward serves all, recorded for each number of rows and length that occurs.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import LogitsProcessor, Qwen2_5_VLForConditionalGeneration, RepetitionPenaltyLogitsProcessor

from omnigen2.memory.device import isolated
from omnigen2.memory.weights import HERE
from omnigen2.network.key_values import KeyValues, Rows, room_for
from omnigen2.network.recorded import Recorded
from omnigen2.params import Decoding

ROWS = 4
"""Least number of texts for which a shared forward computes: on a GPU four take no longer than one."""


class HasModel(Protocol):
    """A language model whose weights may have to come first."""

    mllm: Qwen2_5_VLForConditionalGeneration
    weights: AbstractContextManager[object]

    @property
    def device(self) -> torch.device: ...


class Choice:
    """How the tokens of one text are chosen from their logits."""

    def __init__(self, decoding: Decoding, penalty: float = 1.0):
        """`penalty` is that on tokens that occur in the text or its question (1 is none)."""
        self._processors: list[LogitsProcessor] = []
        if penalty != 1.0:
            self._processors.append(RepetitionPenaltyLogitsProcessor(penalty))
        if decoding.temperature:
            self._processors.append(_Sampler(decoding.temperature, decoding.seed or 0))

    def __call__(self, ids: Tensor, logits: Tensor) -> Tensor:
        """The token (1,) that follows `ids` (1, L), by its logits (1, vocabulary)."""
        scores = logits.to(torch.float32, copy=True)
        for process in self._processors:
            scores = process(ids, scores)  # pyright: ignore[reportArgumentType]
        return scores.argmax(dim=-1)


class _Sampler(LogitsProcessor):
    """Adds Gumbel noise from its own generator, so that the most likely token is a sample (Gumbel-max trick).

    It leaves the global random state alone and gives the same text on every device. Asked again for the same
    token, it adds the same noise.
    """

    def __init__(self, temperature: float, seed: int):
        self.temperature = temperature
        self.generator = torch.Generator("cpu").manual_seed(seed)
        self._length, self._noise = 0, torch.empty(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._length != input_ids.shape[1]:
            uniform = torch.rand(scores.shape, generator=self.generator, dtype=torch.float32, device="cpu")
            self._length, self._noise = input_ids.shape[1], (-uniform.clamp_min(1e-20).log()).log()
        return scores / self.temperature - self._noise.to(scores)


@dataclass(eq=False)
class Text:
    """A text being written.

    `ids` (1, L) int64 are the tokens of the question and those written so far, of which the model has read
    all but the last. `offset` is what rotary positions are ahead of places in the text: an image takes fewer
    positions than tokens. It ends with one of `stops`, or after `limit` tokens.
    """

    ids: Tensor
    offset: int
    kept: KeyValues
    choice: Choice
    stops: Sequence[int]
    limit: int
    written: list[int] = field(default_factory=list[int])

    @property
    def read(self) -> int:
        """Number of tokens that the model has read."""
        return self.ids.shape[1] - 1

    @property
    def done(self) -> bool:
        """Whether there is nothing more to write."""
        return len(self.written) >= self.limit or (bool(self.written) and self.written[-1] in self.stops)

    def add(self, token: int) -> None:
        """Let a token follow."""
        self.ids = torch.cat([self.ids, self.ids.new_tensor([[token]])], dim=1)
        self.written.append(token)


def begin(
    mllm: Qwen2_5_VLForConditionalGeneration,
    inputs: dict[str, Tensor],
    decoding: Decoding,
    stops: Sequence[int],
) -> Text:
    """Read a question, and write the first token. Its `Decoding` is complete.

    `inputs` are `input_ids` (1, L) and, if there are images, what transformers wants of them.
    """
    ids = inputs["input_ids"]
    positions = torch.arange(ids.shape[1], device=ids.device).expand(3, 1, -1)
    if "image_grid_thw" in inputs:
        grid, kinds = inputs["image_grid_thw"], inputs["mm_token_type_ids"]
        positions, _ = mllm.model.get_rope_index(ids, kinds, image_grid_thw=grid)  # pyright: ignore
    kept = KeyValues()
    hidden = mllm.model(
        input_ids=ids,
        position_ids=positions,
        attention_mask=_masks(None),
        past_key_values=kept,
        pixel_values=inputs.get("pixel_values"),
        image_grid_thw=inputs.get("image_grid_thw"),
    ).last_hidden_state
    kept.length = ids.shape[1]
    own = mllm.generation_config
    text = Text(
        ids=ids,
        offset=int(positions.max()) + 1 - ids.shape[1],
        kept=kept,
        choice=Choice(decoding, (own.repetition_penalty if own else None) or 1.0),
        stops=stops,
        limit=decoding.max_tokens or 1,
    )
    text.add(int(text.choice(ids, mllm.lm_head(hidden[:, -1]))))
    return text


class Writer:
    """The texts being written and the language model that writes them."""

    def __init__(self, language: HasModel, together: bool | None = None):
        """`together`: whether one forward serves all texts; None is the better choice for the device."""
        self.texts: list[Text] = []
        self._language = language
        self.together = language.device.type != "cpu" if together is None else together
        """Whether one forward serves all texts."""
        self._row: dict[Text, int] = {}
        self._shared: _Shared | None = None

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._language.device

    def add(self, text: Text) -> None:
        """Let a text join at the next step."""
        self.texts = [*self.texts, text]

    def remove(self, text: Text) -> None:
        """Let a text leave, finished or not."""
        self.texts = [other for other in self.texts if other is not text]
        self._row.pop(text, None)

    def set_aside(self, text: Text) -> None:
        """Let a text leave that joins again later: what was read of it is copied from the shared rows."""
        row = self._row.get(text)
        if row is not None and self._shared is not None:
            text.kept = self._shared.rows.taken(row, text.read)
        self.remove(text)

    def forget(self) -> None:
        """Free the memory that is kept for texts to come, and what was recorded."""
        if not self._row:
            self._shared = None
        elif self._shared is not None:
            self._shared.forget()

    @isolated
    def step(self, chosen: Sequence[Text] | None = None) -> None:
        """Write one more token of some or all texts, if they are not done.

        If it raises, each text has either been given its token or not been touched.
        """
        moving = [text for text in (self.texts if chosen is None else chosen) if not text.done]
        with self._language.weights:
            for texts in [moving] if self.together and moving else [[text] for text in moving]:
                logits = self._all_logits(texts) if self.together else self._logits(texts[0])
                each = zip(texts, logits.split(1), strict=True)
                tokens = [text.choice(text.ids, own) for text, own in each]
                for text, token in zip(texts, torch.cat(tokens).tolist(), strict=True):
                    text.add(token)

    def _logits(self, text: Text) -> Tensor:
        """The logits (1, vocabulary) of the next token of a text."""
        text.kept.length = text.read
        positions = torch.full((3, 1, 1), text.read + text.offset, device=text.ids.device)
        return _next_logits(self._language.mllm, text.ids[:, -1:], positions, text.kept, None)

    def _all_logits(self, texts: Sequence[Text]) -> Tensor:
        """The logits (texts, vocabulary) of the next token of each text, from one forward."""
        shared = self._settled(texts)
        table = torch.zeros(3, shared.rows.count, dtype=torch.int64)
        for text in texts:
            told = text.written[-1], text.read, text.read + text.offset
            table[:, self._row[text]] = torch.tensor(told)
        return shared.logits(table)[[self._row[text] for text in texts]]

    def _settled(self, texts: Sequence[Text]) -> "_Shared":
        """Rows in which every text has its own, with room for one more token."""
        room = room_for(1 + max(text.read for text in texts))
        if self._shared and not self._row and self._shared.rows.room > room:
            self._shared = None  # a longer text, which has left, needed that
        rows = self._shared.rows if self._shared else None
        if rows is None or rows.count < len(self.texts) or rows.room < room:
            layers = [(keys[:0, :, :0], values[:0, :, :0]) for keys, values in texts[0].kept.layers]
            count = 1 << (len(self.texts) - 1).bit_length()
            if rows:
                layers, count, room = rows.layers, max(count, rows.count), max(room, rows.room)
            rows = Rows(layers, max(count, ROWS), room)
            self._shared = _Shared(self._language, rows)
        assert self._shared
        free = [row for row in range(rows.count) if row not in self._row.values()]
        for text in texts:
            if text not in self._row:
                self._row[text] = free.pop(0)
                rows.put(self._row[text], text.kept)
                text.kept = KeyValues()
        return self._shared


class _Shared:
    """The forward of several texts, with memory that stays in place from token to token."""

    def __init__(self, language: HasModel, rows: Rows):
        self.rows = rows
        self._language = language
        self._table = torch.zeros(3, rows.count, dtype=torch.int64, device=language.device)
        self._recorded: Recorded | None = None

    def logits(self, table: Tensor) -> Tensor:
        """Logits (rows, vocabulary). `table` (3, rows): last token, its place and its rotary position."""
        self._table.copy_(table)
        # Weights that come and go are at another place each time.
        if self._language.device.type != "cuda" or self._language.weights is not HERE:
            self._recorded = None
            return self.compute()
        self._recorded = self._recorded or Recorded(self.compute, self._language.device)
        return self._recorded()

    def forget(self) -> None:
        """Drop what was recorded: it takes memory, and reads weights where they were."""
        self._recorded = None

    def compute(self) -> Tensor:
        """The logits from what the table holds."""
        tokens, self.rows.places, positions = self._table.unbind()
        seen = torch.arange(self.rows.room, device=tokens.device) <= self.rows.places[:, None]
        positions = positions.expand(3, 1, -1).mT
        return _next_logits(self._language.mllm, tokens[:, None], positions, self.rows, seen[:, None, None])


def _next_logits(
    mllm: Qwen2_5_VLForConditionalGeneration,
    tokens: Tensor,
    positions: Tensor,
    kept: KeyValues | Rows,
    seen: Tensor | None,
) -> Tensor:
    """Logits (rows, vocabulary) after `tokens` (rows, 1) at rotary `positions` (3, rows, 1).

    `seen` (rows, 1, 1, room) says which of the kept tokens each row looks at; None is all.
    """
    hidden = mllm.model.language_model(
        input_ids=tokens, position_ids=positions, attention_mask=_masks(seen), past_key_values=kept
    ).last_hidden_state
    return mllm.lm_head(hidden[:, -1])


def _masks(seen: Tensor | None) -> dict[str, Any]:
    """The form in which transformers takes a mask as it is; without one, attention is causal."""
    return {"full_attention": seen}
