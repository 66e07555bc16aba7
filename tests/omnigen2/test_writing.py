"""Texts written at once: each as alone, and as transformers writes it."""

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GenerationConfig, LogitsProcessorList

from omnigen2.checkpoints.load import load_language_model
from omnigen2.network import writing
from omnigen2.network.language import LanguageModel
from omnigen2.network.writing import Text, Writer
from omnigen2.params import Decoding
from tests.omnigen2.golden import PIPELINE

LONG = "and so on " * 80
QUESTIONS = [
    ("what is a dog?", (), Decoding(max_tokens=40, temperature=0.0)),
    ("what is this?", ((64, 96),), Decoding(max_tokens=25, temperature=1.0, seed=3)),
    (f"which one? {LONG}", ((96, 64), (64, 64)), Decoding(max_tokens=60, temperature=0.7, seed=4)),
    ("why?", (), Decoding(max_tokens=1, temperature=0.0)),
    ("what else?", ((64, 64),), Decoding(max_tokens=30, temperature=0.0)),
    (f"how? {LONG}", (), Decoding(max_tokens=12, temperature=1.5, seed=5)),
]
"""Questions with the sizes of their pictures; two of them need more room than the others."""


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    language = load_language_model(PIPELINE / "checkpoint", torch.float32)
    language.mllm.generation_config = GenerationConfig(repetition_penalty=1.2)  # pyright: ignore
    return language


@pytest.fixture(scope="module")
def inputs(language: LanguageModel) -> list[dict[str, Tensor]]:
    torch.manual_seed(0)
    return [
        language.question_inputs([Image.linear_gradient("L").resize(size) for size in sizes], question)
        for question, sizes, _ in QUESTIONS
    ]


@pytest.fixture(scope="module")
def alone(language: LanguageModel, inputs: list[dict[str, Tensor]]) -> list[list[int]]:
    """What transformers writes."""
    return [_generated(language, own, question[2]) for own, question in zip(inputs, QUESTIONS, strict=True)]


def _generated(language: LanguageModel, inputs: dict[str, Tensor], decoding: Decoding) -> list[int]:
    sampler = [writing._Sampler(decoding.temperature, decoding.seed or 0)] if decoding.temperature else []
    with torch.inference_mode():
        output: Any = language.mllm.generate(  # pyright: ignore
            **inputs,
            attention_mask=torch.ones_like(inputs["input_ids"]),
            logits_processor=LogitsProcessorList(sampler),
            generation_config=GenerationConfig(
                max_new_tokens=decoding.max_tokens,
                repetition_penalty=1.2,
                eos_token_id=language._stop_ids(),
                pad_token_id=0,
            ),
        )
    return output[0, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("together", [False, True], ids=["apart", "together"])
def test_texts_in_company_are_those_that_transformers_writes(
    language: LanguageModel, inputs: list[dict[str, Tensor]], alone: list[list[int]], together: bool
) -> None:
    """They join one by one; one is suspended for a while. On a GPU they share a forward."""
    writer = Writer(language, together)
    texts: list[Text] = []
    for step in range(80):
        if step < len(QUESTIONS):
            texts.append(language.begin(inputs[step], QUESTIONS[step][2]))
            writer.add(texts[-1])
        if step == 3:
            writer.set_aside(texts[0])
        if step == 9:
            writer.add(texts[0])
        for text in list(writer.texts):
            if text.done:
                writer.remove(text)
        writer.step()
    assert not writer.texts
    assert [text.written for text in texts] == alone
    assert len(set(map(len, alone))) > 4  # they end at different steps


@pytest.mark.parametrize("together", [False, True], ids=["apart", "together"])
def test_a_step_that_failed_can_be_taken_again(
    language: LanguageModel,
    inputs: list[dict[str, Tensor]],
    alone: list[list[int]],
    together: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    writer = Writer(language, together)
    texts = [language.begin(inputs[n], QUESTIONS[n][2]) for n in (1, 2)]
    for text in texts:
        writer.add(text)
    whole, calls = torch.Tensor.argmax, [0]

    def fail_at_times(*given: Any, **more: Any) -> Tensor:
        calls[0] += 1
        if calls[0] % 3 == 0:
            raise torch.OutOfMemoryError("just now")
        return whole(*given, **more)

    monkeypatch.setattr(torch.Tensor, "argmax", fail_at_times)
    failed = 0
    while not all(text.done for text in texts):
        try:
            writer.step()
        except torch.OutOfMemoryError:
            failed += 1
    assert failed > 5
    assert [text.written for text in texts] == [alone[1], alone[2]]


class Operators(TorchDispatchMode):
    """Notes every operator that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_what_a_gpu_records_reads_nothing_back_and_is_the_same_for_every_token(
    language: LanguageModel, inputs: list[dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing may need the value of a tensor on the host, nor a shape that follows from one."""
    calls: list[list[str]] = []
    whole = writing._Shared.compute

    def noted(self: Any) -> Tensor:
        with Operators() as operators:
            logits = whole(self)
        calls.append(operators.seen)
        return logits

    monkeypatch.setattr(writing._Shared, "compute", noted)
    writer = Writer(language, together=True)
    for n in (0, 1):
        writer.add(language.begin(inputs[n], QUESTIONS[n][2]))
    for _ in range(5):
        writer.step()
    assert len(calls) == 5 and len(calls[0]) > 50 and all(call == calls[0] for call in calls)
    assert not {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "masked_select"} & set(calls[0])


@pytest.mark.gpu
def test_on_a_gpu_texts_come_out_alone_as_in_company() -> None:
    language = load_language_model(PIPELINE / "checkpoint", torch.float32)
    language.mllm.to(torch.device("cuda"))  # pyright: ignore
    wanted = [
        language.completed(language.begin(language.question_inputs([], each[0]), each[2])).written
        for each in QUESTIONS
    ]
    writer = Writer(language)
    texts = [language.begin(language.question_inputs([], each[0]), each[2]) for each in QUESTIONS]
    for text in texts:
        writer.add(text)
    while not all(text.done for text in texts):
        writer.step()
    assert [text.written for text in texts] == wanted
