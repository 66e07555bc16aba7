"""The memory mode of a model: which one, why, and what each would take. Needs no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Mode = Literal["resident", "offload", "stream"]
MODES: tuple[Mode, ...] = get_args(Mode)
"""From the quickest to the one that takes the least memory of the device."""
BY_HOST = "set by the host"


@dataclass(frozen=True)
class Need:
    """Bytes that a mode takes.

    `device_bytes`: weights that are on the device at once, and what the largest common request works with.
    `host_bytes`: weights that rest in the host's memory. Where it has less, those that are not quantised stay
    in their files, from where they come more slowly. If the device is the CPU, it takes both.
    """

    device_bytes: int
    host_bytes: int


@dataclass(frozen=True)
class MemoryChoice:
    """The mode of a model, the reason for it in words, whether there was room, and what each mode takes."""

    mode: Mode
    reason: str = BY_HOST
    fits: bool = True
    needs: Mapping[Mode, Need] = field(default_factory=dict[Mode, Need])


RESIDENT = MemoryChoice("resident")
