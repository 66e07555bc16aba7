"""The core's own tools, offered through the hook that every plugin uses."""

from collections.abc import Callable
from typing import Any

import pluggy

from tools import compose_from_references, describe_image, edit_image, generate_image, jobs, library
from tools.base import Tool

TOOLS: tuple[Tool[Any, Any], ...] = (
    generate_image.TOOL,
    edit_image.TOOL,
    compose_from_references.TOOL,
    describe_image.TOOL,
    library.IMPORT_IMAGE,
    library.LIST_IMAGES,
    library.VIEW_IMAGE,
    library.IMAGE_HISTORY,
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
