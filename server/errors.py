"""Every failure as a `ToolError`: the one place where exceptions become words for a caller."""

import re
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

from structlog.contextvars import bound_contextvars, get_contextvars

from omnigen2.task import Cancelled, OutOfMemory
from server.counts import Counts
from server.log import get_logger
from storage.errors import StoreError
from tools.base import Code, ToolError

_FOLDERS = re.compile(r"(?<![\w:/.~-])(?:/[^\s/:'\"(),;]+)*/(?=[^\s/])")

log = get_logger(__name__)


@contextmanager
def answering(what: str, client: str, counts: Counts | None = None) -> Generator[None]:
    """Turn every exception of the block into a `ToolError`. Every surface answers inside of one.

    Logs and counts how the call of `what`, a tool or a method of a protocol, ended. All lines logged in the
    block have the id of the request.
    """
    started = time.monotonic()
    request = get_contextvars().get("request") or secrets.token_hex(8)
    with bound_contextvars(request=request, tool=what, client=client):
        code = "cancelled"
        try:
            yield
            code = "ok"
        except Exception as error:
            failure = as_tool_error(error)
            code = failure.code
            raise failure from error
        finally:
            if counts is not None:
                counts.add("calls", what, code)
            log.info("answered", code=code, ms=round(1000 * (time.monotonic() - started), 1))


def without_folders(text: str) -> str:
    """`text` with only the last part of each absolute path: callers must not learn folders of the host."""
    return _FOLDERS.sub("", text)


def as_tool_error(error: BaseException, field: str = "") -> ToolError:
    """The error that the caller gets for `error`, about the argument `field` if there is one.

    What is for the host only, such as the store's folder, goes to the log. So does an unforeseen error, of
    which the caller gets no details.
    """
    match error:
        case ToolError():
            return error
        case StoreError():
            if error.place or error.code == "internal":
                log.warning("the store failed", error=str(error))
            message = f"{field}: {error.message}" if field else error.message
            return ToolError(cast(Code, error.code), message, error.advice)
        case OutOfMemory():
            return ToolError(
                "out_of_memory", without_folders(str(error)), "Ask for fewer or smaller pictures."
            )
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
