"""What a tool answered, or why it did not, in the form of OpenAI's images API."""

import base64
import io
import re
import time
from typing import Any

from PIL import Image
from starlette.responses import JSONResponse

from server import schema
from server.app import App
from server.caller import Caller
from server.http.openai.asked import NAMES, Asked
from server.http.refusals import refusal
from storage import codec
from tools.base import Picture, Result, ToolError

KINDS = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error",
         404: "invalid_request_error", 409: "invalid_request_error", 422: "invalid_request_error",
         429: "rate_limit_error"}  # fmt: skip
"""OpenAI's type of an error, by status; of any other one it is `server_error`."""
FINAL = {"cancelled", "out_of_memory"}
"""Errors that the same request would meet again; OpenAI's client repeats what has the status of these."""
_FIELD = re.compile(r"([a-z_]+)(?:\.\d+)*: ")


def answer(result: Result, asked: Asked, app: App, caller: Caller) -> dict[str, Any]:
    """The document that answers a request. Reads the pictures: not for the event loop."""
    as_url = asked.options.response_format == "url"
    made = schema.dump(result, caller.address_of if as_url else None)
    images: list[dict[str, Any]] = made.pop("images")
    made["notes"] = [*asked.notes, *made["notes"]]
    store = app.store_of(caller.principal)
    data = [
        image if as_url else {"b64_json": encoded(store.read(image["id"]), asked)} | image for image in images
    ]
    size = f"{images[0]['width']}x{images[0]['height']}" if images else None
    shape = {"size": size, "background": "opaque", "output_format": _format(asked)}
    return {"created": int(time.time()), "data": data} | shape | made


def encoded(png: bytes, asked: Asked) -> str:
    """A stored picture in the format that was asked for, as base64."""
    kind = _format(asked)
    if kind != "png":
        out = io.BytesIO()
        quality = asked.options.output_compression
        picture = Image.open(io.BytesIO(png), formats=("PNG",))
        if kind == "jpeg" and picture.mode != "RGB":
            picture = picture.convert("RGB")
        picture.save(out, kind, quality=100 if quality is None else quality)
        png = out.getvalue()
    return base64.b64encode(png).decode()


def partial(picture: Picture, index: int, asked: Asked) -> dict[str, Any]:
    """The fields of an event with a preview."""
    return {
        "b64_json": base64.b64encode(picture.data).decode(),
        "partial_image_index": index,
        "output_format": picture.mime_type.partition("/")[2],
        "size": asked.options.size or "auto",
        **_common(asked),
    }


def completed(document: dict[str, Any], image: dict[str, Any], asked: Asked) -> dict[str, Any]:
    """The fields of an event with a finished picture."""
    none = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}  # nothing is counted in tokens here
    usage = none | {"input_tokens_details": {"image_tokens": 0, "text_tokens": 0}}
    rest = {name: value for name, value in document.items() if name not in ("data", "created")}
    return rest | image | _common(asked) | {"usage": usage}


def _common(asked: Asked) -> dict[str, Any]:
    return {
        "created_at": int(time.time()),
        "quality": asked.options.quality or "auto",
        "background": "opaque",
    }


def _format(asked: Asked) -> str:
    return asked.options.output_format or codec.MIME_TYPE.partition("/")[2]


def failed(error: ToolError, status: int | None = None, code: str | None = None) -> JSONResponse:
    """An error as a response. `status` and `code` override those of the error."""
    plain = refusal(error, status)
    headers = {name: value for name, value in plain.headers.items() if name == "retry-after"}
    if error.code in FINAL:
        headers["x-should-retry"] = "false"
    return JSONResponse(failure(error, plain.status_code, code), plain.status_code, headers)


def failure(error: ToolError, status: int, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    words = str(error)
    named = _FIELD.match(words)
    param = named and NAMES.get(named[1], named[1])
    if named and param:
        words = param + words.removeprefix(named[1])
    kind = KINDS.get(status, "server_error")
    return {"error": {"message": words, "type": kind, "param": param, "code": code or error.code}}
