"""The model as a library: text to image, edits, compositions and descriptions through two methods.

Checks what is asked, completes it with the card's defaults and runs the pipeline in the calling thread.
Serving many requests at once is the engine's business (`omnigen2.engine`).
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from PIL.Image import Image
from pydantic import ValidationError
from torch import Tensor

from omnigen2 import lora, threads
from omnigen2.adapter import Adapter
from omnigen2.checkpoints import load, locate
from omnigen2.checkpoints.card import Limits, ModelCard, read_card
from omnigen2.denoise import Denoiser, Sample
from omnigen2.device import pick_device, pick_dtype
from omnigen2.explain import explain
from omnigen2.guidance import without_effect
from omnigen2.params import MAX_SEED, Decoding, P, ReferenceSampling
from omnigen2.pipeline import Pipeline, readable
from omnigen2.sizes import sized
from omnigen2.task import ImageTask, TextTask

OnStep = Callable[[int, int, "Tensor | list[Tensor]"], None]


class Pictures(list[Image]):
    """The pictures of a request, with the `seed` that made the first one and `notes` for the user.

    Picture i was made with the seed `seed + i`: asked for alone with that seed, it comes out the same (on a
    GPU, up to rounding).
    """

    def __init__(self, pictures: Sequence[Image], seed: int | None, notes: Sequence[str]):
        super().__init__(pictures)
        self.seed = seed
        self.notes = tuple(notes)


class OmniGen2:
    """A loaded checkpoint. Not safe for use by several threads at once; the engine serialises that."""

    def __init__(self, pipeline: Pipeline):
        self.pipeline = pipeline
        self.card = pipeline.card

    @classmethod
    def load(cls, source: str, *, device: str = "auto", dtype: str = "auto") -> "OmniGen2":
        """See `omnigen2.load`."""
        folder = locate.resolve(source)
        load.check_layout(folder)
        place = pick_device(device)
        kind = pick_dtype(dtype, place)
        card = _identified(read_card(folder, source), folder)
        transformer = load.load_transformer(folder, kind).eval()
        autoencoder = load.load_autoencoder(folder, kind, transformer.config["patch_size"])
        language = load.load_language_model(folder, kind)
        load.check_fit(transformer, autoencoder, language)
        for part in (transformer, autoencoder.vae, language.mllm):
            load.place(part, place)
        if locate.weights_digest(folder) != card.digest:
            raise ValueError(f"the files in {folder} were changed while they were loaded; try again")
        return cls(Pipeline(transformer, autoencoder, language, card))

    @cached_property
    def threads(self) -> int:
        """The threads of the CPU that pay for a model of this size, measured at first use; all, on a GPU."""
        transformer = self.pipeline.transformer
        if transformer.device.type != "cpu":
            return threads.ALL
        return threads.worthwhile(threads.layer_seconds(transformer))

    def generate(
        self,
        prompt: str | Sequence[str],
        images: Sequence[Image] | Sequence[Sequence[Image] | None] | None = (),
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
    ) -> "Pictures | Tensor | list[Tensor]":
        """Make pictures: no image is text to image, one is an edit, two to five are a composition.

        What is None is the model card's default (for OmniGen2: 50 steps, 1024 x 1024; an edit has its input's
        size, or if `max_pixels` or `max_input_side` is given the size within it). `prompt` may be a list,
        `images` then holds one list per prompt; all are made together.
        `noise` (n, C, h, w) float32 overrides `seed`, and gives the size if none is asked for.
        `on_step(index, total, latents)` is called after every step and may raise to cancel.
        `output="latents"` gives the final latents instead of pictures. Latents are (n, C, h, w) float32, or a
        list of (C, h, w) if the prompts of a list make different sizes.

        Raises:
            ValueError: a parameter is out of bounds; the message names the field, the value, what is allowed.
            FileNotFoundError: there is no such LoRA.
        """
        asked: dict[str, object] = {
            "negative_prompt": negative_prompt,
            "width": width,
            "height": height,
            "num_images": num_images,
            "steps": steps,
            "seed": secrets.randbelow(MAX_SEED) if seed is None else seed,
            "text_guidance_scale": text_guidance_scale,
            "image_guidance_scale": image_guidance_scale,
            "cfg_range": cfg_range,
            "scheduler": scheduler,
            "speed": speed,
        }
        prompts, image_lists = _pair(prompt, images)
        noises = [None] * len(prompts) if noise is None else _split_noise(noise, len(prompts))
        if noises[0] is not None:
            asked |= self._as_noise(noises[0], num_images, width, height)
        sampling = _checked(ReferenceSampling, asked)
        limits = self._limits(max_pixels, max_input_side)
        adapter = None if lora is None else Adapter.of(lora)
        tasks, notes = [], list[str]()
        for text, own in zip(prompts, image_lists, strict=True):
            filled, said = self._filled(sampling, own, limits, within=bool(max_pixels or max_input_side))
            tasks.append(ImageTask(text, tuple(own), filled, adapter))
            notes += said
        if output not in ("pil", "latents"):
            raise ValueError(f"output: {output!r} is unknown; allowed: pil, latents")
        with threads.limited_to(self.threads):
            return self._run(tasks, limits, noises, notes, output, on_step)

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
        self._check_images(images)
        asked = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        decoding = _checked(Decoding, asked).filled(self.card.defaults.describe)
        if decoding.seed is None:
            decoding = decoding.model_copy(update={"seed": secrets.randbelow(MAX_SEED)})
        with threads.limited_to(self.threads):
            return self.pipeline.write(TextTask(question, tuple(images), decoding))

    def _run(
        self,
        tasks: Sequence[ImageTask],
        limits: Limits,
        noises: Sequence[Tensor | None],
        notes: list[str],
        output: str,
        on_step: OnStep | None,
    ) -> "Pictures | Tensor | list[Tensor]":
        lora.use(self.pipeline.transformer, tasks[0].lora)
        prepared: list[list[Sample]] = []
        for task, noise in zip(tasks, noises, strict=True):
            samples, said = self.pipeline.prepare(task, limits, noise)
            prepared.append(samples)
            notes += said
        everything = [sample for samples in prepared for sample in samples]
        denoiser = Denoiser(self.pipeline.transformer)
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
            for image in self.pipeline.finish(task, samples, limits)
        ]
        seed = tasks[0].sampling.seed if noises[0] is None else None
        return Pictures(pictures, seed, list(dict.fromkeys(notes)))

    def _stack(self, samples: Sequence[Sample]) -> "Tensor | list[Tensor]":
        latents = [self.pipeline.latents(sample) for sample in samples]
        return torch.stack(latents) if len({x.shape for x in latents}) == 1 else latents

    def _limits(self, max_pixels: int | None, max_input_side: int | None) -> Limits:
        asked = {"max_pixels": max_pixels, "max_input_side": max_input_side}
        given = {name: value for name, value in asked.items() if value is not None}
        return _checked(Limits, self.card.limits.model_dump() | given)

    def _filled(
        self, asked: ReferenceSampling, images: Sequence[Image], limits: Limits, within: bool
    ) -> tuple[ReferenceSampling, list[str]]:
        """What was asked, completed, and notes. `within`: an edit is no larger than its input is encoded."""
        self._check_images(images)
        filled = asked.filled(self.card.defaults_for(len(images)))
        sizes = [image.size for image in images]
        if within and images and filled.width is None and filled.height is None:
            bounds = (limits.max_pixels, limits.max_input_side)
            width, height = self.pipeline.autoencoder.fit(*sizes[0], *bounds)
            filled = filled.model_copy(update={"width": width, "height": height})
        filled, notes = sized(filled, sizes, limits)
        return filled, [*without_effect(asked, filled, bool(images)), *notes]

    def _as_noise(
        self, noise: Tensor, num_images: int | None, width: int | None, height: int | None
    ) -> dict[str, object]:
        """What the shape of the noise decides where nothing else was asked for."""
        decided: dict[str, object] = {"num_images": num_images or len(noise)}
        if width is None and height is None:
            factor = self.pipeline.autoencoder.factor
            decided |= {"width": noise.shape[-1] * factor, "height": noise.shape[-2] * factor}
        return decided

    def _check_images(self, images: Sequence[Image]) -> None:
        if not isinstance(images, Sequence):
            raise ValueError(f"images: {type(images).__name__} given; it must be a list of PIL images")
        most = self.card.limits.max_references
        if len(images) > most:
            raise ValueError(f"images: {len(images)} given; at most {most} are allowed")
        for image in images:
            readable(image)


def _checked(kind: type[P], asked: Mapping[str, object]) -> P:
    try:
        return kind.model_validate(asked)
    except ValidationError as error:
        raise ValueError(explain(error, kind)) from None


def _identified(card: ModelCard, folder: Path) -> ModelCard:
    """The card with the digest of the files in `folder`, which is the published one if there is one."""
    found = locate.weights_digest(folder)
    if card.digest not in (None, found):
        raise ValueError(
            f"weights in {folder} have digest {found}, its card.json says {card.digest}: "
            "they were changed or damaged; fetch them again"
        )
    return card.model_copy(update={"digest": found})


def _pair(
    prompt: str | Sequence[str], images: Sequence[Image] | Sequence[Sequence[Image] | None] | None
) -> tuple[list[str], list[Sequence[Image]]]:
    """One list of images per prompt."""
    if not isinstance(prompt, list | tuple):
        return [prompt], [images or ()]  # pyright: ignore
    lists: list[Sequence[Image]] = [own or () for own in images or ()] or [() for _ in prompt]  # pyright: ignore
    if len(lists) != len(prompt) or not prompt:
        raise ValueError(
            f"images: {len(lists)} lists given for {len(prompt)} prompts; give one list per prompt"
        )
    return list(prompt), lists


def _split_noise(noise: Tensor, tasks: int) -> Sequence[Tensor]:
    noise = torch.as_tensor(noise)
    if noise.ndim != 4 or len(noise) % tasks:
        raise ValueError(
            f"noise: shape {list(noise.shape)} given; "
            f"it must be (n, C, h, w), n a multiple of the number of prompts, {tasks}"
        )
    if not noise.isfinite().all():
        raise ValueError("noise: some values are not finite")
    return noise.chunk(tasks)
