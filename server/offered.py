"""Prompts and resources that plugins offer, the core among them, as MCP lists and reads them.

The caller of the handlers translates what they raise.
"""

from collections.abc import Mapping
from typing import Any

import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.shared.path_security import contains_path_traversal, is_absolute_path
from mcp.shared.uri_template import UriTemplate

from server.blocks import Contents, content_block, contents
from server.offers import Argument, Prompt, Resource
from tools.base import Embedded, ToolError

RequestContext = ServerRequestContext[Any, Any]


class OfferedPrompts:
    """The prompt handlers of an MCP server."""

    def __init__(self, prompts: Mapping[str, Prompt], common: Mapping[str, str]) -> None:
        """`common` are values that the text of every prompt may name."""
        self._prompts = prompts
        self._common = common

    async def list_all(self, ctx: RequestContext, params: Any) -> types.ListPromptsResult:
        """Every prompt and its arguments."""
        return types.ListPromptsResult(prompts=[_described(prompt) for prompt in self._prompts.values()])

    async def get(self, ctx: RequestContext, params: types.GetPromptRequestParams) -> types.GetPromptResult:
        """A prompt with its arguments filled in.

        Raises:
            ToolError: `invalid_argument`: there is no such prompt, or an argument is missing.
        """
        prompt = self._prompts.get(params.name)
        if prompt is None:
            known = f"There are: {', '.join(self._prompts)}."
            raise ToolError("invalid_argument", f"There is no prompt {params.name[:100]!r}.", known)
        blocks = prompt.messages(params.arguments or {}, self._common)
        messages = [types.PromptMessage(role="user", content=content_block(block)) for block in blocks]
        return types.GetPromptResult(description=prompt.words, messages=messages)


class OfferedResources:
    """Resources by their URIs."""

    def __init__(self, resources: Mapping[str, Resource]) -> None:
        self._resources = [(UriTemplate.parse(uri), resource) for uri, resource in resources.items()]

    def resources(self) -> list[types.Resource]:
        """Those with a URI of their own, as MCP lists them."""
        return [
            types.Resource(uri=one.uri, **_facts(one)) for _, one in self._resources if not _is_template(one)
        ]

    def templates(self) -> list[types.ResourceTemplate]:
        """Those with a template of URIs, as MCP lists them."""
        return [
            types.ResourceTemplate(uri_template=one.uri, **_facts(one))
            for _, one in self._resources
            if _is_template(one)
        ]

    async def read(self, uri: str) -> Contents | None:
        """What the resource of that URI holds; None if there is none."""
        for template, resource in self._resources:
            values = template.match(uri)
            if values is not None and all(map(_is_harmless, values.values())):
                content = await resource.read({name: str(value) for name, value in values.items()})
                return contents(Embedded(uri, resource.mime_type, content))
        return None


def _described(prompt: Prompt) -> types.Prompt:
    arguments = [
        types.PromptArgument(name=one.name, description=_sentence(one), required=one.default is None)
        for one in prompt.arguments
    ]
    return types.Prompt(name=prompt.name, title=prompt.title, description=prompt.words, arguments=arguments)


def _sentence(argument: Argument) -> str:
    return f"{argument.words}; if empty: {argument.default}" if argument.default else f"{argument.words}."


def _facts(resource: Resource) -> dict[str, Any]:
    return {
        "name": resource.name,
        "title": resource.title,
        "description": resource.words,
        "mime_type": resource.mime_type,
    }


def _is_template(resource: Resource) -> bool:
    return UriTemplate.is_template(resource.uri)


def _is_harmless(value: object) -> bool:
    """Whether a variable's value leads to no other folder, should the plugin read files."""
    return not (contains_path_traversal(str(value)) or is_absolute_path(str(value)))
