"""The model as a library: text to image, edits, compositions and descriptions through two methods.

`prepare` turns a task into samples, `Denoiser` moves them, `finish` decodes them; `generate` does all three
in the calling thread, the engine (`omnigen2.engine`) does them for many tasks at once.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from PIL.Image import Image
from pydantic import ValidationError
from torch import Tensor

from omnigen2 import checkpoint, hub, lora
from omnigen2.autoencoder import Autoencoder, flatten
from omnigen2.card import Limits, ModelCard, read_card
from omnigen2.denoise import Denoiser, Sample
from omnigen2.device import pick_device, pick_dtype
from omnigen2.guidance import Branch, schedule_weights
from omnigen2.language import Caption, LanguageModel
from omnigen2.memo import Memo
from omnigen2.params import MAX_SEED, Decoding, ReferenceSampling, explain
from omnigen2.schedule import plan
from omnigen2.task import ImageTask
from omnigen2.transformer import Condition, OmniGen2Transformer2DModel, patchify, unpatchify

REMEMBERED_PROMPTS = 256
REMEMBERED_IMAGES = 64

OnStep = Callable[[int, int, Tensor], None]


class Pictures(list[Image]):
    """The pictures of a request, with the `seed` that made the first one and `notes` for the user.

    Picture i was made with the seed `seed + i`: asked for alone with that seed, it comes out the same.
    """

    def __init__(self, pictures: Sequence[Image], seed: int | None, notes: Sequence[str]):
        super().__init__(pictures)
        self.seed = seed
        self.notes = tuple(notes)


class OmniGen2:
    """A loaded checkpoint. Not safe for use by several threads at once; the engine serialises that."""

    def __init__(
        self,
        transformer: OmniGen2Transformer2DModel,
        autoencoder: Autoencoder,
        language: LanguageModel,
        card: ModelCard,
    ):
        self.transformer = transformer
        self.autoencoder = autoencoder
        self.language = language
        self.card = card
        self._captions: Memo[Caption] = Memo(REMEMBERED_PROMPTS)
        self._references: Memo[Tensor] = Memo(REMEMBERED_IMAGES)

    @classmethod
    def load(cls, source: str, *, device: str = "auto", dtype: str = "auto") -> "OmniGen2":
        """See `omnigen2.load`."""
        folder = hub.resolve(source)
        checkpoint.check_layout(folder)
        place = pick_device(device)
        kind = pick_dtype(dtype, place)
        card = read_card(folder, source)
        _check_digest(folder, card)
        transformer = checkpoint.load_transformer(folder, kind).eval()
        transformer.to(place)  # pyright: ignore
        model = cls(
            transformer,
            checkpoint.load_autoencoder(folder, kind, transformer.config["patch_size"]),
            checkpoint.load_language_model(folder, kind),
            card,
        )
        model.autoencoder.vae.to(place)  # pyright: ignore
        model.language.mllm.to(place)  # pyright: ignore
        return model

    def generate(
        self,
        prompt: str | Sequence[str],
        images: Sequence[Image] | Sequence[Sequence[Image]] = (),
        *,
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        num_images: int | None = None,
        steps: int | None = None,
        seed: int | None = None,
        noise: Tensor | None = None,
        text_guidance_scale: float | None = None,
        image_guidance_scale: float | None = None,
        cfg_range: tuple[float, float] | None = None,
        scheduler: str | None = None,
        speed: str | None = None,
        lora: str | Path | None = None,
        max_pixels: int | None = None,
        max_input_side: int | None = None,
        output: Literal["pil", "latents"] = "pil",
        on_step: OnStep | None = None,
    ) -> "Pictures | Tensor":
        """Make pictures: no image is text to image, one is an edit, two to five are a composition.

        What is None is the model card's default (for OmniGen2: 50 steps, 1024 x 1024; an edit has its input's
        size). `prompt` may be a list, `images` then holds one list per prompt; all are made together.
        `noise` (n, C, h, w) float32 overrides `seed`. `on_step(index, total, latents)` is called after every
        step with latents (n, C, h, w) and may raise to cancel. `output="latents"` gives the final latents
        (n, C, h, w) float32 instead of pictures.

        Raises:
            ValueError: a parameter is out of bounds; the message names the field, the value, what is allowed.
        """
        asked: dict[str, object] = {
            "negative_prompt": negative_prompt,
            "width": width,
            "height": height,
            "num_images": num_images,
            "steps": steps,
            "seed": seed,
            "text_guidance_scale": text_guidance_scale,
            "image_guidance_scale": image_guidance_scale,
            "cfg_range": cfg_range,
            "scheduler": scheduler,
            "speed": speed,
        }
        prompts, image_lists = _pair(prompt, images)
        limits = self._limits(max_pixels, max_input_side)
        if noise is not None and num_images is None:
            asked["num_images"] = len(noise) // len(prompts)
        tasks = [
            self.image_task(text, pictures, asked, lora)
            for text, pictures in zip(prompts, image_lists, strict=True)
        ]
        if output not in ("pil", "latents"):
            raise ValueError(f"output: {output!r} is unknown; allowed: pil, latents")
        return self._run(tasks, limits, noise, output, on_step)

    def image_task(
        self, prompt: str, images: Sequence[Image], asked: dict[str, object], lora: str | Path | None = None
    ) -> ImageTask:
        """A complete task from what was asked; the seed is drawn if there is none.

        Raises:
            ValueError: as `generate`.
        """
        if len(images) > self.card.limits.max_references:
            raise ValueError(
                f"images: {len(images)} given; at most {self.card.limits.max_references} are allowed"
            )
        try:
            sampling = ReferenceSampling.model_validate(asked)
        except ValidationError as error:
            raise ValueError(explain(error)) from None
        defaults = self.card.defaults_for(len(images))
        if sampling.seed is None:
            sampling = sampling.model_copy(update={"seed": secrets.randbelow(MAX_SEED)})
        return ImageTask(prompt, tuple(images), sampling.filled(defaults), lora and str(lora))

    def describe(
        self,
        images: Sequence[Image],
        question: str,
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
    ) -> str:
        """Text about the images, in answer to the question.

        Raises:
            ValueError: no question, more than 5 images, or a parameter out of bounds.
        """
        if len(images) > self.card.limits.max_references:
            raise ValueError(
                f"images: {len(images)} given; at most {self.card.limits.max_references} are allowed"
            )
        try:
            asked = Decoding(max_tokens=max_tokens, temperature=temperature, seed=seed)
        except ValidationError as error:
            raise ValueError(explain(error)) from None
        _check_text("question", question)
        decoding = asked.filled(self.card.defaults.describe)
        if decoding.seed is None:
            decoding = decoding.model_copy(update={"seed": secrets.randbelow(MAX_SEED)})
        return self.language.answer([_readable(image) for image in images], question, decoding)

    # -- the stages of making pictures, also used by the engine ---

    def prepare(
        self, task: ImageTask, limits: Limits | None = None, noise: Tensor | None = None
    ) -> tuple[list[Sample], list[str]]:
        """Encode a task into one sample per picture, and notes for the user.

        `noise` (num_images, C, h, w) float32 overrides the seed.

        Raises:
            ValueError: an empty prompt, an unreadable image, an impossible size, noise of another shape.
        """
        limits = limits or self.card.limits
        sampling = task.sampling
        _check_text("prompt", task.prompt)
        if sampling.speed != "exact":
            raise ValueError(f"speed: {sampling.speed!r} is not offered by this model; allowed: exact")
        references = self.encode_references([_readable(image) for image in task.images], limits)
        height, width = self._latent_size(task, references, limits)
        weights = schedule_weights(sampling, bool(references))
        captions = {
            True: self.caption(task.prompt, limits),
            False: self.caption(sampling.negative_prompt or "", limits),
        }
        conditions = self._conditions({b for w in weights for b in w}, captions, references, (height, width))
        channels = self.transformer.config["in_channels"]
        start = _noise(task, (channels, height, width)) if noise is None else noise.float()
        if start.shape != (sampling.num_images, channels, height, width):
            raise ValueError(
                f"noise: shape {list(start.shape)} given; "
                f"this request needs {[sampling.num_images, channels, height, width]}"
            )
        steps = plan(sampling.scheduler or "euler", len(weights), height * width)
        patch = self.transformer.config["patch_size"]
        tokens = patchify(start, patch).to(self.transformer.device)
        return [Sample(own, conditions, weights, steps) for own in tokens], self._notes(task, captions[True])

    def finish(self, task: ImageTask, samples: Sequence[Sample], limits: Limits | None = None) -> list[Image]:
        """Decode finished samples to pictures of the size that was asked for."""
        size = self._requested_size(task, limits or self.card.limits)
        return [self.autoencoder.decode(self.latents(sample), size) for sample in samples]

    def latents(self, sample: Sample) -> Tensor:
        """The current latents (C, h, w) of a sample."""
        return unpatchify(sample.tokens, sample.grid, self.transformer.config["patch_size"])

    def preview(self, sample: Sample) -> Image:
        """A small picture of what the sample will become."""
        return self.autoencoder.preview(
            unpatchify(sample.estimate, sample.grid, self.transformer.config["patch_size"])
        )

    def encode_references(self, images: Sequence[Image], limits: Limits) -> list[Tensor]:
        """Latents (C, h, w) of each reference image; equal pictures are encoded once."""
        bounds = (limits.max_pixels, limits.max_input_side)

        def encode(image: Image) -> Tensor:
            image = flatten(image)
            key = (hashlib.sha256(image.tobytes()).digest(), image.size, bounds)
            return self._references.get(key, lambda: self.autoencoder.encode(image, *bounds))

        return [encode(image) for image in images]

    def caption(self, prompt: str, limits: Limits) -> Caption:
        """Features of a prompt; equal prompts are encoded once."""
        most = limits.max_text_tokens
        return self._captions.get((prompt, most), lambda: self.language.encode(prompt, most))

    def _run(
        self,
        tasks: Sequence[ImageTask],
        limits: Limits,
        noise: Tensor | None,
        output: str,
        on_step: OnStep | None,
    ) -> "Pictures | Tensor":
        lora.use(self.transformer, tasks[0].lora)
        prepared: list[list[Sample]] = []
        notes: list[str] = []
        parts = [None] * len(tasks) if noise is None else _split_noise(noise, len(tasks))
        for task, part in zip(tasks, parts, strict=True):
            samples, said = self.prepare(task, limits, part)
            prepared.append(samples)
            notes += said
        everything = [sample for samples in prepared for sample in samples]
        denoiser = Denoiser(self.transformer)
        denoiser.add(everything)
        while denoiser.samples:
            denoiser.step()
            if on_step:
                on_step(everything[0].index - 1, len(everything[0].plan), self._stack(everything))
        if output == "latents":
            return self._stack(everything)
        pictures = [
            image
            for task, samples in zip(tasks, prepared, strict=True)
            for image in self.finish(task, samples, limits)
        ]
        return Pictures(
            pictures, None if noise is not None else tasks[0].sampling.seed, list(dict.fromkeys(notes))
        )

    def _stack(self, samples: Sequence[Sample]) -> Tensor:
        return torch.stack([self.latents(sample) for sample in samples])

    @torch.inference_mode()
    def _conditions(
        self,
        branches: set[Branch],
        captions: dict[bool, Caption],
        references: list[Tensor],
        size: tuple[int, int],
    ) -> dict[Branch, Condition]:
        """What each branch sees; `captions` maps whether it is the prompt to the encoded text."""
        order = sorted(branches)
        dtype = self.transformer.dtype
        own = [reference.to(dtype) for reference in references]
        made = self.transformer.conditions(
            [captions[branch == Branch.FULL].features.to(dtype) for branch in order],
            [[] if branch == Branch.BARE else own for branch in order],
            [size] * len(order),
        )
        return dict(zip(order, made, strict=True))

    def _requested_size(self, task: ImageTask, limits: Limits) -> tuple[int, int] | None:
        """The (width, height) asked for, in pixels, or None where the reference image decides.

        With one side given for an edit, the other one follows the input's shape.
        """
        width, height = task.sampling.width, task.sampling.height
        ratio = task.images[0].width / task.images[0].height if task.images else 1.0
        if width is None:
            if height is None:
                return None
            width = round(height * ratio)
        elif height is None:
            height = round(width / ratio)
        if max(width, height) > limits.max_side:
            raise ValueError(
                f"size: {width} x {height} pixels asked for; a side may have at most {limits.max_side} pixels"
            )
        return width, height

    def _latent_size(self, task: ImageTask, references: list[Tensor], limits: Limits) -> tuple[int, int]:
        """Height and width of the latents to make."""
        size = self._requested_size(task, limits)
        if size is None:
            return references[0].shape[-2], references[0].shape[-1]
        width, height = self.autoencoder.fit(*size, limits.max_pixels)
        return height // self.autoencoder.factor, width // self.autoencoder.factor

    def _limits(self, max_pixels: int | None, max_input_side: int | None) -> Limits:
        asked = {"max_pixels": max_pixels, "max_input_side": max_input_side}
        given = {name: value for name, value in asked.items() if value is not None}
        try:
            return Limits.model_validate(self.card.limits.model_dump() | given)
        except ValidationError as error:
            raise ValueError(explain(error)) from None

    def _notes(self, task: ImageTask, caption: Caption) -> list[str]:
        notes = []
        if caption.cut:
            limit = self.card.limits.max_text_tokens
            notes.append(f"The prompt was longer than {limit} tokens; what came after was ignored.")
        unknown = self.card.unknown_words(task.prompt)
        if unknown:
            notes.append(f"{self.card.title} does not know: {', '.join(unknown)}. {self.card.about}")
        return notes


def _check_digest(folder: Path, card: ModelCard) -> None:
    if card.digest is not None and (found := hub.weights_digest(folder)) != card.digest:
        raise ValueError(
            f"weights in {folder} have digest {found}, its card.json says {card.digest}: "
            "they were changed or damaged; fetch them again"
        )


def _check_text(field: str, text: str) -> None:
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{field}: {text!r} given; it must be a text that is not empty")


def _readable(image: Image) -> Image:
    if not isinstance(image, Image):
        raise ValueError(f"images: {type(image).__name__} given; each must be a PIL image")
    try:
        image.load()
    except Exception as error:  # decoders raise whatever they like on broken bytes
        raise ValueError(f"images: an image cannot be read ({error}); give a complete image") from error
    return image


def _pair(
    prompt: str | Sequence[str], images: Sequence[Image] | Sequence[Sequence[Image]]
) -> tuple[list[str], list[list[Image]]]:
    """One list of images per prompt."""
    if isinstance(prompt, str):
        return [prompt], [list(images)]  # pyright: ignore
    lists = [list(own or ()) for own in images] or [[] for _ in prompt]  # pyright: ignore
    if len(lists) != len(prompt) or not prompt:
        raise ValueError(
            f"images: {len(lists)} lists given for {len(prompt)} prompts; give one list per prompt"
        )
    return list(prompt), lists


def _noise(task: ImageTask, shape: tuple[int, int, int]) -> Tensor:
    """(num_images, C, h, w): each picture's noise from its own generator, on the CPU, the same everywhere."""
    seed, count = task.sampling.seed, task.sampling.num_images
    assert seed is not None and count is not None
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(seed + index)) for index in range(count)]
    )


def _split_noise(noise: Tensor, tasks: int) -> Sequence[Tensor]:
    if noise.ndim != 4 or len(noise) % tasks:
        raise ValueError(
            f"noise: shape {list(noise.shape)} given; "
            f"it must be (n, C, h, w), n a multiple of the {tasks} prompts"
        )
    return noise.chunk(tasks)
