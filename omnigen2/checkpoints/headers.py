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
        found |= read_header(file)
    return found


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Every tensor in a safetensors file, by name.

    Raises:
        ValueError: the file is damaged, or no safetensors file.
    """
    try:
        with safe_open(file, "numpy") as tensors:
            return {
                name: TensorInfo(tuple(stored.get_shape()), stored.get_dtype())
                for name in tensors.keys()
                for stored in (tensors.get_slice(name),)
            }
    except SafetensorError as error:
        raise ValueError(f"weights: {file} is damaged ({error}); fetch it again") from error
