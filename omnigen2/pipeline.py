"""The stages of a task: a request is prepared, denoised in company, and finished; or a text is written.

`prepare` turns a task into samples, `omnigen2.denoise.Denoiser` moves them, `finish` decodes them. The
library (`omnigen2.model`) does this in the calling thread for one request, the engine
(`omnigen2.engine.engine`) for many at once.
"""

import hashlib
from collections.abc import Sequence

import torch
from PIL.Image import Image, Resampling
from torch import Tensor

from omnigen2.adapters.apply import Active
from omnigen2.adapters.loaded import LoadedAdapters
from omnigen2.checkpoints.card import Limits, ModelCard
from omnigen2.checkpoints.fit import free_bytes
from omnigen2.cost import step_tokens
from omnigen2.denoise import Sample
from omnigen2.guidance import Branch, guide
from omnigen2.lru_cache import LruCache
from omnigen2.memory.device import isolated
from omnigen2.memory.footprint import MOST_TOKENS, token_budget, token_bytes
from omnigen2.memory.residency import Residency
from omnigen2.network.autoencoder import Autoencoder, flatten
from omnigen2.network.language import Caption, LanguageModel, Text
from omnigen2.network.packing import Condition
from omnigen2.network.transformer import OmniGen2Transformer2DModel, patchify, unpatchify
from omnigen2.notes import about_inputs, about_prompt, about_result
from omnigen2.params import InvalidTask
from omnigen2.schedule import plan
from omnigen2.sizes import Size, reduced
from omnigen2.task import HasSize, ImageTask, TextTask

REMEMBERED_PROMPTS = 256
REMEMBERED_IMAGES = 64


class Pipeline:
    """The parts of a checkpoint, working together. Not safe for use by several threads at once."""

    def __init__(
        self,
        transformer: OmniGen2Transformer2DModel,
        autoencoder: Autoencoder,
        language: LanguageModel,
        card: ModelCard,
        residency: Residency,
    ):
        self.residency = residency
        self.transformer = transformer
        self.autoencoder = autoencoder
        self.language = language
        self.card = card
        self.adapters = LoadedAdapters(transformer, residency.device, residency.dtype)
        self._captions: LruCache[Caption] = LruCache(REMEMBERED_PROMPTS)
        self._references: LruCache[Tensor] = LruCache(REMEMBERED_IMAGES)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.transformer.device

    def prepare(
        self, task: ImageTask, limits: Limits | None = None, noise: Tensor | None = None
    ) -> tuple[list[Sample], list[str]]:
        """Encode a task into one sample per picture, and notes for the user.

        `noise` (num_images, C, h, w) float32 overrides the seed.

        Raises:
            ValueError: an empty prompt, an unreadable image, an impossible size, noise of another shape, an
                adapter that does not fit the model.
            FileNotFoundError: the file of an adapter is gone.
        """
        limits = limits or self.card.limits
        sampling = task.sampling
        check_text("prompt", task.prompt)
        references = self.encode_references(decoded(task), limits)
        width, height = (side // self.autoencoder.factor for side in self._sizes(task, limits)[1])
        guidance = guide(sampling, bool(references))
        branches = {branch for step in guidance for branch, _ in step.weights}
        captions = {True: self.caption(task.prompt, limits)}
        if branches != {Branch.FULL}:
            captions[False] = self.caption(sampling.negative_prompt or "", limits)
        adapters = self.adapters.get(task.adapters)
        conditions = self._conditions(branches, captions, references, (height, width), adapters)
        channels = self.transformer.config["in_channels"]
        start = _noise(task, (channels, height, width)) if noise is None else noise.float()
        if start.shape != (sampling.num_images, channels, height, width):
            raise InvalidTask(
                f"noise: shape {list(start.shape)} given; "
                f"this request needs {[sampling.num_images, channels, height, width]}"
            )
        steps = plan(sampling.scheduler or "euler", [bool(step.weights) for step in guidance], height * width)
        patch = self.transformer.config["patch_size"]
        tokens = patchify(start, patch).to(self.transformer.device)
        notes = self._notes(task, limits, captions)
        return [Sample(own, conditions, guidance, steps) for own in tokens], notes

    def finish(self, task: ImageTask, samples: Sequence[Sample], limits: Limits | None = None) -> list[Image]:
        """Decode finished samples to pictures of the size that was asked for."""
        size, _ = self._sizes(task, limits or self.card.limits)
        return [self.autoencoder.decode(self.latents(sample), size) for sample in samples]

    def latents(self, sample: Sample) -> Tensor:
        """The current latents (C, h, w) of a sample."""
        return unpatchify(sample.tokens, sample.grid, self.transformer.config["patch_size"])

    def step_tokens(self, task: ImageTask) -> int:
        """Estimated tokens of one denoising step of the task (`omnigen2.cost`); 0 if the task is invalid."""
        try:
            return step_tokens(task, self.card.limits, self.autoencoder.multiple)
        except Exception:  # `prepare` says what is wrong with it
            return 0

    def token_budget(self) -> int:
        """Tokens that a denoising step may have, by the memory that is free now."""
        if self.device.type == "cpu":  # where each picture has a forward of its own
            return MOST_TOKENS
        block = next(self.transformer.blocks())
        inner = block.feed_forward.linear_1.out_features
        in_fp8 = getattr(block.feed_forward.linear_1, "dynamic", False)
        hidden, itemsize = self.transformer.config["hidden_size"], self.residency.dtype.itemsize
        each = token_bytes(hidden, inner, itemsize, in_fp8=in_fp8)
        return token_budget(free_bytes(self.device) - self.residency.coming_bytes, each)

    def memory_bytes(self) -> int:
        """Bytes of the weights that are on the device now."""
        return self.residency.bytes

    def forget(self) -> None:
        """Drop the remembered prompts and reference images, and adapters not in use, to free memory."""
        self._captions.clear()
        self._references.clear()
        self.adapters.forget()

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

    def begin_text(self, task: TextTask) -> Text:
        """The text of a task up to its first token; a `Writer` goes on with it.

        Raises:
            ValueError: no question, or an unreadable image.
        """
        check_text("question", task.question)
        images = [
            image.resize(size, Resampling.LANCZOS) if size != image.size else image
            for image, size in zip(map(flatten, decoded(task)), self._seen(task), strict=True)
        ]
        return self.language.begin(self.language.question_inputs(images, task.question), task.decoding)

    def write(self, task: TextTask) -> str:
        """The whole text of a task. Raises ValueError as `begin_text`."""
        with self.language.weights:
            return self.language.read_out(self.language.completed(self.begin_text(task)))

    def text_notes(self, task: TextTask) -> list[str]:
        """Notes on a text task."""
        return about_inputs(decoded(task), self._seen(task))

    def _seen(self, task: TextTask) -> list[Size]:
        """The (width, height) at which each image is looked at."""
        return [reduced(*image.size, self.card.limits) for image in decoded(task)]

    @isolated
    def _conditions(
        self,
        branches: set[Branch],
        captions: dict[bool, Caption],
        references: list[Tensor],
        size: tuple[int, int],
        adapters: Active,
    ) -> dict[Branch, Condition]:
        """What each branch sees; `captions` maps whether it is the prompt to the encoded text."""
        order = sorted(branches)
        dtype = self.transformer.dtype
        own = [reference.to(dtype) for reference in references]
        made = self.transformer.conditions(
            [captions[branch == Branch.FULL].features.to(dtype) for branch in order],
            [[] if branch == Branch.BARE else own for branch in order],
            [size] * len(order),
            adapters,
        )
        return dict(zip(order, made, strict=True))

    def _sizes(self, task: ImageTask, limits: Limits) -> tuple[Size, Size]:
        """The (width, height) in pixels of the picture, and those at which it is computed."""
        sampling = task.sampling
        assert sampling.width is not None and sampling.height is not None
        size = sampling.width, sampling.height
        return size, self.autoencoder.fit(*size, limits.max_pixels)

    def _notes(self, task: ImageTask, limits: Limits, captions: dict[bool, Caption]) -> list[str]:
        """Notes on a task; `captions` has the negative prompt's only if it counts."""
        bounds = (limits.max_pixels, limits.max_input_side)
        size, made = self._sizes(task, limits)
        images = decoded(task)
        seen = [self.autoencoder.fit(*image.size, *bounds) for image in images]
        notes = [*about_inputs(images, seen), *about_result(made, size)]
        for is_prompt, caption in captions.items():
            if caption.cut:
                field = "prompt" if is_prompt else "negative prompt"
                notes.append(about_prompt(field, limits.max_text_tokens))
        if unknown := self.card.unknown_words(self.language.read(task.prompt)):
            notes.append(f"{self.card.title} does not know: {', '.join(unknown)}. {self.card.about}")
        return notes


def check_text(field: str, text: str) -> None:
    """Raises InvalidTask, naming the field, if it is no text, empty, or cannot be encoded."""
    if not isinstance(text, str) or not text.strip():
        raise InvalidTask(f"{field}: {text!r} given; it must be a text that is not empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidTask(
            f"{field}: the character at {error.start} is half of a pair; send whole ones"
        ) from None


def decoded(task: ImageTask | TextTask) -> list[Image]:
    """The images of a task. Raises InvalidTask as `readable`."""
    return [readable(image) for image in task.images]


def readable(image: HasSize) -> Image:
    """The image, decoded. Raises ValueError if it is none, damaged or empty."""
    if not isinstance(image, Image):
        raise InvalidTask(f"images: {type(image).__name__} given; each must be a PIL image")
    try:
        image.load()
    except Exception as error:  # decoders raise whatever they like on broken bytes
        raise InvalidTask(f"images: an image cannot be read ({error}); give a complete image") from error
    if 0 in image.size:
        raise InvalidTask(f"images: an image of {image.width} x {image.height} pixels is empty")
    return image


def _noise(task: ImageTask, shape: tuple[int, int, int]) -> Tensor:
    """(num_images, C, h, w): each picture's noise from its own generator, on the CPU, the same everywhere."""
    seed, count = task.sampling.seed, task.sampling.num_images
    assert seed is not None and count is not None
    generators = [torch.Generator("cpu").manual_seed(seed + index) for index in range(count)]
    return torch.stack(
        [torch.randn(shape, generator=own, dtype=torch.float32, device="cpu") for own in generators]
    )
