"""The OmniGen2 transformer on packed sequences (Wu et al. 2025, "OmniGen2", arXiv:2506.18871, section 3).

Text is refined without time; each reference image is refined alone; the noisy picture is refined alone; then
`[text | references | picture]` of every sample passes through the joint layers. Samples of any sizes, text
lengths and numbers of references lie one after the other along the token axis, without padding. What does not
depend on the timestep is made once (`condition`), what does at every step (`forward`).

Parameter names and shapes are those of the published checkpoint. Loading, saving, sharding, offloading and
LoRA come from diffusers.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders.peft import PeftAdapterMixin
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from omnigen2.adapters.apply import Active, adapted, terms, terms_for_all
from omnigen2.memory.weights import HERE, with_weights
from omnigen2.network.blocks import FREQUENCIES, Block, OutputLayer, TimeCaptionEmbedding
from omnigen2.network.packing import Batch, Condition, Segments, pack
from omnigen2.network.positions import Grid, rotations, sample_positions, text_positions
from omnigen2.params import MAX_REFERENCES

MAX_TIME_CHANNELS = 1024


def patchify(latents: Tensor, patch_size: int = 2) -> Tensor:
    """(..., C, H, W) -> (..., H/p * W/p, p * p * C): row by row, channel fastest."""
    p = patch_size
    return rearrange(latents, "... c (h p1) (w p2) -> ... (h w) (p1 p2 c)", p1=p, p2=p)


def unpatchify(tokens: Tensor, grid: Grid, patch_size: int = 2) -> Tensor:
    """(..., h * w, p * p * C) -> (..., C, h * p, w * p): undoes `patchify`; `grid` is (h, w) in tokens."""
    p, (h, w) = patch_size, grid
    return rearrange(tokens, "... (h w) (p1 p2 c) -> ... c (h p1) (w p2)", h=h, w=w, p1=p, p2=p)


class OmniGen2Transformer2DModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Predicts the velocity (data - noise) of noisy latents, given text and reference latents.

    The class name and the configuration fields are those of the published `config.json`; `axes_lens` only
    sized a table of positions there and is ignored.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["Block"]
    _repeated_blocks: ClassVar[list[str]] = ["Block"]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = ["embedder", "norm"]

    @register_to_config
    def __init__(
        self,
        patch_size: int = 2,
        in_channels: int = 16,
        out_channels: int | None = None,
        hidden_size: int = 2304,
        num_layers: int = 26,
        num_refiner_layers: int = 2,
        num_attention_heads: int = 24,
        num_kv_heads: int = 8,
        multiple_of: int = 256,
        ffn_dim_multiplier: float | None = None,
        norm_eps: float = 1e-5,
        axes_dim_rope: Sequence[int] = (32, 32, 32),
        axes_lens: Sequence[int] = (300, 512, 512),
        text_feat_dim: int = 1024,
        timestep_scale: float = 1.0,
    ):
        super().__init__()
        if hidden_size != num_attention_heads * sum(axes_dim_rope):
            raise ValueError(
                f"axes_dim_rope: {list(axes_dim_rope)} must sum to hidden_size / num_attention_heads = "
                f"{hidden_size} / {num_attention_heads}"
            )
        time_channels = min(hidden_size, MAX_TIME_CHANNELS)
        inner = _round_up(int(4 * hidden_size * (ffn_dim_multiplier or 1)), multiple_of)
        shape = (hidden_size, num_attention_heads, num_kv_heads, inner, norm_eps)
        patch = patch_size * patch_size

        def blocks(count: int, time: int = 0) -> nn.ModuleList:
            return nn.ModuleList(Block(*shape, time_channels=time) for _ in range(count))

        self.x_embedder = nn.Linear(patch * in_channels, hidden_size)
        self.ref_image_patch_embedder = nn.Linear(patch * in_channels, hidden_size)
        self.time_caption_embed = TimeCaptionEmbedding(hidden_size, text_feat_dim, time_channels, norm_eps)
        self.noise_refiner = blocks(num_refiner_layers, time_channels)
        self.ref_image_refiner = blocks(num_refiner_layers, time_channels)
        self.context_refiner = blocks(num_refiner_layers)
        self.layers = blocks(num_layers, time_channels)
        self.norm_out = OutputLayer(hidden_size, time_channels, patch * (out_channels or in_channels))
        self.image_index_embedding = nn.Parameter(0.02 * torch.randn(MAX_REFERENCES, hidden_size))
        self.gradient_checkpointing = False
        self.weights = HERE
        self.compiled: Callable[..., Tensor] | None = None
        """Runs `Block.compute` by compiled code (`omnigen2.network.compiled`)."""
        self.numbered: Mapping[str, Any] = {}
        """The layers of compiled blocks by name, as `omnigen2.adapters.apply.adapted` takes them."""

    def blocks(self) -> Iterator[Block]:
        """Every block."""
        for stack in (self.noise_refiner, self.ref_image_refiner, self.context_refiner, self.layers):
            yield from stack  # pyright: ignore[reportReturnType]

    def condition(
        self,
        text: Sequence[Tensor],
        references: Sequence[Sequence[Tensor]],
        sizes: Sequence[Grid],
        adapters: Active = (),
    ) -> Batch:
        """Everything a batch needs that does not depend on time.

        `text`: per sample (L, text_feat_dim); `references`: per sample up to 5 latents (C, h, w); `sizes`:
        per sample the (h, w) of the latents to make; `adapters`: those that all samples use.

        Raises:
            ValueError: more than 5 references, or sides that are not a multiple of the patch size.
        """
        return self.pack(self.conditions(text, references, sizes, adapters))

    @with_weights
    def conditions(
        self,
        text: Sequence[Tensor],
        references: Sequence[Sequence[Tensor]],
        sizes: Sequence[Grid],
        adapters: Active = (),
    ) -> list[Condition]:
        """As `condition`, but one value per sample, for packing in changing company."""
        with adapted(self, terms_for_all(adapters)):
            refined = self._refine_text(text)
            shown = {id(images): images for images in references}  # branches share theirs
            embedded = {key: self._embed_references(images) for key, images in shown.items()}
            return [
                Condition(
                    caption,
                    embedded[id(images)],
                    self._grid(size),
                    self._rotation(len(caption), images, size, caption.device),
                    adapters,
                )
                for caption, images, size in zip(refined, references, sizes, strict=True)
            ]

    def _rotation(self, text: int, images: Sequence[Tensor], size: Grid, device: torch.device) -> Tensor:
        grids = [self._grid((latents.shape[-2], latents.shape[-1])) for latents in images]
        places = np.concatenate(sample_positions(text, grids, self._grid(size)))
        return rotations(places, self.config["axes_dim_rope"], device)

    def pack(self, conditions: Sequence[Condition], of: Sequence[Hashable] | None = None) -> Batch:
        """Lay the sequences of several conditions one after the other; `of` says which are of one picture.

        By default each is of a picture of its own.
        """
        batch = pack(conditions, range(len(conditions)) if of is None else of)
        return replace(batch, terms=terms([c.adapters for c in conditions], partial(self._rows, batch)))

    def _rows(self, batch: Batch, layer: str) -> Sequence[int]:
        """The rows of each sequence in the input of a layer, in `forward`: of what is shared, the first's."""
        stage = layer.partition(".")[0]
        once = [batch.picture.index(n) == place for place, n in enumerate(batch.picture)]
        if layer.endswith("norm1.linear") or "timestep_embedder" in layer or layer == "norm_out.linear_1":
            return list(map(int, once))  # of the time
        if stage in ("time_caption_embed", "context_refiner", "ref_image_patch_embedder"):
            return [0] * len(once)  # only `conditions` runs it
        if stage == "ref_image_refiner":
            lengths = [batch.groups.lengths[n] for n in batch.group]
            return [
                length * (batch.group.index(n) == place)
                for place, (n, length) in enumerate(zip(batch.group, lengths, strict=True))
            ]
        if stage in ("x_embedder", "noise_refiner"):
            return [length * own for length, own in zip(batch.seen.lengths, once, strict=True)]
        end = layer.startswith(f"layers.{len(self.layers) - 1}.feed_forward.") and not self.numbered
        of_pictures = stage != "layers" or end
        return batch.seen.lengths if of_pictures else batch.joint.lengths

    @with_weights
    def forward(self, tokens: Tensor, timestep: Tensor, batch: Batch) -> Tensor:
        """Velocity of the picture of every sequence of the batch.

        `tokens` (sum N, p * p * C): the patchified noisy latents of all pictures, packed; `timestep` (n,):
        flow time of each picture, 0 = noise, 1 = data. Returns (sum M, p * p * C), M the tokens of the
        picture that a sequence sees.
        """
        with adapted(self, batch.terms, self.numbered if batch.terms else {}):
            return self._velocity(tokens, timestep, batch)

    def _velocity(self, tokens: Tensor, timestep: Tensor, batch: Batch) -> Tensor:
        time = self._embed_time(timestep)
        by = None if torch.is_grad_enabled() else self.compiled  # compiled code knows no gradients
        if by is not None and len(time) == 1:
            time = time.repeat(2, 1)  # it takes a size of 1 for a constant
        x = self._joint_input(tokens, time, batch, by)
        *layers, last = self.layers
        for block in layers:
            x = self._run(block, by, x, batch.rotation, batch.joint, time, batch.joint_owner)
        inputs = (last, by, x, batch.rotation, batch.joint, time, batch.joint_owner)
        if batch.terms and self.numbered:  # compiled blocks have one form with adapters, for all layers
            x = self._run(*inputs).index_select(0, batch.seen_rows)
        else:  # nothing reads what else would leave the last layer
            x = self._run(*inputs, batch.seen_rows)
        return self.norm_out(x, time, batch.seen_owner)

    def _joint_input(
        self, tokens: Tensor, time: Tensor, batch: Batch, by: Callable[..., Tensor] | None
    ) -> Tensor:
        pictures = self.x_embedder(tokens)
        rotation = batch.rotation.index_select(0, batch.picture_rows)
        for block in self.noise_refiner:
            pictures = self._run(block, by, pictures, rotation, batch.pictures, time, batch.pictures.owner)
        if not batch.references.total:
            return batch.joined(pictures[:0], pictures)
        references = batch.reference_tokens()
        rotation = batch.rotation.index_select(0, batch.reference_rows)
        for block in self.ref_image_refiner:
            references = self._run(
                block, by, references, rotation, batch.references, time, batch.reference_owner
            )
        return batch.joined(references, pictures)

    def _embed_time(self, timestep: Tensor) -> Tensor:
        """(n,) -> (n, time_channels), after the SiLU that every modulated layer applies first."""
        dtype = self.x_embedder.weight.dtype
        wave = get_timestep_embedding(
            timestep.to(dtype),  # as in training: in bfloat16 the model sees a rounded time
            FREQUENCIES,
            flip_sin_to_cos=True,
            downscale_freq_shift=0.0,
            scale=self.config["timestep_scale"],
        )
        return F.silu(self.time_caption_embed.timestep_embedder(wave.to(dtype)))

    def _refine_text(self, text: Sequence[Tensor]) -> tuple[Tensor, ...]:
        lengths = tuple(map(len, text))
        x = self.time_caption_embed.caption_embedder(torch.cat(list(text)))
        segments = Segments(lengths, x.device)
        positions = np.concatenate([text_positions(length) for length in lengths])
        rotation = rotations(positions, self.config["axes_dim_rope"], x.device)
        for block in self.context_refiner:
            x = self._run(block, None, x, rotation, segments)
        return x.split(lengths)

    def _embed_references(self, images: Sequence[Tensor]) -> tuple[Tensor, ...]:
        if len(images) > MAX_REFERENCES:
            raise ValueError(f"references: at most {MAX_REFERENCES} images, got {len(images)}")
        patch = self.config["patch_size"]
        return tuple(
            self.ref_image_patch_embedder(patchify(latents, patch)) + index
            for latents, index in zip(images, self.image_index_embedding, strict=False)
        )

    def _grid(self, size: Grid) -> Grid:
        p = self.config["patch_size"]
        if size[0] % p or size[1] % p:
            raise ValueError(
                f"size: latents of {size[0]} x {size[1]} cannot be cut into patches of {p} x {p}"
            )
        return size[0] // p, size[1] // p

    def _run(
        self,
        block: nn.Module,
        by: Callable[..., Tensor] | None,
        x: Tensor,
        rotation: Tensor,
        among: Segments,
        *others: Tensor,
    ) -> Tensor:
        inputs = (x, rotation, among.bounds, among.longest, *others)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *inputs)  # pyright: ignore
        return block(*inputs, by=by)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
