"""Clients that are not ours: both TypeScript SDKs, and the Inspector's command line."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import COMMAND, HERE, listening
from tests.clients.conversation import SMALL, check

SDKS = {
    "first": ("sdk/dist/cjs/client/index.js", "sdk/dist/cjs/client/stdio.js"),
    "second": ("client/dist/index.cjs", "client/dist/stdio.cjs"),
}


def node(environment: dict[str, str], *words: str | Path) -> str:
    ran = subprocess.run(
        ["node", *map(str, words)], capture_output=True, text=True, timeout=200, env=environment, check=False
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.mark.parametrize("version", SDKS)
def test_typescript_sdk(node_modules: Path, environment: dict[str, str], version: str) -> None:
    modules = [node_modules / "@modelcontextprotocol" / path for path in SDKS[version]]
    printed = node(environment, HERE / "conversation.cjs", *modules, json.dumps(SMALL), *COMMAND)
    answers = json.loads(printed)
    check(
        {
            name: answer["structuredContent"]
            for name, answer in answers.items()
            if "structuredContent" in answer
        }
    )
    kinds = [block["type"] for block in answers["generated"]["content"]]
    assert kinds == ["text", "image", "resource_link"]
    picture = base64.b64decode(answers["picture"]["contents"][0]["blob"])
    assert len(picture) == answers["history"]["structuredContent"]["steps"][0]["image"]["bytes"]
    assert answers["progress"]
    assert answers["refused"]["isError"]
    assert answers["refused"]["structuredContent"]["error"]["code"] == "invalid_argument"


def test_inspector(node_modules: Path, environment: dict[str, str]) -> None:
    described = json.loads((node_modules / "@modelcontextprotocol/inspector/package.json").read_text("utf-8"))
    program = node_modules / "@modelcontextprotocol/inspector" / described["bin"]["mcp-inspector"]

    with listening(environment) as url:

        def inspect(*words: str) -> dict[str, Any]:
            return json.loads(
                node(environment, program, "--cli", f"{url}/mcp", "--transport", "http", *words)
            )

        def call(tool: str, **arguments: Any) -> dict[str, Any]:
            given = [
                f"{name}={value if isinstance(value, str) else json.dumps(value)}"
                for name, value in arguments.items()
            ]
            words = [word for pair in given for word in ("--tool-arg", pair)]
            return inspect("--method", "tools/call", "--tool-name", tool, *words)["structuredContent"]

        assert {"generate_image", "save_image"} <= {
            tool["name"] for tool in inspect("--method", "tools/list")["tools"]
        }
        generated = call("generate_image", prompt="a red circle", **SMALL)
        first = generated["images"][0]["id"]
        edited = call("edit_image", image=first, instruction="make it blue", **SMALL)
        both = [first, edited["images"][0]["id"]]
        composed = call("compose_from_references", images=both, instruction="side by side", **SMALL)
        last = composed["images"][0]["id"]
        check(
            {
                "generated": generated,
                "edited": edited,
                "composed": composed,
                "described": call("describe_image", images=[last], question="What?", max_tokens=4),
                "history": call("image_history", image=last),
                "replayed": call("generate_image", prompt="a red circle", **SMALL),
            }
        )
