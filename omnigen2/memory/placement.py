"""Where and how models run, as the host has set it. Needs no torch."""

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["none", "int8", "fp8", "nf4"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PARTS = ("transformer", "language")
"""The parts whose blocks can be quantised."""


@dataclass(frozen=True)
class Quantization:
    """How the linear layers of each part's blocks are kept; `none` leaves them as they are."""

    transformer: Kind = "none"
    language: Kind = "none"

    @classmethod
    def parse(cls, text: str) -> "Quantization":
        """One kind for both parts, such as `fp8`, or one for each named part: `transformer=fp8,language=nf4`.

        Raises:
            ValueError: it is something else.
        """
        if text in KINDS:
            return cls(text, text)
        pairs = [pair.partition("=") for pair in text.replace(" ", "").split(",")]
        named = {part: kind for part, _, kind in pairs}
        if not set(named) <= set(PARTS) or not set(named.values()) <= set(KINDS):
            raise ValueError(
                f"quantize: {text!r} is unknown; allowed: {', '.join(KINDS)}, or one for a part, "
                f"such as {PARTS[0]}=fp8,{PARTS[1]}=nf4"
            )
        return cls(**named)  # pyright: ignore[reportArgumentType]

    def __str__(self) -> str:
        """The shortest text that `parse` reads as this."""
        if self.transformer == self.language:
            return self.transformer
        pairs = {part: getattr(self, part) for part in PARTS}
        return ",".join(f"{part}={kind}" for part, kind in pairs.items() if kind != "none")

    def __bool__(self) -> bool:
        """Whether any part is quantised."""
        return self != Quantization()


UNQUANTIZED = Quantization()


@dataclass(frozen=True)
class Placement:
    """Where and how models run, as the host has set it."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`."""
    dtype: str = "auto"
    """`auto`, `float32`, `bfloat16` or `float16`."""
    memory: str = "auto"
    """`auto`, `resident`, `offload` or `stream`."""
    quantize: Quantization = UNQUANTIZED
    """How the weights of blocks are kept."""
    compile: str = "auto"
    """`auto`: on a GPU blocks run by compiled code; `never`."""
