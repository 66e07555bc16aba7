"""Every failure as a `ToolError`: the one place where exceptions become words for a caller."""

from typing import cast

from structlog.contextvars import get_contextvars

from omnigen2.task import Cancelled, OutOfMemory
from server.log import get_logger
from storage.errors import StoreError
from tools.base import Code, ToolError

log = get_logger(__name__)


def as_tool_error(error: Exception) -> ToolError:
    """What the caller is told of `error`. One that nobody foresaw is logged and gives nothing away."""
    match error:
        case ToolError():
            return error
        case StoreError():
            if error.place:
                log.warning("the store failed", error=str(error))
            return ToolError(cast(Code, error.code), error.message, error.advice)
        case OutOfMemory():
            return ToolError("out_of_memory", str(error), "Ask for fewer or smaller pictures.")
        case Cancelled():
            return ToolError("cancelled", "The request was cancelled; nothing was stored.")
        case _:
            log.error("unforeseen failure", exc_info=error)
            request = get_contextvars().get("request", "unknown")
            return ToolError(
                "internal",
                "The server failed in a way that it did not foresee.",
                f"Try again. If it fails again, ask the host to look for request {request} in the log.",
            )
