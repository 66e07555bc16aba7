"""The command line: tools as commands, files where the user says, errors in words, exit statuses."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from omnigen2.model import OmniGen2
from server.app import App, build_app
from server.cli import main as cli
from server.plugins import core_plugins
from server.settings import Settings
from storage import ImageStore
from storage.embedding import extract
from tests.server.core.conftest import CHECKPOINT, HeldEngine

SMALL = ["--steps", "2", "--width", "32", "--height", "32", "--seed", "1"]
Run = Callable[..., str]


@pytest.fixture(autouse=True)
def store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_app: Callable[..., App], engine: HeldEngine
) -> Iterator[ImageStore]:
    """A store for the commands, and the tiny model in place of a checkpoint that is loaded anew each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMNIGEN2_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("OMNIGEN2_MODEL", str(CHECKPOINT))
    monkeypatch.setattr("server.cli.tools.build_app", lambda settings: make_app(lambda: engine))
    with ImageStore(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command line that must succeed; what it printed."""

    def ran(*words: str) -> str:
        assert cli.run(words) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return ran


def test_image_is_written_with_its_history_and_its_id_is_printed(run: Run, store: ImageStore) -> None:
    printed = run("generate", "a red circle", *SMALL, "--output", "circle.png")
    (image,) = store.list().images
    assert image.id.hex[:12] in printed and "circle.png" in printed
    carried = extract(Path("circle.png").read_bytes())
    assert carried is not None
    assert carried[1][0].parameters["prompt"] == "a red circle"


def test_an_image_is_saved_where_the_user_says_and_not_over_a_file(
    run: Run, store: ImageStore, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    Path("link").symlink_to(elsewhere)
    image = store.put(Image.new("RGB", (64, 32), "red")).id.hex[:8]
    printed = run("save", image, "link/a.webp", "--width", "16")
    assert str(elsewhere / "a.webp") in printed and "Resized from 64x32 to 16x8" in printed
    with Image.open(elsewhere / "a.webp") as picture:
        assert (picture.size, picture.format) == ((16, 8), "WEBP")
    assert cli.run(["save", image, str(elsewhere / "a.webp")]) == 2
    assert "exists already" in capsys.readouterr().err
    run("save", image, str(elsewhere / "a.webp"), "--overwrite")
    with Image.open(elsewhere / "a.webp") as picture:
        assert picture.size == (64, 32)


def test_files_are_references_wherever_they_lie(
    run: Run, store: ImageStore, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "square.png"
    Image.new("RGB", (32, 32), "blue").save(elsewhere)
    described = json.loads(run("import", str(elsewhere), "--label", "square", "--json"))
    again = json.loads(run("import", elsewhere.as_uri(), "--json"))
    assert described["image"]["id"] == again["image"]["id"] == str(store.list().images[0].id)


@pytest.mark.parametrize("output", ["folder", "folder/with.dots/"])
def test_several_images_go_into_a_folder_or_are_numbered(run: Run, output: str) -> None:
    Path(output).mkdir(parents=True)
    words = ["generate", "x", *SMALL, "--num-images", "2", "--json", "--output"]
    inside = json.loads(run(*words, output))["files"]
    assert len(inside) == 2 and all(Path(file).parent == Path(output) for file in inside)
    assert json.loads(run(*words, "x.png"))["files"] == ["x-1.png", "x-2.png"]


def test_look_at_an_image_is_written_as_it_is_shown(run: Run, store: ImageStore) -> None:
    image = store.put(Image.new("RGB", (64, 64), "red"))
    files = json.loads(run("view", image.id.hex[:8], "--max-side", "16", "--output", "look.jpg", "--json"))[
        "files"
    ]
    with Image.open(files[0]) as look:
        assert look.size == (16, 16)


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["generate"], 2, "prompt"),
        (["generate", "x", "--steps", "0"], 2, "steps: must be a whole number from 1 to 1000"),
        (["generate", "x", "--stepz", "3"], 2, "--steps"),
        (["paint"], 2, "paint"),
        (["edit", "missing.png", "x"], 1, "missing.png"),
        (["history", "deadbeef"], 1, "deadbeef"),
        (["view", "deadbeef", "--output", "x.jpg"], 1, "deadbeef"),
        (["view", "deadbeef", "--output", "/proc/x.jpg"], 2, "output: /proc"),
        (["serve", "--port", "70000"], 2, "port"),
        (["serve", "--allow-dir", "/nowhere"], 2, "/nowhere"),
        (["serve", "--config", "missing.toml"], 2, "missing.toml"),
        (["serve", "--store", "nothing://x"], 2, "nothing://"),
        (["serve", "--transport", "http", "--host", "0.0.0.0"], 2, "token file"),
    ],
)
def test_failure_is_a_sentence_and_a_status(
    words: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(words) == status
    captured = capsys.readouterr()
    assert told in captured.err and captured.err.startswith("omnigen2-mcp: ")
    assert "Traceback" not in captured.err and not captured.out


def test_failure_is_json_if_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["history", "deadbeef", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "image_not_found"


def test_output_that_cannot_be_is_refused(store: ImageStore, capsys: pytest.CaptureFixture[str]) -> None:
    image = store.put(Image.new("RGB", (8, 8)))
    assert cli.run(["view", str(image.id), "--output", "x.tiff"]) == 2
    assert ".jpg" in capsys.readouterr().err
    assert cli.run(["cancel", "nothing", "--output", "x.png"]) == 2


def test_ctrl_c_ends_quietly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.cli.tools.anyio.run", interrupted)
    assert cli.run(["list"]) == 130
    assert capsys.readouterr().err == ""


def test_help_shows_the_defaults_of_the_model(run: Run) -> None:
    text = " ".join(run("generate", "--help").replace("│", "").split())
    assert "Denoising steps: more is slower and finer. [1 to 1000, default 50]" in text


def test_every_tool_is_a_command(run: Run, store: ImageStore) -> None:
    app = build_app(Settings(), core_plugins())
    text = run("--help")
    assert [tool.command for tool in app.tools.values() if f" {tool.command} " not in text] == []
    app.store.close()


def test_adapters_are_typed_as_names_or_files_with_weights(
    run: Run,
    omnigen: OmniGen2,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    width = omnigen.pipeline.transformer.config["hidden_size"]
    loras, elsewhere = tmp_path / "loras", tmp_path_factory.mktemp("elsewhere") / "sketch.safetensors"
    loras.mkdir()
    for file in (loras / "pink.safetensors", elsewhere):
        sides = {"A": np.ones((2, width), np.float32), "B": np.ones((width, 2), np.float32)}
        save_file({f"layers.0.attn.to_q.lora_{side}.weight": own for side, own in sides.items()}, file)
    monkeypatch.setenv("OMNIGEN2_LORA_DIR", str(loras))
    words = ["generate", "x", *SMALL, "--json"]
    typed = json.loads(run(*words, "--lora", "pink:-0.8", "--lora", str(elsewhere)))["parameters"]["lora"]
    assert [(own["name"], own["weight"]) for own in typed] == [("pink", -0.8), (str(elsewhere), 1.0)]
    text = json.dumps([{"name": "pink", "weight": -0.8}, {"name": str(elsewhere)}])
    assert json.loads(run(*words, "--lora", text))["parameters"]["lora"] == typed
    assert "pink" in run("models", "loras")
