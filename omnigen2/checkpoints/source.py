"""What a model is loaded from, so that its weights can come back after they had to leave their device."""

from dataclasses import dataclass

import torch

from omnigen2.checkpoints import load, locate
from omnigen2.checkpoints.fit import resting_dtype
from omnigen2.checkpoints.locate import Checkpoint
from omnigen2.memory.device import pick_device, pick_dtype
from omnigen2.memory.placement import Placement
from omnigen2.memory.quantize import quantize
from omnigen2.network.autoencoder import Autoencoder
from omnigen2.network.language import LanguageModel
from omnigen2.network.transformer import OmniGen2Transformer2DModel

Networks = tuple[OmniGen2Transformer2DModel, LanguageModel, Autoencoder]


@dataclass(frozen=True)
class Source:
    """A checkpoint whose digest is known, and where it runs; `placement.memory` is one of the modes."""

    checkpoint: Checkpoint
    placement: Placement

    @property
    def device(self) -> torch.device:
        """The device on which it computes."""
        return pick_device(self.placement.device)

    @property
    def dtype(self) -> torch.dtype:
        """The precision in which it computes."""
        return pick_dtype(self.placement.dtype, self.device)

    def networks(self) -> Networks:
        """The networks on the CPU, perhaps mapped from the files. Raises ValueError on wrong weights."""
        folder = self.checkpoint.folder
        transformer = load.load_transformer(folder, self._dtype_of("transformer")).eval()
        autoencoder = load.load_autoencoder(folder, self._dtype_of("vae"), transformer.config["patch_size"])
        language = load.load_language_model(folder, self._dtype_of("mllm"))
        load.check_fit(transformer, autoencoder, language)
        quantize(transformer, language.mllm, self.placement.quantize, self.device)
        return transformer, language, autoencoder

    def verify(self) -> None:
        """Raises ValueError if the files have changed. To be called once nothing is mapped from them."""
        folder = self.checkpoint.folder
        if locate.weights_digest(folder) != self.checkpoint.digest:
            raise ValueError(f"the files in {folder} were changed while they were loaded; try again")

    def _dtype_of(self, part: str) -> torch.dtype:
        """The precision in which the weights of a part are loaded."""
        as_computed = self.placement.memory == "resident" and not self.placement.quantize
        return self.dtype if as_computed else resting_dtype(self.checkpoint, part, self.dtype)
