"""Images as MCP resources: the full picture, and a preview that is small enough for a conversation.

Resources of plugins stand beside them.

The caller of the handlers translates what they raise.
"""

from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import anyio.to_thread
import mcp_types as types
from mcp.server.context import ServerRequestContext

from server.caller import Caller
from server.offered import OfferedResources
from server.renditions import PREVIEW
from storage import Record, StoredImage, StoreView, codec
from storage.digest import SCHEME
from tools.references import address_digits

RequestContext = ServerRequestContext[Any, Any]

VARIABLE = "digest"
FULL = f"{SCHEME}{{{VARIABLE}}}"
TITLE = 60
"""Characters of a prompt that are the title of its image."""
RECENT = 50
"""Images on one page of the list."""
MAX_COMPLETIONS = 100
"""Most values that the protocol allows."""
SEARCHED = 1000
"""Images among which a completion is looked for, newest first."""
FOREVER_MS = 7 * 24 * 3600 * 1000
"""What a digest names never changes; a client may keep it."""

TEMPLATES = (
    types.ResourceTemplate(
        name="image",
        title="Image",
        uri_template=FULL,
        description="The full image: PNG of its pixels, nothing else.",
        mime_type=codec.MIME_TYPE,
    ),
    types.ResourceTemplate(
        name="preview",
        title="Preview of an image",
        uri_template=FULL + PREVIEW,
        description="A small copy to look at: at most 512 pixels and 150 kB, JPEG or WebP.",
    ),
)
"""The two forms of an image."""


class Resources:
    """The resource handlers of an MCP server: images of a store, and what plugins offer."""

    def __init__(
        self,
        store_of: Callable[[str], StoreView],
        offered: OfferedResources,
        caller: Callable[[RequestContext], Caller],
    ) -> None:
        """`caller` says on whose behalf a request is made, `store_of` what that principal may see."""
        self._store_of = store_of
        self._offered = offered
        self._caller = caller

    async def list_recent(
        self, ctx: RequestContext, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        """What plugins offer, and recent images, newest first, page by page."""
        cursor = params.cursor if params else None
        return await anyio.to_thread.run_sync(self._page, self._store(ctx), cursor)

    async def list_templates(self, ctx: RequestContext, params: Any) -> types.ListResourceTemplatesResult:
        """The forms of an image, and the templates of plugins."""
        return types.ListResourceTemplatesResult(resource_templates=[*TEMPLATES, *self._offered.templates()])

    async def read(
        self, ctx: RequestContext, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        """The bytes of an image or of its preview, or what a plugin offers."""
        uri = str(params.uri)
        if not uri.startswith(SCHEME) and (found := await self._offered.read(uri)) is not None:
            return types.ReadResourceResult(contents=[found])
        own = self._caller(ctx).own_addresses
        data, mime_type = await anyio.to_thread.run_sync(_bytes, self._store(ctx), uri, own)
        blob = b64encode(data).decode("ascii")
        contents = types.BlobResourceContents(uri=uri, mime_type=mime_type, blob=blob)
        return types.ReadResourceResult(contents=[contents], ttl_ms=FOREVER_MS)

    async def complete(
        self, ctx: RequestContext, params: types.CompleteRequestParams
    ) -> types.CompleteResult:
        """Ids of images that begin as typed, newest first; other arguments have no completions."""
        template = isinstance(params.ref, types.ResourceTemplateReference)
        prefix = "" if template else "sha256:"
        known = params.argument.name == VARIABLE if template else params.argument.name.startswith("image")
        ids = partial(_ids, self._store(ctx), params.argument.value, prefix)
        values = await anyio.to_thread.run_sync(ids) if known else []
        shown = values[:MAX_COMPLETIONS]
        return types.CompleteResult(
            completion=types.Completion(values=shown, total=len(values), has_more=len(values) > len(shown))
        )

    def _store(self, ctx: RequestContext) -> StoreView:
        return self._store_of(self._caller(ctx).principal)

    def _page(self, store: StoreView, cursor: str | None) -> types.ListResourcesResult:
        page = store.list(limit=RECENT, cursor=cursor)
        records = (store.origin(image.id).record for image in page.images)
        resources = [] if cursor else self._offered.resources()
        entries = zip(page.images, records, strict=True)
        resources += [types.Resource(**described(*entry)) for entry in entries]
        return types.ListResourcesResult(resources=resources, next_cursor=page.cursor)


def _bytes(store: StoreView, uri: str, own: Sequence[str]) -> tuple[bytes, str]:
    digits = address_digits(uri, own)
    path = uri.partition("?")[0] if digits else uri
    image = digits or path.removesuffix(PREVIEW)
    return store.preview(image) if path.endswith(PREVIEW) else (store.read(image), codec.MIME_TYPE)


def _ids(store: StoreView, typed: str, prefix: str) -> list[str]:
    names = (prefix + image.id.hex for image in store.list(limit=SEARCHED).images)
    return [name for name in names if name.startswith(typed.lower())]


def described(image: StoredImage, record: Record | None) -> dict[str, Any]:
    """What MCP says of a resource that is an image, made as `record` says."""
    size = f"{image.width} x {image.height}"
    words = " ".join(record.searched_text()[:TITLE].split()) if record else ""
    return {
        "uri": image.id.uri,
        "name": str(image.id)[:15],
        "title": image.label or words or size,
        "description": ", ".join(filter(None, [record.tool if record else "", size, _seed(image, record)])),
        "mime_type": image.mime_type,
        "size": image.bytes,
        "annotations": types.Annotations(audience=["user"], last_modified=image.created.isoformat()),
    }


def link(
    image: StoredImage, record: Record | None, address_of: Callable[[str], str] | None
) -> types.ResourceLink:
    """A link to a full image, as a content block for the user; where there are addresses, to its address."""
    about = described(image, record)
    if address_of:
        about["uri"] = address_of(str(image.id))
    return types.ResourceLink(**about)


def _seed(image: StoredImage, record: Record | None) -> str:
    """The seed that makes this picture again, in words; empty where there is none."""
    if record is None or record.seed is None or image.id not in record.outputs:
        return ""
    return f"seed {record.seed + record.outputs.index(image.id)}"
