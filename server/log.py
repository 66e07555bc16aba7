"""Logs: structured lines on stderr, with the id of the request they belong to. stdout stays clean.

Aligned text on a terminal, JSON elsewhere. Prompts and images are logged at no level; libraries, which may
log them at `info`, are therefore limited to warnings.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

OURS = ("server", "tools", "omnigen2", "storage")
"""Packages whose messages are known to hold no prompt, no picture and no token, at any level."""


_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
]

# On import, as structlog would otherwise print to stdout, which belongs to the protocol.
structlog.configure(
    processors=[
        structlog.stdlib.filter_by_level,
        *_SHARED,
        structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
)


def configure(level: str) -> None:
    """Show everything of at least `level` (`debug`, `info`, ...); of libraries, of at least `warning`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_SHARED,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_rendering()],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    chosen = logging.getLevelNamesMapping()[level.upper()]
    # Libraries log at `debug` and `info` what passes through them: whole requests, headers, metadata.
    root.setLevel(max(chosen, logging.WARNING))
    for name in OURS:
        logging.getLogger(name).setLevel(chosen)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """The logger of a module: `log.info("what happened", about=value)`."""
    return structlog.get_logger(name)


def _rendering() -> list[Any]:
    if sys.stderr.isatty():
        return [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    return [structlog.processors.format_exc_info, _message_last, structlog.processors.JSONRenderer()]


def _message_last(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """When, how bad and where first, for people who read the raw lines."""
    first = ("timestamp", "level", "logger", "event", "request")
    return {name: event[name] for name in first if name in event} | dict(event)
