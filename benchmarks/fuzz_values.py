"""Bytes as decisions: what a fuzzer changes bit by bit becomes JSON, text and arguments that reach deep.

A fuzzer that mutates JSON text mostly breaks its brackets. Here each byte picks among values that are right,
nearly right or hostile, so that a small change of an input is a small change of what it says.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")

DEEP: list[Any] = []
for _ in range(200):
    DEEP = [DEEP]
DIGESTS = ("0" * 64, "f" * 64, "9" * 63, "ab" * 33)
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 16, 4097, 2**31, 2**53 - 1, 2**53, -(2**63), 2**64, 10**30,
    0.5, -0.0, 1.0, 1e-320, 1e20, 1e308, float("inf"), float("-inf"), float("nan"),
    "", " ", "0", "x", "null", "[]", "\0", "\r\n", "\ud800", "\udfff\ud800", "\u202e", "x" * 600, "é" * 4001,
    "🟥" * 90, "../../etc/passwd", "/dev/zero", "~", "%s%n", "' OR 1=1 --", "NaN", "-1", "1e999",
    "2026-11-27T10:00:00Z", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999-14:00", "2026-13-01",
    *(f"sha256:{digits}" for digits in DIGESTS), *DIGESTS,
    [], [None], [[]], [0.9, 0.1], [0, 1], ["x"] * 6, ["x"] * 300, DEEP,
    {}, {"": ""}, {"\ud800": 1}, {"a": {"b": [1]}},
    {"__proto__": 1}, {"$ref": "#"},
)  # fmt: skip
"""Values of every type, at the edges of what each can hold."""


class Choices:
    """Reads decisions off bytes; when they are used up, every decision is the first option."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def below(self, count: int) -> int:
        """A number from 0 to `count` - 1, of one byte, or two where one is not enough."""
        size = 1 if count <= 256 else 2
        taken = self._data[self._at : self._at + size]
        self._at += size
        return int.from_bytes(taken, "big") % count

    def mostly(self) -> bool:
        """True in fifteen of sixteen cases."""
        return self.below(16) != 15

    def pick(self, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.below(len(options))]

    def rest(self) -> bytes:
        """All bytes that are left."""
        taken, self._at = self._data[self._at :], len(self._data)
        return taken

    def text(self, most: int = 64) -> str:
        """Up to `most` bytes as text, whatever they are."""
        size = self.below(most + 1)
        taken = self._data[self._at : self._at + size]
        self._at += size
        return taken.decode("utf-8", "surrogateescape")

    def value(self, depth: int = 0) -> Any:
        """Any value that JSON can hold, and some that it cannot."""
        match self.below(8):
            case 0:
                return self.text()
            case 1:
                return self.below(65536) - 32768
            case 2 if depth < 3:
                return [self.value(depth + 1) for _ in range(self.below(4))]
            case 3 if depth < 3:
                return {self.text(8): self.value(depth + 1) for _ in range(self.below(4))}
            case _:
                return self.pick(HOSTILE)

    def or_hostile(self, right: T) -> Any:
        """`right`, mostly."""
        return right if self.mostly() else self.value()


def arguments(choices: Choices, schema: dict[str, Any], images: Sequence[str]) -> dict[str, Any]:
    """Arguments for a tool's input schema: each field left out, right, or hostile."""
    required = schema.get("required", ())
    given: dict[str, Any] = {}
    for name, field in schema["properties"].items():
        if choices.mostly() if name in required else choices.below(4) == 3:
            given[name] = choices.or_hostile(_right(choices, name, field, images))
    if not choices.mostly():
        given[choices.text(12)] = choices.value()
    return given


def _right(choices: Choices, name: str, field: dict[str, Any], images: Sequence[str]) -> Any:
    """A value that a field's schema allows."""
    if "enum" in field:
        return choices.pick(field["enum"])
    match field.get("type"):
        case "array":
            size = choices.below(field.get("maxItems", 3) + 1)
            return [_right(choices, name, field.get("items", {}), images) for _ in range(size)]
        case "string" if name.startswith("image"):
            return choices.pick(images)
        case "string":
            return choices.pick(("a red circle", "blue", choices.text()))
        case "integer":
            return field.get("minimum", 0) + choices.below(40)
        case "number":
            return field.get("minimum", 0) + choices.below(256) / 128
        case "boolean":
            return not choices.mostly()
        case _:
            return choices.value()
