"""Answers with bytes that never change: conditional requests and ranges (RFC 9110, sections 13 and 14)."""

import re
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import Response

from server.http.refusals import refusal
from tools.base import ToolError

RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII | re.IGNORECASE)


def is_known(request: Request, tag: str) -> bool:
    """Whether the client says that it has the content with this entity tag (`If-None-Match`)."""
    given = request.headers.get("if-none-match", "")
    return given.strip() == "*" or tag in (one.strip().removeprefix("W/") for one in given.split(","))


def content(request: Request, data: bytes, kind: str, headers: Mapping[str, str]) -> Response:
    """`data`, or the one range of it that is asked for.

    `kind` is the media type; `headers` have the `ETag`. Several ranges at once are not given: the answer is
    the whole, as for a range that cannot be read.
    """
    headers = {**headers, "Accept-Ranges": "bytes"}
    asked = RANGE.fullmatch(request.headers.get("range", "")) if request.method == "GET" else None
    if asked is None or request.headers.get("if-range", headers["ETag"]) != headers["ETag"]:
        return Response(data, media_type=kind, headers=headers)
    size = len(data)
    match asked[1], asked[2]:
        case "", "":
            return Response(data, media_type=kind, headers=headers)
        case "", last:
            begin, end = max(0, size - int(last)), size
        case first, last:
            begin, end = int(first), min(size, int(last) + 1) if last else size
            if last and int(last) < begin:  # not a range
                return Response(data, media_type=kind, headers=headers)
    if begin >= size:
        return _no_such_range(size)
    headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
    return Response(data[begin:end], 206, media_type=kind, headers=headers)


def _no_such_range(size: int) -> Response:
    error = ToolError("invalid_argument", "The range begins after the end.", f"There are {size:,} bytes.")
    response = refusal(error, 416)
    response.headers["Content-Range"] = f"bytes */{size}"
    return response
