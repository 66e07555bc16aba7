"""The model as a library: text to image, edits, compositions and descriptions through two methods.

Checks what is asked, completes it with the card's defaults and runs the pipeline in the calling thread.
Serving many requests at once is the engine's business (`omnigen2.engine.engine`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Unpack

import torch
from PIL.Image import Image
from pydantic import ValidationError
from torch import Tensor

from omnigen2.adapters.file import Adapter, WeightedAdapter
from omnigen2.checkpoints import load, locate
from omnigen2.checkpoints.card import Limits
from omnigen2.checkpoints.convert import import_once
from omnigen2.checkpoints.fit import choose_memory, make_room
from omnigen2.checkpoints.locate import Checkpoint
from omnigen2.checkpoints.source import Source
from omnigen2.completion import complete_decoding, complete_sampling, draw_seed
from omnigen2.denoise import Denoiser, Sample
from omnigen2.explain import explain
from omnigen2.memory.choice import MemoryChoice
from omnigen2.memory.device import is_out_of_memory, pick_device, pick_dtype
from omnigen2.memory.placement import Placement
from omnigen2.memory.residency import Residency
from omnigen2.network import compiled, threads
from omnigen2.network.attention import use_newest_flash
from omnigen2.params import Adapters, Decoding, InvalidTask, P, ReferenceSampling, SamplingOptions
from omnigen2.pipeline import Pipeline, check_text, readable
from omnigen2.sizes import Size
from omnigen2.task import ImageTask, OutOfMemory, TextTask

Lora = str | Path | Mapping[str, object] | Sequence[str | Path | Mapping[str, object]] | None
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

    def __init__(self, pipeline: Pipeline, source: Source | None = None):
        """`source`: what it was loaded from."""
        self.pipeline = pipeline
        self.card = pipeline.card
        self._source = source

    @classmethod
    def load(cls, source: str, placement: Placement) -> "OmniGen2":
        """See `omnigen2.load`."""
        import_once(source)
        return cls.of(locate.find(source), placement)

    @classmethod
    def of(
        cls, checkpoint: Checkpoint, placement: Placement, choice: MemoryChoice | None = None
    ) -> "OmniGen2":
        """Load a checkpoint, in the memory mode of `choice` if one was made. Raises as `omnigen2.load`."""
        folder, wanted = checkpoint.folder, placement.quantize
        load.check_layout(folder)
        place = pick_device(placement.device)
        kind = pick_dtype(placement.dtype, place)
        is_compiled = compiled.wanted(placement.compile, place)
        choice = choice or choose_memory(checkpoint, kind, place, placement.memory, wanted)
        source = Source(checkpoint.verified(), replace(placement, memory=choice.mode))
        networks = source.networks()
        check = None if choice.mode == "resident" else load.unchanged(folder, source.checkpoint.digest)
        residency = Residency(*networks, place, kind, choice, check=check, reload=source.networks)
        card = source.checkpoint.identity.model_copy(update={"quantize": str(wanted)})
        source.verify()
        use_newest_flash(place)
        transformer, language, autoencoder = networks
        if is_compiled:
            compiled.compile_blocks(transformer)
        return cls(Pipeline(transformer, autoencoder, language, card, residency), source)

    def leave(self) -> None:
        """Take the weights off the device, until `come_back`."""
        self.pipeline.residency.leave()

    def come_back(self, evict: Callable[[], bool]) -> None:
        """Bring the weights back, in the memory mode they had; `evict` as for `make_room`.

        Raises:
            OutOfMemory: there is no room; they are still away.
            ValueError, OSError: they are no longer in their files.
        """
        residency, source = self.pipeline.residency, self._source
        if source is not None:
            make_room(source.checkpoint, replace(source.placement, memory=residency.mode), evict)
        try:
            loaded = residency.come()
        except Exception as error:
            residency.leave()
            if is_out_of_memory(error):
                raise OutOfMemory(f"the model {self.card.id} does not fit beside what is there") from None
            raise
        if loaded and source is not None:
            source.verify()

    @cached_property
    def threads(self) -> int:
        """CPU threads to compute with: one or all, chosen by a measurement at first use; all on a GPU."""
        transformer = self.pipeline.transformer
        if transformer.device.type != "cpu":
            return threads.ALL
        return threads.worthwhile(threads.layer_seconds(transformer))

    def generate(
        self,
        prompt: str | Sequence[str],
        images: Sequence[Image] | Sequence[Sequence[Image] | None] | None = (),
        *,
        noise: Tensor | None = None,
        lora: Lora = None,
        max_pixels: int | None = None,
        max_input_side: int | None = None,
        output: Literal["pil", "latents"] = "pil",
        on_step: OnStep | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> "Pictures | Tensor | list[Tensor]":
        """Pictures for a prompt: text to image without images, an edit of one, a composition of two to five.

        `prompt` may be a list, with a list of images per prompt; all of them are denoised together. The
        parameters of sampling are described in `omnigen2.params.ReferenceSampling`; the model card decides
        those left out. An edit has its input's size, unless `max_pixels` or `max_input_side` is given: then,
        as in the reference, the size at which the input is encoded within these bounds.

        `lora` names adapters: a file or folder, `{"name": file, "weight": 0.8}`, or a list of these.

        `noise` (n, C, h, w) float32 replaces what the seed gives, and decides the number and size of the
        pictures where those are left out. `on_step(index, total, latents)` is called after every denoising
        step that computes something, and may raise to cancel. With `output="latents"` the final latents are
        returned: (n, C, h, w) float32, or a list of (C, h, w) if the sizes differ.

        Raises:
            ValueError: a parameter is wrong; the message names the field, the value and what is allowed.
            FileNotFoundError: there is no such LoRA file.
        """
        prompts, image_lists = _pair(prompt, images)
        noises = [None] * len(prompts) if noise is None else _split_noise(noise, len(prompts))
        implied = {} if noises[0] is None else self._implied_by(noises[0], sampling)
        asked = _checked(ReferenceSampling, {**sampling, **implied})
        if asked.seed is None:
            asked = asked.model_copy(update={"seed": draw_seed()})  # one for all prompts
        limits = self._limits(max_pixels, max_input_side)
        bounded = max_pixels is not None or max_input_side is not None
        adapters = _adapters(lora)
        tasks, notes = [], list[str]()
        for text, own in zip(prompts, image_lists, strict=True):
            check_text("prompt", text)
            sizes = self._sizes_of(own)
            wanted = self._within(asked, sizes, limits) if bounded else asked
            completed = complete_sampling(wanted, sizes, self.card, limits, prompt=text)
            tasks.append(ImageTask(text, tuple(own), completed.params, adapters))
            notes += completed.notes
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
            ValueError: no question, more images than the model takes, or a parameter out of bounds.
        """
        sizes = self._sizes_of(images)
        asked = _checked(Decoding, {"max_tokens": max_tokens, "temperature": temperature, "seed": seed})
        completed = complete_decoding(asked, sizes, self.card)
        with threads.limited_to(self.threads):
            return self.pipeline.write(TextTask(question, tuple(images), completed.params))

    def _run(
        self,
        tasks: Sequence[ImageTask],
        limits: Limits,
        noises: Sequence[Tensor | None],
        notes: list[str],
        output: str,
        on_step: OnStep | None,
    ) -> "Pictures | Tensor | list[Tensor]":
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

    def _within(self, asked: ReferenceSampling, inputs: Sequence[Size], limits: Limits) -> ReferenceSampling:
        """`asked` with the size at which the first input is encoded, where its size would be taken."""
        defaults = self.card.defaults_for(len(inputs))
        if not inputs or any((asked.width, asked.height, defaults.width, defaults.height)):
            return asked
        bounds = (limits.max_pixels, limits.max_input_side)
        width, height = self.pipeline.autoencoder.fit(*inputs[0], *bounds)
        return asked.model_copy(update={"width": width, "height": height})

    def _implied_by(self, noise: Tensor, asked: SamplingOptions) -> SamplingOptions:
        """The number and size of the pictures, from the shape of the noise, where they were not asked for."""
        implied: SamplingOptions = {"num_images": asked.get("num_images") or len(noise)}
        if asked.get("width") is None and asked.get("height") is None:
            factor = self.pipeline.autoencoder.factor
            implied |= {"width": noise.shape[-1] * factor, "height": noise.shape[-2] * factor}
        return implied

    def _sizes_of(self, images: Sequence[Image]) -> list[Size]:
        """The (width, height) of input images, once they are known to be readable."""
        if not isinstance(images, Sequence):
            raise ValueError(f"images: {type(images).__name__} given; it must be a list of PIL images")
        return [readable(image).size for image in images]


def _adapters(asked: Lora) -> tuple[WeightedAdapter, ...]:
    named = _checked(Adapters, {"lora": asked}).lora or ()
    return tuple(WeightedAdapter(Adapter.of(own.name).pinned(own.digest), own.weight) for own in named)


def _checked(kind: type[P], asked: Mapping[str, object]) -> P:
    try:
        return kind.model_validate(asked)
    except ValidationError as error:
        raise InvalidTask(explain(error, kind)) from None


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
