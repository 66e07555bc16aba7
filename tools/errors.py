"""The errors that a caller of a tool may see."""

from typing import Literal

Code = Literal[
    "invalid_argument",
    "image_not_found",
    "image_rejected",
    "busy",
    "out_of_memory",
    "cancelled",
    "not_ready",
    "forbidden",
    "conflict",
    "internal",
]


class ToolError(Exception):
    """A failed call, in words an agent can act on: what was wrong, and what to do next."""

    def __init__(self, code: Code, message: str, advice: str = "", retry_after_s: int | None = None) -> None:
        """`retry_after_s`: seconds after which the same call may succeed."""
        super().__init__(message)
        self.code: Code = code
        self.message = message
        self.advice = advice
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()

    def copy(self) -> "ToolError":
        """The same error without its traceback, whose frames keep the inputs in memory."""
        return ToolError(self.code, self.message, self.advice, self.retry_after_s)
