"""Prompts to features and images to text, against the reference."""

import pytest
import torch
from PIL import Image

from omnigen2.checkpoints.load import load_language_model
from omnigen2.network.language import LanguageModel, generation_chat, question_chat
from omnigen2.params import Decoding
from tests.omnigen2.golden import BAR, PIPELINE, STEPS, described, error, names, needs_steps, tensors

CHATS = names(STEPS / "cases", "chat_text")


@pytest.fixture(scope="module")
def language() -> LanguageModel:
    return load_language_model(PIPELINE / "checkpoint", torch.float32)


@pytest.mark.golden
def test_prompts_become_the_features_of_the_reference(language: LanguageModel) -> None:
    stored = tensors(PIPELINE / "prompt_encoding")
    case = described(PIPELINE / "cases")["cases"]["prompt_encoding"]
    wanted = [
        *zip(case["prompts"], stored["embeds"], stored["mask"], strict=True),
        (case["negative_prompt"], stored["negative_embeds"][0], stored["negative_mask"][0]),
    ]
    assert [generation_chat(prompt) for prompt in case["prompts"]] == case["chat_strings"]
    for prompt, features, mask in wanted:
        assert error(language.encode(prompt, 1024).features, features[: int(mask.sum())]) < BAR


@pytest.mark.golden
@needs_steps
@pytest.mark.parametrize("name", CHATS)
def test_chats_have_the_token_ids_of_the_reference(name: str) -> None:
    language = load_language_model(STEPS / "tiny_omnigen2", torch.float32)
    case, stored = described(STEPS / "cases" / name), tensors(STEPS / "cases" / name)
    pictures = [Image.open(STEPS / "images" / f"{image}.png") for image in case["images"]]
    question = case["args"]["prompt"]
    assert question_chat(question, len(pictures)) == case["prompt_text"]
    inputs = language.question_inputs(pictures, question)
    assert torch.equal(inputs["input_ids"], stored["mllm.input_ids"])
    if pictures:
        assert torch.equal(inputs["image_grid_thw"], stored["mllm.image_grid_thw"])
        assert error(inputs["pixel_values"], stored["mllm.pixel_values"]) < 1e-2  # 8-bit resizing differs
        inputs["pixel_values"] = stored["mllm.pixel_values"]
    wanted = stored["mllm.generated_ids"][0, inputs["input_ids"].shape[1] :].tolist()
    decoding = Decoding(max_tokens=len(wanted), temperature=0.0)
    assert language.completed(language.begin(inputs, decoding)).written == wanted


def test_the_place_of_images_reaches_the_model(language: LanguageModel) -> None:
    """transformers 5 numbers image tokens as text, silently, if `mm_token_type_ids` is absent."""
    inputs = language.question_inputs([Image.effect_noise((64, 96), 80)], "what is this")
    assert (
        inputs["mm_token_type_ids"].sum()
        == (inputs["input_ids"] == language.mllm.config.image_token_id).sum()
    )
    placed, _ = language.mllm.model.get_rope_index(  # pyright: ignore
        inputs["input_ids"], inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"]
    )
    assert not torch.equal(placed[1], placed[2])
    with torch.no_grad():
        right = language.mllm(**inputs).logits
        wrong = language.mllm(**{k: v for k, v in inputs.items() if k != "mm_token_type_ids"}).logits
    assert error(wrong, right) > 1e-3


def test_a_long_prompt_is_cut_at_a_token(language: LanguageModel) -> None:
    whole = language.encode("a red circle " * 40, 4096)
    cut = language.encode("a red circle " * 40, 50)
    assert not whole.cut and cut.cut
    assert error(cut.features, whole.features[:50]) < 1e-5


def test_a_question_about_several_images_numbers_them() -> None:
    assert "<img1>: <|vision_start|>" in question_chat("which?", 2)
    assert "<img2>: <|vision_start|>" in question_chat("which?", 2)


def test_an_answer_at_some_temperature_follows_its_seed(language: LanguageModel) -> None:
    def ask(seed: int) -> list[int]:
        decoding = Decoding(max_tokens=12, temperature=1.0, seed=seed)
        return language.completed(language.begin(language.question_inputs([], "what?"), decoding)).written

    state = torch.get_rng_state()
    assert ask(1) == ask(1) != ask(2)
    assert torch.equal(state, torch.get_rng_state())
