"""Hosts of agents that are known to hide something, by the name of their MCP client.

A result that shows pictures has them beside its structured content. Some hosts hand only the structured
content on to the model, which then works blind; they are sent the content blocks alone. A host leaves the
list once it shows both.
"""

from typing import Literal

from server.hookspecs import AnyTool

Structured = Literal["auto", "always", "never"]

DROP_PICTURES = {
    # #54737: images dropped, 2.1.12x; #79944: content replaced, 2.1.280. The name: cl-ai-project/cl-mcp#26.
    "claude-code": "https://github.com/anthropics/claude-code/issues/54737",
    # #38225, #38287: images dropped, App 26.803; #43497: they are shown, 26.901.
    "codex-mcp-client": "https://github.com/openai/codex/issues/38287",
}
"""Names of clients that drop pictures beside structured content, and a report of each."""


def is_structured(tool: AnyTool, client: str, wanted: Structured) -> bool:
    """Whether a client of this name gets the tool's output schema and the structured content of results."""
    if wanted == "auto":
        drops = client.startswith(tuple(DROP_PICTURES))  # a proxy adds its own name behind the client's
        return not (drops and tool.result.brings_content())
    return wanted == "always"
