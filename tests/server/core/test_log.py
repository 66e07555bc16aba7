"""Logs: one structured line per event on stderr, with the request it belongs to; stdout stays empty."""

import json
import logging

import pytest
from structlog.contextvars import bound_contextvars

from server import log


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setattr(root, "level", root.level)


def test_a_line_is_json_with_the_request_it_belongs_to(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("info")
    with bound_contextvars(request="abc"):
        log.get_logger("server.app").info("answered", ms=3)
        logging.getLogger("omnigen2.manager").info("model %s loaded", "nano")
        log.get_logger("server.app").debug("not shown")
    shown = capsys.readouterr()
    ours, theirs = (json.loads(line) for line in shown.err.splitlines())
    assert shown.out == ""
    assert (ours["event"], ours["ms"], ours["request"], ours["level"]) == ("answered", 3, "abc", "info")
    assert (theirs["event"], theirs["request"]) == ("model nano loaded", "abc")


def test_of_libraries_only_warnings_are_shown_at_any_level(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("debug")
    for name in ("mcp.server", "httpx", "uvicorn.error", "PIL.TiffImagePlugin", "sse_starlette", "any"):
        logging.getLogger(name).debug("canary")
        logging.getLogger(name).info("canary")
        logging.getLogger(name).warning("shown")
    log.get_logger("server.app").debug("ours")
    shown = capsys.readouterr().err
    assert "canary" not in shown and shown.count("shown") == 6 and "ours" in shown


def test_a_failure_is_logged_with_its_traceback_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    log.configure("warning")
    try:
        raise RuntimeError("why")
    except RuntimeError as error:
        log.get_logger("x").error("failed", exc_info=error)
    (line,) = capsys.readouterr().err.splitlines()
    assert "RuntimeError: why" in json.loads(line)["exception"]
