"""Every command with what a terminal cannot print, a store that cannot be had, and readers that go away."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from server.cli import main as cli
from storage import ImageStore
from tests.server.core.conftest import CHECKPOINT, HeldEngine, engine, make_app, omnigen

__all__ = ["engine", "make_app", "omnigen"]

HOSTILE = "caf\u00e9 \x1b[31m\x1b]0;title\x07 [/] [red] :heart: \u202egnp\u2069 \U0001f600 \x9b2J\rx"
SMALL = ["--steps", "2", "--width", "32", "--height", "32", "--seed", "1"]
WITH_STORE = {
    "ls": ["store", "ls"],
    "show": ["store", "show", "ID"],
    "verify": ["store", "verify"],
    "rebuild-index": ["store", "rebuild-index"],
    "gc": ["store", "gc"],
    "export": ["store", "export", "ID", "--to", "out"],
    "store import": ["store", "import", "pictures"],
    "pin": ["store", "pin", "ID"],
    "unpin": ["store", "unpin", "ID"],
    "label": ["store", "label", "ID", HOSTILE],
    "import": ["import", "red.png", "--label", HOSTILE],
    "list": ["list"],
    "history": ["history", "ID"],
    "view": ["view", "ID", "--output", "look"],
    "generate": ["generate", HOSTILE, *SMALL, "--output", "made"],
    "edit": ["edit", "red.png", HOSTILE, *SMALL],
    "describe": ["describe", "red.png", "--question", HOSTILE, "--max-tokens", "2"],
}
WITHOUT_STORE = {
    "models": ["models", "list"],
    "show": ["models", "show", str(CHECKPOINT)],
    "doctor": ["doctor", "--model", str(CHECKPOINT)],
    "help": ["--help"],
}
every_command = pytest.mark.parametrize(
    "words", [*WITH_STORE.values(), *WITHOUT_STORE.values()], ids=lambda words: "-".join(words[:2])
)


@pytest.fixture(autouse=True)
def image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_app: Callable, engine: HeldEngine
) -> Iterator[str]:
    """A working directory with pictures, and the id of a stored one with a hostile label."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMNIGEN2_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("OMNIGEN2_MODEL", str(CHECKPOINT))
    monkeypatch.setattr(
        "server.cli.tools.build_app", lambda settings: make_app(lambda: engine, store=settings.store)
    )
    Path("pictures").mkdir()
    Path("pictures", "\x1b[31m.txt").write_text("no picture")
    Image.new("RGB", (16, 16), "red").save("red.png")
    with ImageStore(tmp_path / "store") as store:
        yield str(store.put(Image.new("RGB", (16, 16), "blue"), label=HOSTILE).id)


def run(words: list[str], image: str) -> int:
    """The exit status of a command line."""
    return cli.run([image if word == "ID" else word for word in words])


@every_command
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_what_cannot_be_printed_is_shown_in_another_way(
    words: list[str],
    encoding: str,
    image: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding))
    status = run(words, image)
    shown = out.getvalue().decode(encoding)
    monkeypatch.undo()
    assert status == 0, capsys.readouterr().err
    assert not any(sign in shown for sign in "\x1b\x07\x9b\r\u202e")
    assert shown


@pytest.mark.parametrize("words", WITH_STORE.values(), ids=lambda words: "-".join(words[:2]))
def test_a_store_that_cannot_be_had_is_told_once_in_a_sentence(
    words: list[str], image: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--store", "red.png"], image) != 0
    shown = capsys.readouterr()
    assert not shown.out and shown.err.startswith("omnigen2-mcp: ")
    assert shown.err.count("\n") == 1 and "red.png" in shown.err and "Traceback" not in shown.err


@pytest.mark.parametrize("words", WITH_STORE.values(), ids=lambda words: "-".join(words[:2]))
def test_the_store_that_was_typed_is_the_one_that_is_used(
    words: list[str], image: str, tmp_path: Path
) -> None:
    with ImageStore(tmp_path / "other") as other, ImageStore(tmp_path / "store") as store:
        other.put(Image.new("RGB", (16, 16), "blue"))
        before = (store.usage(), store.get(image))
        assert run([*words, "--store", "other"], image) == 0
        assert (store.usage(), store.get(image)) == before


@every_command
@pytest.mark.parametrize("as_json", [False, True])
def test_a_reader_that_goes_away_is_no_failure_to_tell_of(
    words: list[str],
    as_json: bool,
    image: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run([*words, "--json"] if as_json and words != ["--help"] else words, image) == 1
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_a_full_disk_behind_stdout_is_told_in_a_sentence(
    image: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w", encoding="utf-8") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run(["store", "ls"], image) != 0
        monkeypatch.undo()
    shown = capsys.readouterr().err
    assert "No space left" in shown and shown.count("\n") == 1


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("red.png", "cannot be written (File exists)"),
        ("red.png/x.png", "cannot be written"),
        ("/proc/x.png", "cannot be written"),
        ("x.tiff", "cannot be written as x.tiff"),
        ("red.png/folder", "cannot be written"),
        ("a" * 300 + ".png", "cannot be written"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_model_runs(
    output: str, told: str, image: str, engine: HeldEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["generate", "x", *SMALL, "--output", output], image) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("omnigen2-mcp: output: ") and told in shown and shown.count("\n") == 1
    assert engine.started == []
    assert run(["describe", "red.png", "--output", "x.png"], image) == 2
    assert engine.started == [] and "no image to write" in capsys.readouterr().err


def test_a_process_with_closed_streams_and_foreign_bytes_ends_in_order(image: str, tmp_path: Path) -> None:
    start = f"LC_ALL=C PYTHONUTF8=0 '{sys.executable}' -m server.cli"
    shell = (
        f"{start} store label {image} $'caf\\xe9' >&- 2>err; echo $?; {start} store ls <&- >out 2>&1; echo $?"
    )
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=120, check=True)
    first, second = map(int, done.stdout.split())
    assert (first, second) in ((0, 0), (2, 0))
    told = Path("err").read_text() + Path("out").read_text()
    assert "Traceback" not in told and "Exception ignored" not in told and "\x1b" not in told
