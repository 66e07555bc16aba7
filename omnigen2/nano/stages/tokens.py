"""nano's tokenizer: one token per word, and one for each fixed part of the chat template.

The chat template is the published one; its fixed parts are single tokens, so that a prompt has two tokens
more than words. Synonyms are replaced by words of the vocabulary (`READ_AS`); all other words outside it
share one token.
"""

import re
from collections.abc import Iterable

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from omnigen2.nano.world import TASKS, example
from omnigen2.nano.world.questions import OUTSIDE
from omnigen2.nano.world.words import READ_AS
from omnigen2.network.language import IMAGE, STOPS, generation_chat
from omnigen2.params import MAX_REFERENCES

UNKNOWN = "<|unknown|>"
PADDING = "<|endoftext|>"
VISION = ("<|vision_start|>", "<|vision_end|>", IMAGE, "<|video_pad|>")
WORDS_FROM = 12_000
"""Examples per task from which the vocabulary is collected."""
PICTURES = ("generate", "edit", "compose")
"""Tasks whose text is a prompt for a picture."""
PROMPTS_FROM = 300
"""Examples of each of them: enough for the common words that they share with questions."""


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text, as the tokenizer splits it."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def vocabulary(sentences: Iterable[str] = ()) -> list[str]:
    """Every word of ShapeWorld's training examples and of further sentences, sorted."""
    read = normalizer().normalize_str
    found = {word for sentence in sentences for word in words(read(sentence))}
    for task in TASKS:
        for number in range(WORDS_FROM):
            drawn = example(task, "train", number)  # pyright: ignore[reportArgumentType]
            found.update(words(read(drawn.text)), words(read(drawn.answer or "")))
    return sorted(found)


def normalizer() -> normalizers.Normalizer:
    """The tokenizer's normalisation: NFKC, lower case, and synonyms replaced (`READ_AS`)."""
    steps = [normalizers.NFKC(), normalizers.Replace("\u2019", "'"), normalizers.Lowercase()]
    for plain, others in READ_AS.items():
        steps.append(normalizers.Replace(Regex(rf"\b(?:{'|'.join(others)})\b"), plain))
    return normalizers.Sequence(steps)


def make_tokenizer(known: Iterable[str], phrases: Iterable[str] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of these words. `phrases` become single tokens that keep their spelling."""
    header = generation_chat(UNKNOWN).partition(UNKNOWN)[0]
    special = [PADDING, UNKNOWN, *VISION, header, "<|im_end|>", "\n", "<|im_start|>assistant\n", *STOPS]
    special += [f"<img{n}>:" for n in range(1, MAX_REFERENCES + 1)]
    special = list(dict.fromkeys(special))
    ids = {word: number for number, word in enumerate([*special, *phrases, *known])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(phrase, normalized=False, single_word=True) for phrase in phrases])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        pad_token=PADDING,
        eos_token="<|im_end|>",
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def with_unknown_word(text: str, rng: np.random.Generator) -> str:
    """The text with the unknown token at a random position: users write words outside any vocabulary."""
    parts = text.split()
    parts.insert(int(rng.integers(len(parts) + 1)), UNKNOWN)
    return " ".join(parts)


def known_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The vocabulary of a tokenizer without punctuation, numbers and parts of the chat template, sorted."""
    return sorted(word for word in tokenizer.get_vocab() if re.fullmatch(r"[^\W\d_]+", word))


def prompt_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The known words but those that are there for questions nobody can answer: `cat` is read, not drawn."""
    read = normalizer().normalize_str
    drawn = [example(task, "train", number).text for task in PICTURES for number in range(PROMPTS_FROM)]  # pyright: ignore[reportArgumentType]
    prompts = {word for text in drawn for word in words(read(text))}
    outside = {word for question in OUTSIDE for word in words(read(question))} - prompts
    return [word for word in known_words(tokenizer) if word not in outside]
