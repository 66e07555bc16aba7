"""What is published: one version everywhere, a registry entry in its form, and a wheel that works alone."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters

PROJECT = Path(__file__).parents[2]
PACKAGES = ("server", "tools", "omnigen2", "storage")
BUILD_S = 120


def json_of(path: str) -> dict[str, Any]:
    return json.loads((PROJECT / "packaging" / path).read_text(encoding="utf-8"))


def test_one_version_everywhere() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    entry = json_of("server.json")
    versions = [entry["version"], json_of("mcpb/manifest.json")["version"]]
    versions += [package["version"] for package in entry["packages"]]
    assert set(versions) == {project["version"]}


def test_the_registry_entry_is_in_its_form() -> None:
    # Rules of the registry's schema of 2025-12-11: name, lengths, arguments, transport.
    entry = json_of("server.json")
    assert re.fullmatch(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+", entry["name"]) and len(entry["name"]) <= 200
    assert 1 <= len(entry["description"]) <= 100 and 1 <= len(entry["title"]) <= 100
    assert set(entry) <= {"$schema", "name", "title", "description", "version", "packages"}
    (package,) = entry["packages"]
    needed = {"registryType", "identifier", "version", "transport"}
    assert needed <= set(package) <= needed | {"runtimeHint", "packageArguments", "environmentVariables"}
    assert package["transport"] == {"type": "stdio"}
    for argument in package["packageArguments"]:
        assert argument["type"] == "positional" and ("value" in argument or "valueHint" in argument)
    for variable in package["environmentVariables"]:
        assert set(variable) <= {"name", "description", "default", "format", "isRequired", "isSecret"}
        assert variable.get("format", "string") in ("string", "number", "boolean", "filepath")


def test_the_registry_finds_its_name_in_the_readme() -> None:
    assert f"mcp-name: {json_of('server.json')['name']}" in (PROJECT / "README.md").read_text(
        encoding="utf-8"
    )


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A new environment with the wheel, and with the dependencies of this one, but nothing else of ours."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in PACKAGES:
        shutil.copytree(PROJECT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, source]
    ran = subprocess.run(build, capture_output=True, text=True, timeout=BUILD_S, check=False)
    if "No matching distribution" in ran.stderr or "connection" in ran.stderr.lower():
        pytest.skip("the tools that build a wheel cannot be had here")
    assert ran.returncode == 0, ran.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    folder = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True, timeout=BUILD_S)
    packages = next((folder / "lib").glob("python*/site-packages"))
    install = [sys.executable, "-m", "pip", "--python", folder, "install", "--quiet", "--no-deps", wheel]
    subprocess.run(install, check=True, timeout=BUILD_S)
    # A path in a .pth file is added as it is: the editable installation of this environment is not.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_the_wheel_runs_alone(environment: Path, tmp_path: Path) -> None:
    program = str(environment / "bin" / "omnigen2-mcp")
    code = "import server, omnigen2; print(server.__file__, omnigen2.__file__)"
    where = subprocess.run(
        [environment / "bin" / "python", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    assert where.count(str(environment)) == 2

    async def conversation() -> None:
        command = StdioServerParameters(
            command=program, args=["serve", "--store", str(tmp_path / "store")], cwd=tmp_path
        )
        with anyio.fail_after(120):
            async with Client(command) as client:
                tools = {tool.name for tool in (await client.list_tools()).tools}
                assert {"generate_image", "describe_image"} <= tools
                size = {"width": 32, "height": 32, "steps": 1}
                made = await client.call_tool("generate_image", {"prompt": "a red circle", **size})
                assert not made.is_error, made.content

    anyio.run(conversation)
