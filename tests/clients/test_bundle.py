"""The MCP bundle: what `make bundle` packs is complete, and its maker's own tool accepts the manifest."""

import json
import subprocess
import zipfile
from pathlib import Path

PROJECT = Path(__file__).parents[2]
MANIFEST = PROJECT / "packaging" / "mcpb" / "manifest.json"


def validated(node_modules: Path, manifest: Path) -> subprocess.CompletedProcess[str]:
    tool = node_modules / ".bin" / "mcpb"
    command = ["node", tool.resolve(), "validate", manifest]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_manifest_is_valid(node_modules: Path, tmp_path: Path) -> None:
    ran = validated(node_modules, MANIFEST)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    wrong = tmp_path / "manifest.json"
    wrong.write_text(MANIFEST.read_text(encoding="utf-8").replace('"uv"', '"snake"', 1), encoding="utf-8")
    assert validated(node_modules, wrong).returncode != 0


def test_the_bundle_is_complete(tmp_path: Path) -> None:
    made = tmp_path / "dist" / "omnigen2-mcp.mcpb"
    made.parent.mkdir()
    recipe = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "bundle"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    subprocess.run(
        recipe.replace(" dist", f" {made.parent}"), shell=True, cwd=PROJECT, capture_output=True, check=True
    )
    with zipfile.ZipFile(made) as bundle:
        names = set(bundle.namelist())
        manifest = json.loads(bundle.read("manifest.json"))
    needed = {"pyproject.toml", "README.md", "LICENSE", manifest["server"]["entry_point"]}
    assert needed | {"server/cli/main.py", "omnigen2/nano/weights/card.json"} <= names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)
