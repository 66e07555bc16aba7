"""The core's own tools, offered through the hook that every plugin uses."""

from collections.abc import Callable
from typing import Any

import pluggy

from tools import history, jobs, library, model_tools, saving
from tools.base import Tool

TOOLS: tuple[Tool[Any, Any], ...] = (
    model_tools.GENERATE_IMAGE,
    model_tools.EDIT_IMAGE,
    model_tools.COMPOSE_FROM_REFERENCES,
    model_tools.DESCRIBE_IMAGE,
    library.IMPORT_IMAGE,
    library.LIST_IMAGES,
    library.VIEW_IMAGE,
    history.IMAGE_HISTORY,
    saving.SAVE_IMAGE,
    jobs.GET_JOB,
    jobs.CANCEL_JOB,
)

# The name is that of the project in the server's hook specifications, which tools do not know.
hookimpl = pluggy.HookimplMarker("omnigen2_mcp")


@hookimpl
def register_tools(register: Callable[[Tool[Any, Any]], None]) -> None:
    """Offer all tools of the core."""
    for tool in TOOLS:
        register(tool)
