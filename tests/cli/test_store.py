"""`omnigen2-mcp store`, in process, on a store with a little history."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from server.cli.store import app
from storage import ImageStore, StoredImage
from storage.errors import ImageNotFound


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMNIGEN2_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "160")
    return tmp_path / "store"


@pytest.fixture
def images(folder: Path) -> list[StoredImage]:
    """A picture, and an edit of it."""
    with ImageStore(folder) as store:
        first = store.put(Image.new("RGB", (40, 30), "red"), label="a [red] field")
        second = store.put(Image.new("RGB", (40, 30), "blue"))
        store.record(
            tool="edit_image",
            parameters={"instruction": "make it blue", "steps": 8},
            inputs=[first.id],
            outputs=[second.id],
            seed=3,
        )
        return [first, second]


def run(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    app(list(tokens), result_action="return_value", exit_on_error=False)
    return capsys.readouterr().out


def test_ls_shows_images_newest_first(capsys: pytest.CaptureFixture[str], images: list[StoredImage]) -> None:
    listed = json.loads(run(capsys, "ls", "--json"))
    assert [image["id"] for image in listed["images"]] == [str(image.id) for image in reversed(images)]
    text = run(capsys, "ls")
    assert images[0].id.hex[:12] in text and "a [red] field" in text and "40x30" in text
    assert "2 images" in text


def test_ls_filters_and_pages(capsys: pytest.CaptureFixture[str], images: list[StoredImage]) -> None:
    found = json.loads(run(capsys, "ls", "--query", "blue", "--tool", "edit_image", "--json"))["images"]
    assert [image["id"] for image in found] == [str(images[1].id)]
    page = json.loads(run(capsys, "ls", "--limit", "1", "--json"))
    assert "--cursor " + page["cursor"] in run(capsys, "ls", "--limit", "1")
    rest = json.loads(run(capsys, "ls", "--cursor", page["cursor"], "--json"))
    assert [image["id"] for image in rest["images"]] == [str(images[0].id)] and rest["cursor"] is None
    assert json.loads(run(capsys, "ls", "--since", "2999-01-01", "--json"))["images"] == []


def test_ls_of_a_new_store_says_that_it_is_empty(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    assert "No image is stored" in run(capsys, "ls")


def test_show_tells_how_an_image_was_made(
    capsys: pytest.CaptureFixture[str], images: list[StoredImage]
) -> None:
    shown = json.loads(run(capsys, "show", images[1].id.hex[:10], "--json"))
    assert [step["image"]["id"] for step in shown["lineage"]] == [str(image.id) for image in images]
    assert shown["lineage"][1]["record"]["parameters"]["instruction"] == "make it blue"
    text = run(capsys, "show", str(images[1].id))
    assert "make it blue" in text and "outside" in text and images[1].id.uri in text


def test_show_of_an_unknown_image_is_an_error(folder: Path) -> None:
    with pytest.raises(ImageNotFound):
        app(["show", "sha256:" + "0" * 64], result_action="return_value", exit_on_error=False)


def test_verify_fails_when_something_is_damaged(
    capsys: pytest.CaptureFixture[str], images: list[StoredImage], folder: Path
) -> None:
    assert json.loads(run(capsys, "verify", "--json"))["clean"] is True
    assert "2 images and 2 records are valid" in run(capsys, "verify")
    path = folder / "blobs" / "sha256" / images[0].id.hex[:2] / images[0].id.hex[2:]
    path.chmod(0o644)
    path.write_bytes(b"damaged")
    with pytest.raises(SystemExit) as stopped:
        run(capsys, "verify")
    assert stopped.value.code == 1
    assert "quarantine/image-" in capsys.readouterr().out


def test_rebuild_index_finds_everything_again(
    capsys: pytest.CaptureFixture[str], images: list[StoredImage], folder: Path
) -> None:
    before = run(capsys, "ls", "--json")
    (folder / "index.sqlite").unlink()
    assert json.loads(run(capsys, "rebuild-index", "--json"))["images"] == 2
    assert run(capsys, "ls", "--json") == before


def test_gc_deletes_what_nothing_keeps(capsys: pytest.CaptureFixture[str], images: list[StoredImage]) -> None:
    everything = ("gc", "--grace-days", "0", "--keep-days", "0")
    assert json.loads(run(capsys, "gc", "--json"))["images"] == []
    dry = json.loads(run(capsys, *everything, "--dry-run", "--json"))
    assert dry["images"] == [str(images[1].id)] and dry["kept"] == 1
    run(capsys, "pin", str(images[1].id))
    assert json.loads(run(capsys, *everything, "--json"))["images"] == []
    run(capsys, "unpin", str(images[1].id))
    assert "1 images and" in run(capsys, *everything)
    run(capsys, "label", str(images[0].id))
    run(capsys, *everything)
    assert json.loads(run(capsys, "ls", "--json"))["images"] == []


def test_label_names_an_image(capsys: pytest.CaptureFixture[str], images: list[StoredImage]) -> None:
    changed = json.loads(run(capsys, "label", images[1].id.hex, "the sea", "--json"))
    assert changed["label"] == "the sea" and changed["id"] == str(images[1].id)


def test_export_and_import_carry_the_history_to_another_store(
    capsys: pytest.CaptureFixture[str], images: list[StoredImage], tmp_path: Path, folder: Path
) -> None:
    out = tmp_path / "out"
    (path,) = json.loads(run(capsys, "export", str(images[1].id), "--to", str(out), "--json"))
    with Image.open(path) as picture:
        assert picture.info["parameters"].startswith("make it blue\nSteps: 8")
    (out / "note.txt").write_text("no picture")
    shown = run(capsys, "show", str(images[1].id), "--json")
    shutil.rmtree(folder)
    taken = json.loads(run(capsys, "import", str(out), "--json"))
    assert {image["id"] for image in taken["images"]} == {str(image.id) for image in images}
    assert [Path(skipped["path"]).name for skipped in taken["skipped"]] == ["note.txt"]
    again, before = json.loads(run(capsys, "show", str(images[1].id), "--json")), json.loads(shown)
    assert [step["record"] for step in again["lineage"]] == [step["record"] for step in before["lineage"]]
    assert again["lineage"][0]["image"]["label"] == "a [red] field"
