"""Every example runs, from a folder of its own, and leaves what it says."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from omnigen2.checkpoints.locate import NANO, resolve
from tests.clients.conftest import listening

EXAMPLES = Path(__file__).parents[2] / "examples"


def has_nano() -> bool:
    try:
        return resolve(NANO).is_dir()
    except FileNotFoundError:
        return False


def run(words: list[str], folder: Path, environment: dict[str, str]) -> str:
    ran = subprocess.run(
        words, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert ran.returncode == 0, ran.stdout[-1000:] + ran.stderr[-3000:]
    return ran.stdout


def test_demo_prints_every_call_and_saves_a_contact_sheet(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    output = tmp_path / "out"
    printed = run([sys.executable, str(EXAMPLES / "demo.py"), "--output", str(output)], tmp_path, environment)
    calls = [line.split("(")[0].removeprefix("> ") for line in printed.splitlines() if line.startswith("> ")]
    assert calls == [
        *["generate_image"] * 3,
        "edit_image",
        "compose_from_references",
        "describe_image",
        "image_history",
        "generate_image",
    ]
    assert "from the store" in printed
    with Image.open(output / "contact-sheet.png") as sheet:
        assert sheet.width == 5 * 256


def test_client_script_saves_the_edited_picture(tmp_path: Path, environment: dict[str, str]) -> None:
    assert "blue.png sha256:" in run([sys.executable, str(EXAMPLES / "mcp_client.py")], tmp_path, environment)
    with Image.open(tmp_path / "blue.png") as picture:
        assert picture.size == (32, 32)


def test_commands_make_their_files(tmp_path: Path, environment: dict[str, str]) -> None:
    for line in (EXAMPLES / "commands.sh").read_text(encoding="utf-8").splitlines():
        run(shlex.split(line), tmp_path, environment)
    for name in ("circle.png", "blue.png", "both.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (32, 32)


PRINTED = "http://127.0.0.1:8765"


@pytest.fixture
def url(environment: dict[str, str]) -> Iterator[str]:
    """A server at another address than the examples print: theirs may be taken."""
    with listening(environment) as url:
        yield url


def test_curl_lines_are_answered_and_leave_their_files(
    url: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "circle.png")
    for line in (EXAMPLES / "curl.sh").read_text(encoding="utf-8").splitlines():
        printed = run(shlex.split(line.replace(PRINTED, url)), tmp_path, environment)
        assert not printed or "error" not in json.loads(printed)
    for name in ("circle.json", "blue.json"):
        assert json.loads((tmp_path / name).read_text(encoding="utf-8"))["data"][0]["b64_json"]


def test_openai_script_makes_and_edits_a_picture(
    url: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    script = (EXAMPLES / "openai_client.py").read_text(encoding="utf-8").replace(PRINTED, url)
    run([sys.executable, "-c", script], tmp_path, environment)
    for name in ("circle.png", "blue.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (64, 64)


@pytest.mark.skipif(not has_nano(), reason="the nano checkpoint is not in this checkout")
def test_library_makes_a_picture_and_reads_it(tmp_path: Path, environment: dict[str, str]) -> None:
    assert run([sys.executable, str(EXAMPLES / "library.py")], tmp_path, environment).strip()
    assert (tmp_path / "blue.png").is_file()
