"""Ids of images and records: a SHA-256 as a type.

Three forms are parsed: `sha256:<64 hex>`, the digits alone, and the resource URI `image://sha256/<64 hex>`.
The output form is `sha256:<64 hex>`. Digits are ASCII, case-insensitive in input and lower case in output.
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Any, Self

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from storage.errors import InvalidArgument

SCHEME = "image://sha256/"
MIN_PREFIX = 8
"""Minimum number of hex digits in a reference to an image."""

_REFERENCE = re.compile(rf"(?:sha256:|{SCHEME})?([0-9a-f]{{{MIN_PREFIX},64}})", re.ASCII | re.IGNORECASE)
_SHOWN = 100


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """The SHA-256 of stored bytes; `raw` is 32 bytes."""

    raw: bytes

    def __post_init__(self) -> None:
        if len(self.raw) != 32:
            raise InvalidArgument(f"A digest has 32 bytes, not {len(self.raw)}.")

    @classmethod
    def of(cls, data: bytes) -> Self:
        """The digest of `data`."""
        return cls(hashlib.sha256(data).digest())

    @classmethod
    def parse(cls, text: str) -> Self:
        """The digest in any of the three forms.

        Raises:
            InvalidArgument: `text` is not a digest, or only a prefix of one.
        """
        digits = hex_digits(text)
        if len(digits) != 64:
            raise InvalidArgument(
                f"{_quoted(text)} has {len(digits)} of the 64 hex digits of a digest.", "Give all of them."
            )
        return cls(bytes.fromhex(digits))

    @property
    def hex(self) -> str:
        """The 64 lower-case hex digits."""
        return self.raw.hex()

    @property
    def uri(self) -> str:
        """The resource URI, `image://sha256/<64 hex>`."""
        return SCHEME + self.hex

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Pydantic schema: in JSON, a digest is the string `sha256:<64 hex>`."""
        text = core_schema.no_info_after_validator_function(cls._validated, core_schema.str_schema())
        return core_schema.json_or_python_schema(
            json_schema=text,
            python_schema=core_schema.union_schema([core_schema.is_instance_schema(cls), text]),
            serialization=core_schema.plain_serializer_function_ser_schema(str),
        )

    @classmethod
    def _validated(cls, text: str) -> Self:
        try:
            return cls.parse(text)
        except InvalidArgument as error:
            raise ValueError(str(error)) from error


def hex_digits(text: str) -> str:
    """The lower-case hex digits, 8 to 64, of a digest, a prefix of one or an image URI.

    Raises:
        InvalidArgument: `text` has another form.
    """
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise InvalidArgument(
            f"{_quoted(text)} does not name a stored image.",
            f"Give sha256:<64 hex digits>, {MIN_PREFIX} or more of the digits, or {SCHEME}<64 hex digits>.",
        )
    return match[1].lower()


def _quoted(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")
