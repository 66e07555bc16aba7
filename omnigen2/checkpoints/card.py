"""The model card: what a checkpoint is, what it decides by default and where its limits are.

Read from `card.json` beside the weights where the checkpoint has one (nano), otherwise the published
model's own values. Needs neither weights nor torch: tools are described while the model is still loading.
"""

import json
import re
from pathlib import Path

from pydantic import Field, ValidationError

from omnigen2.explain import explain
from omnigen2.params import MAX_REFERENCES, Decoding, Params, ReferenceSampling

CARD_FILE = "card.json"


class Defaults(Params):
    """What the model decides when a request leaves a field open, per ability."""

    text_to_image: ReferenceSampling
    edit: ReferenceSampling
    compose: ReferenceSampling
    describe: Decoding


class Limits(Params):
    """What the model can take."""

    # The values are inference.py's and its pipeline's: max_input_image_pixels and max_pixels are 1024 x 1024,
    # max_input_image_side_length is 1024, and a prompt is cut after max_sequence_length = 1024 tokens.
    max_pixels: int = Field(default=1024 * 1024, ge=256)
    """Pixels of the denoised picture; a larger request is denoised at this size and enlarged afterwards."""
    max_input_side: int = Field(default=1024, ge=16)
    """Longest side in pixels to which a reference image is reduced before it is encoded."""
    max_side: int = Field(default=4096, ge=16)
    """Longest side in pixels of a result."""
    max_references: int = Field(MAX_REFERENCES, ge=0, le=MAX_REFERENCES)
    """Most reference images in one request."""
    max_text_tokens: int = Field(default=1024, ge=1)
    """Tokens of the chat string beyond which a prompt is cut."""


class Advice(Params):
    """How to ask the model, in plain sentences for whoever writes the prompts."""

    prompts: str = ""
    """For every prompt and instruction."""
    text_to_image: str = ""
    edit: str = ""
    compose: str = ""
    describe: str = ""
    min_input_side: int = Field(default=0, ge=0)
    """Pixels of the shorter side of an input image below which the result has a note."""


class ModelCard(Params):
    """Identity, defaults and limits of one checkpoint."""

    id: str
    """The name by which the model is asked for: a repository id, a folder's name, or `nano`."""
    title: str
    """The name people read."""
    about: str
    """One or two sentences: what the model can do and what it cannot."""
    vocabulary: tuple[str, ...] = ()
    """Words that prompts may have; empty for an open vocabulary. A prompt with other words gets a note."""
    advice: Advice = Advice.model_construct()
    digest: str | None = None
    """`sha256:<hex>` over the weight files, as published with the checkpoint; checked when it is loaded."""
    quantize: str = "none"
    """How the weights of its blocks are kept here (`omnigen2.memory.placement`); no card.json decides it."""
    defaults: Defaults
    limits: Limits = Limits.model_construct()

    def defaults_for(self, references: int) -> ReferenceSampling:
        """The sampling defaults of a request with that many reference images.

        Complete but for the seed, and for the size of an edit, which is the input's.
        """
        return (self.defaults.text_to_image, self.defaults.edit, self.defaults.compose)[min(references, 2)]

    def unknown_words(self, prompt: str) -> list[str]:
        """Words outside the vocabulary, in order, of a prompt as `LanguageModel.read` gives it.

        None where the vocabulary is open.
        """
        if not self.vocabulary:
            return []
        words = re.findall(r"[^\W\d_]+", prompt.lower())
        return [word for word in dict.fromkeys(words) if word not in self.vocabulary]


def read_card(folder: Path, model_id: str) -> ModelCard:
    """The card of the checkpoint in `folder`.

    Raises:
        ValueError: `card.json` is there and is not a valid card.
    """
    path = folder / CARD_FILE
    if not path.is_file():
        return published_card(model_id)
    own = {"id": model_id, "quantize": "none"}
    try:
        return ModelCard.model_validate(json.loads(path.read_text(encoding="utf-8")) | own)
    except ValidationError as error:
        raise ValueError(f"model: {path} is not a valid model card: {explain(error, ModelCard)}") from None
    except ValueError as error:
        raise ValueError(f"model: {path} is not JSON ({error})") from None


NEGATIVE_PROMPT = (
    "(((deformed))), blurry, over saturation, bad anatomy, disfigured, poorly drawn face, mutation, mutated, "
    "(extra_limb), (ugly), (poorly drawn hands), fused fingers, messy drawing, broken legs censor, censored, "
    "censor_bar"
)
"""Default of `--negative_prompt` in the authors' `inference.py`; their usage tips advise keeping it."""


# After the usage tips and the limitations in the README of the reference.
ADVICE = Advice(
    prompts=(
        "Write in English. Say what to make or change and also how it should look; a long, concrete prompt "
        "beats a short one. Where a likeness matters make several (num_images) and choose. A narrower "
        "cfg_range, such as [0, 0.6], is the cheap way to be faster."
    ),
    edit=(
        "Give sharp images of 512 pixels and more, and an image_guidance_scale from 1.2 (more change) to 2.0 "
        "(more of the image)."
    ),
    compose=(
        "image_guidance_scale 2.5 to 3.0, higher for more likeness. To change one image by means of another "
        'begin with "Edit the first image: ..."; the result then has its size.'
    ),
    min_input_side=512,
)


def published_card(model_id: str) -> ModelCard:
    """The card of OmniGen2 as published, with the defaults of its authors.

    Those are the defaults of their command line, `inference.py`; it has one set for every ability, so where
    the usage tips of their README advise otherwise for one of them, the tips count.
    """
    text_to_image = ReferenceSampling(
        negative_prompt=NEGATIVE_PROMPT,
        width=1024,  # inference.py: --width, --height
        height=1024,
        num_images=1,  # inference.py: --num_images_per_prompt
        steps=50,  # inference.py: --num_inference_step
        text_guidance_scale=5.0,  # inference.py: --text_guidance_scale
        image_guidance_scale=1.0,  # without images their pipeline counts it as 1, whatever is asked for
        cfg_range=(0.0, 1.0),  # inference.py: --cfg_range_start, --cfg_range_end
        scheduler="euler",  # inference.py: --scheduler
        speed="exact",  # inference.py has no approximation
    )
    edit = text_to_image.model_copy(
        update={
            "width": None,  # usage tips: a single image decides the size
            "height": None,
            "image_guidance_scale": 2.0,  # inference.py; usage tips: 1.2 to 2.0
        }
    )
    # Usage tips: 2.5 to 3.0 where images are put together, to keep their details; inference.py has 2.0.
    compose = text_to_image.model_copy(update={"image_guidance_scale": 2.5})
    return ModelCard(
        id=model_id,
        title="OmniGen2",
        about="Makes, edits and composes pictures from text in any style, and describes images.",
        advice=ADVICE,
        defaults=Defaults(
            text_to_image=text_to_image,
            edit=edit,
            compose=compose,
            # Their chat generates at most 256 tokens; greedily here, so that a question has one answer.
            describe=Decoding(max_tokens=256, temperature=0.0),
        ),
    )
