"""Qwen2.5-VL: prompts to features that condition the transformer, and images to text.

The chat strings are the reference's, built here and not from a checkpoint's template. The tokenizer and the
PIL image processor are used separately, because the library's combined processor needs torchvision.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL.Image import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessorPil

from omnigen2.memory.device import isolated
from omnigen2.memory.weights import HERE, with_weights
from omnigen2.network.autoencoder import flatten
from omnigen2.network.writing import Text, Writer, begin
from omnigen2.params import Decoding, InvalidTask

SYSTEM = "You are a helpful assistant that generates high-quality images based on user instructions."
STOPS = ("<|im_end|>", "<|img|>", "<|endoftext|>")
IMAGE = "<|image_pad|>"


def generation_chat(prompt: str) -> str:
    """The chat string that conditions a picture."""
    return f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n"


def question_chat(question: str, images: int) -> str:
    """The chat string of a question about numbered images, up to where the answer starts."""
    numbered = "".join(f"<img{n}>: <|vision_start|>{IMAGE}<|vision_end|>" for n in range(1, images + 1))
    return f"{generation_chat(numbered + question)}<|im_start|>assistant\n"


@dataclass(frozen=True, eq=False)
class Caption:
    """Features of a prompt: (L, text_feat_dim); `cut` says that the prompt was longer than the limit."""

    features: Tensor
    cut: bool


class LanguageModel:
    """The multimodal language model with its tokenizer and image processor."""

    def __init__(
        self,
        mllm: Qwen2_5_VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Qwen2VLImageProcessorPil,
    ):
        self.mllm = mllm
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.weights = HERE

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.mllm.device

    def read(self, text: str) -> str:
        """The text as the tokenizer reads it before it is split; nano's reads some words as others."""
        normalizer = self.tokenizer.backend_tokenizer.normalizer  # pyright: ignore
        return normalizer.normalize_str(text) if normalizer else text

    @isolated
    @with_weights
    def encode(self, prompt: str, max_tokens: int) -> Caption:
        """The last hidden state (after the final norm) of the chat string, cut after `max_tokens` tokens."""
        ids = self.tokenizer(generation_chat(prompt))["input_ids"]
        kept = torch.tensor([ids[:max_tokens]], device=self.mllm.device)
        features = self.mllm.model.language_model(input_ids=kept).last_hidden_state[0]
        return Caption(features, cut=len(ids) > max_tokens)

    @isolated
    def question_inputs(self, images: Sequence[Image], question: str) -> dict[str, Tensor]:
        """What the model needs to answer: token ids (1, L), and the images' patches if there are any."""
        chat = question_chat(question.replace(IMAGE, ""), len(images))
        device = self.mllm.device
        if not images:
            return {"input_ids": torch.tensor([self.tokenizer(chat)["input_ids"]], device=device)}
        try:
            pictures = self.image_processor(images=[flatten(image) for image in images], return_tensors="pt")
        except ValueError as error:  # a picture far too long for its width
            raise InvalidTask(f"images: {error}") from error
        merged = self.image_processor.merge_size**2
        pieces = chat.split(IMAGE)
        text = pieces[0]
        for grid, piece in zip(pictures["image_grid_thw"], pieces[1:], strict=True):
            text += IMAGE * (int(grid.prod()) // merged) + piece
        ids = torch.tensor([self.tokenizer(text)["input_ids"]], device=device)
        return {
            "input_ids": ids,
            "pixel_values": pictures["pixel_values"].to(device, self.mllm.dtype),
            "image_grid_thw": pictures["image_grid_thw"].to(device),
            # Without it transformers 5 places the images wrongly and raises nothing.
            "mm_token_type_ids": (ids == self.mllm.config.image_token_id).int(),
        }

    @isolated
    @with_weights
    def begin(self, inputs: dict[str, Tensor], decoding: Decoding) -> Text:
        """A text that follows the inputs, up to its first token; a `Writer` goes on with it."""
        return begin(self.mllm, inputs, decoding, self._stop_ids())

    @with_weights
    def completed(self, text: Text) -> Text:
        """A begun text, written to its end."""
        writer = Writer(self)
        writer.add(text)
        while not text.done:
            writer.step()
        return text

    def read_out(self, text: Text) -> str:
        """What was written, without special tokens."""
        return str(self.tokenizer.decode(text.written, skip_special_tokens=True)).strip()

    def _stop_ids(self) -> list[int]:
        vocabulary = self.tokenizer.get_vocab()
        return [vocabulary[token] for token in STOPS if token in vocabulary]
