"""The headers of safetensors files: what tensors a part of a checkpoint holds. Needs no torch."""

from dataclasses import dataclass
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open


@dataclass(frozen=True)
class TensorInfo:
    """Shape and stored type (such as `F16`) of a tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def values(self) -> int:
        """Number of values."""
        return prod(self.shape)


def read_headers(part: Path) -> dict[str, TensorInfo]:
    """Every tensor in the safetensors files of a folder, by name; empty if there is no such file.

    Raises:
        ValueError: a file is damaged.
    """
    found: dict[str, TensorInfo] = {}
    for file in sorted(part.glob("*.safetensors")):
        try:
            with safe_open(file, "numpy") as tensors:
                for name in tensors.keys():
                    stored = tensors.get_slice(name)
                    found[name] = TensorInfo(tuple(stored.get_shape()), stored.get_dtype())
        except SafetensorError as error:
            raise ValueError(f"weights: {file} is damaged ({error}); fetch it again") from error
    return found
