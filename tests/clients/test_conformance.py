"""The official conformance suite against our server, its fixtures being a plugin.

What the suite prints is printed here, too: `pytest -rP tests/clients/test_conformance.py` shows it.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from tests.clients.conftest import listening
from tests.plugins import with_plugins

SUITE = "@modelcontextprotocol/conformance/dist/index.js"
SUITE_S = 60
LOGGING = "no logging: deprecated (SEP-2577), and the log of a server is for its host"
SUBSCRIBING = "no subscriptions: an image never changes"
ASKING = "no tool asks the client anything: few clients can, and the agent knows what the user wants"
NOT_OFFERED = {
    "logging-set-level": LOGGING,
    "tools-call-with-logging": LOGGING,
    "resources-subscribe": SUBSCRIBING,
    "resources-unsubscribe": SUBSCRIBING,
    "tools-call-sampling": ASKING,
    "tools-call-elicitation": ASKING,
    "elicitation-sep1034-defaults": ASKING,
    "elicitation-sep1330-enums": ASKING,
}
"""Scenarios of what the server does not offer, and says that it does not; why."""
DATE = r"-\d{4}-\d\d-\d\dT"
NOT_RESUMABLE = {"server-sse-priming-event", "server-sse-retry-field"}
"""Checks that only warn: a stream that breaks is not resumed, so its events need no ids."""

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_every_scenario_of_what_is_offered_passes(
    node_modules: Path, modern_node: str, environment: dict[str, str], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    environment = with_plugins(environment, tmp_path / "site", "tests.clients.conformance_plugin")
    with listening(environment) as url:
        async with Client(f"{url}/mcp", mode="legacy") as client:
            offered = client.server_capabilities
        command = [modern_node, node_modules / SUITE, "server", "--url", f"{url}/mcp", "--suite", "all"]
        suite = subprocess.run(
            [*command, "-o", results], capture_output=True, text=True, timeout=SUITE_S, check=False
        )
    print(suite.stdout, suite.stderr)
    checks: dict[str, list[dict[str, Any]]] = {
        re.split(DATE, path.parent.name.removeprefix("server-"))[0]: json.loads(path.read_text("utf-8"))
        for path in results.glob("*/checks.json")
    }
    assert len(checks) == 32, "the suite has other scenarios than it had"
    found = {
        (scenario, check["id"], check["status"]): check.get("errorMessage")
        for scenario, made in checks.items()
        for check in made
        if check["status"] in ("FAILURE", "WARNING")
    }
    failed = {scenario for scenario, _, status in found if status == "FAILURE"}
    assert failed == NOT_OFFERED.keys(), found
    assert {check for _, check, status in found if status == "WARNING"} == NOT_RESUMABLE, found
    assert offered.logging is None and offered.resources is not None and not offered.resources.subscribe
