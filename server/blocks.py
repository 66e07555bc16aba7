"""Content of results, prompts and resources as MCP has it."""

from base64 import b64encode

import mcp_types as types

from tools.base import Audio, Block, Embedded, Picture

Contents = types.TextResourceContents | types.BlobResourceContents


def content_block(block: Block) -> types.ContentBlock:
    """A piece of content for a model."""
    match block:
        case str():
            return types.TextContent(text=block)
        case Picture():
            return types.ImageContent(data=_base64(block.data), mime_type=block.mime_type)
        case Audio():
            return types.AudioContent(data=_base64(block.data), mime_type=block.mime_type)
        case Embedded():
            return types.EmbeddedResource(resource=contents(block))


def contents(resource: Embedded) -> Contents:
    """What a resource holds."""
    uri, mime_type, content = resource.uri, resource.mime_type, resource.content
    if isinstance(content, str):
        return types.TextResourceContents(uri=uri, mime_type=mime_type, text=content)
    return types.BlobResourceContents(uri=uri, mime_type=mime_type, blob=_base64(content))


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")
