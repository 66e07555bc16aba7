"""What an answer over HTTP may be: the documented codes and forms, judged for whoever attacks the server."""

import json
from typing import Any, get_args

from server.http.refusals import STATUS
from tools.base import Code

LONGEST_REFUSAL = 8000
"""Bytes of the body of an error."""
LIBRARY_REFUSALS = frozenset({401, 403, 404, 405, 413, 415, 416, 421})
"""Statuses that come of the request's frame: its route, method, type, range, size, host or token."""


def judge_refusal(document: Any, where: object) -> dict[str, str]:
    """The error in a document, which must be complete, short, in words, and not `internal`.

    Raises:
        AssertionError: it is not as documented; `where` is shown.
    """
    error = document["error"]
    assert set(error) == {"code", "message", "advice"}, where
    assert error["code"] in get_args(Code) and error["code"] != "internal", where
    assert error["message"] and len(json.dumps(document)) < LONGEST_REFUSAL, where
    return error


def judge_answer(status: int, headers: Any, body: bytes, where: object) -> str:
    """A word for an answer of the tools over HTTP: its status, and its code if it is a refusal.

    Raises:
        AssertionError: it is not as documented.
    """
    if status < 400:
        assert status in (200, 202, 304), (where, status, body[:300])
        return str(status)
    shown = (where, status, body[:400])
    assert headers.get("content-type", "").startswith("application/json"), shown
    error = judge_refusal(json.loads(body), shown)
    assert status in LIBRARY_REFUSALS or STATUS[error["code"]] == status, shown  # type: ignore[index]
    assert status not in (429, 503) or int(headers["retry-after"]) > 0, shown
    return f"{status} {error['code']}"
