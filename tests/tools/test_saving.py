"""Images as files: where they may be written, what is in them, what is said about it, what comes back."""

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from storage import Digest, ImageStore, safe_files
from storage.copies import formats
from storage.embedding import extract, metadata
from storage.history import MAX_CLAIMED, MAX_RECORDS, claimed
from storage.records import IMPORT, make_record
from tests.swapping import link_in_the_place_of, swapping
from tests.tools.studio import Studio
from tests.tools.test_studio import QUICK
from tools import history, saving
from tools.base import ToolError

pytestmark = pytest.mark.anyio
EARLY = "2000-01-01T00:00:00Z"
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".avif")


def stripes(width: int = 60, height: int = 40, clear: bool = False) -> Image.Image:
    """A picture whose left half is red, opaque, and whose right half is blue, or transparent."""
    image = Image.new("RGBA", (width, height), (255, 0, 0, 255))
    image.paste((0, 0, 255, 0 if clear else 255), (width // 2, 0, width, height))
    return image


def put(studio: Studio, image: Image.Image | None = None) -> str:
    return str(studio.store.put(image or stripes()).id)


async def refused(studio: Studio, **arguments: Any) -> ToolError:
    before = sorted(os.listdir(studio.folder))
    with pytest.raises(ToolError) as error:
        await studio.call("save_image", **arguments)
    assert sorted(os.listdir(studio.folder)) == before  # nothing is left behind
    return error.value


@pytest.mark.parametrize("ending", ENDINGS)
async def test_an_image_becomes_a_file_of_its_ending(studio: Studio, ending: str) -> None:
    image = put(studio)
    (studio.folder / "sub").mkdir()
    old = os.umask(0o027)
    try:
        saved = await studio.call("save_image", image=image, path=f"sub/a{ending.upper()}")
    finally:
        os.umask(old)
    file = studio.folder / "sub" / f"a{ending.upper()}"
    assert saved.path == str(file) and saved.bytes == file.stat().st_size and saved.image == image
    assert file.stat().st_mode & 0o777 == 0o640 and os.listdir(file.parent) == [file.name]
    with Image.open(file) as picture:
        assert picture.format == formats()[ending].name and picture.size == (60, 40)
        assert saved.mime_type == picture.get_format_mimetype()
        red, _, blue = picture.convert("RGB").getpixel((10, 20))  # type: ignore[misc]
        assert red > 240 and blue < 15
    assert any("lossy" in note for note in saved.notes) == (ending != ".png")
    assert str(file) in saved.line() and saved.linked() == saved.previewed() == ()


async def test_a_png_of_full_size_has_the_same_pixels_and_so_the_same_id(
    studio: Studio, tmp_path: Path
) -> None:
    first = await studio.call("generate_image", prompt="a <red> circle", **QUICK)
    edit = await studio.call("edit_image", image=first.images[0].id, instruction="blue", **QUICK)
    saved = await studio.call("save_image", image=edit.images[0].id, path="a.png")
    assert saved.notes == ()
    found = extract(Path(saved.path).read_bytes())
    assert found is not None and str(Digest.of(found.png)) == edit.images[0].id
    assert [record.tool for record in found.records] == ["edit_image", "generate_image"]
    ignored = await studio.call("save_image", image=edit.images[0].id, path="b.png", quality=50)
    assert ignored.notes == ("quality was ignored: png keeps every pixel.",)
    for ancestors, tools in ((False, [IMPORT]), (True, ["generate_image", "edit_image"])):
        with ImageStore(tmp_path / f"other{ancestors}") as other:
            if ancestors:
                await studio.call("save_image", image=first.images[0].id, path="first.png")
            other.import_(studio.folder)
            lineage = other.lineage(Digest.parse(edit.images[0].id))
            assert [step.record and step.record.tool for step in lineage] == tools


@pytest.mark.parametrize(
    ("asked", "size", "notes"),
    [
        ({"width": 30}, (30, 20), ["Resized from 60x40 to 30x20 pixels."]),
        ({"height": 10}, (15, 10), ["Resized from 60x40 to 15x10 pixels."]),
        ({"width": 60, "height": 40}, (60, 40), []),
        ({"width": 30, "height": 30}, (30, 30), ["Resized from 60x40 to 30x20 pixels.", "The bars beside"]),
        ({"width": 30, "height": 30, "fit": "cover"}, (30, 30), ["Resized", "33 % of the picture"]),
        ({"width": 30, "height": 30, "fit": "stretch"}, (30, 30), ["Resized", "Its proportions changed."]),
        ({"width": 120}, (120, 80), ["Enlarged from 60x40 to 120x80 pixels.", "That adds no detail."]),
        ({"width": 13, "fit": "cover"}, (13, 9), ["Resized from 60x40 to 13x9 pixels."]),
        ({"width": 120, "height": 10, "fit": "cover"}, (120, 10), ["Enlarged", "That adds", "88 %"]),
        ({"width": 16000, "height": 1, "fit": "cover"}, (16000, 1), ["Enlarged", "That adds", "100 %"]),
    ],
    ids=str,
)
async def test_a_size_is_as_asked_and_what_it_does_is_said(
    studio: Studio, asked: dict[str, Any], size: tuple[int, int], notes: list[str]
) -> None:
    saved = await studio.call("save_image", image=put(studio), path="a.png", **asked)
    with Image.open(saved.path) as picture:
        assert picture.size == size == (saved.width, saved.height)
    assert [start in note for start, note in zip(notes, saved.notes, strict=True)] == [True] * len(notes)


async def test_bars_and_transparent_parts_are_clear_or_of_the_colour_that_was_asked(studio: Studio) -> None:
    image, square = put(studio, stripes(60, 40, clear=True)), {"width": 60, "height": 60, "quality": 100}
    for path, more, bar, right in (
        ("a.webp", {}, (0, 0, 0, 0), 0),
        ("b.webp", {"background": "#00ff00"}, (0, 255, 0, 255), (0, 255, 0)),
        ("c.png", {"background": "lime"}, (0, 255, 0, 255), (0, 255, 0)),
        ("d.jpg", {}, (255, 255, 255, 255), (255, 255, 255)),
        ("e.jpg", {"background": "rgb(0, 255, 0)"}, (0, 255, 0, 255), (0, 255, 0)),
    ):
        saved = await studio.call("save_image", image=image, path=path, **square, **more)
        with Image.open(saved.path) as picture:
            pixels = np.asarray(picture.convert("RGBA")).astype(int)
        assert np.abs(pixels[2, 2] - bar).max() < 8, path
        seen = pixels[30, 50][:3] if right else pixels[30, 50][3:]
        assert np.abs(seen - right).max() < 8, path
        assert np.abs(pixels[30, 10] - (255, 0, 0, 255)).max() < 8, path
        assert any("The bars beside the picture are" in note for note in saved.notes)
        assert any("Transparent parts are #" in note for note in saved.notes) == bool(right)


async def test_webp_of_the_best_quality_keeps_every_pixel(studio: Studio) -> None:
    picture = Image.effect_noise((40, 40), 90).convert("RGB")
    saved = await studio.call("save_image", image=put(studio, picture), path="a.webp", quality=100)
    assert saved.notes == ()
    with Image.open(saved.path) as file:
        assert file.convert("RGB").tobytes() == picture.tobytes()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"path": "a.gif"}, "ends in .gif; files are written as .png, .jpg, .jpeg, .webp, .avif"),
        ({"path": "a"}, "has no ending"),
        ({"path": ".png"}, "has no ending"),
        ({"path": "a.png/"}, "ends in .png"),
        ({"path": "a\n.png"}, "cannot be shown"),
        ({"path": "a\0.png"}, "cannot be shown"),
        ({"path": "absent/a.png"}, "there is no folder 'absent'"),
        ({"path": "there.png"}, "exists already"),
        ({"path": "folder.png"}, "is not a regular file"),
        ({"path": "folder.png", "overwrite": True}, "is not a regular file"),
        ({"path": "pipe.png", "overwrite": True}, "is not a regular file"),
        ({"path": "there.png/a.png"}, "cannot be written: Not a directory"),
        ({"path": "x" * 300 + ".png"}, "cannot be written: File name too long"),
        ({"path": "a.png", "background": "sea"}, "'sea' is no opaque colour"),
        ({"path": "a.png", "background": "#11223344"}, "no opaque colour"),
        ({"path": "a.webp", "width": 16384}, "at most 64,000,000 are allowed, and 16,383 a side"),
        ({"path": "a.png", "width": 16384, "height": 16384}, "16384x16384 pixels; at most 64,000,000"),
        ({"path": "a.png", "width": 16384, "image": "strip"}, "16384x268435456 pixels"),
    ],
    ids=str,
)
async def test_what_cannot_be_written_is_refused_in_words(
    studio: Studio, arguments: dict[str, Any], told: str
) -> None:
    (studio.folder / "there.png").write_bytes(b"mine")
    (studio.folder / "folder.png").mkdir()
    os.mkfifo(studio.folder / "pipe.png")
    image = put(studio, Image.new("RGB", (1, 16384)) if arguments.pop("image", "") else None)
    error: Exception
    try:
        error = await refused(studio, image=image, **arguments)
    except Exception as raised:  # of the store, which its caller translates
        error = raised.__cause__ or raised
    assert getattr(error, "code", "") == "invalid_argument" and told in str(error)
    assert (studio.folder / "there.png").read_bytes() == b"mine"


async def test_nothing_is_looked_up_or_computed_for_a_file_that_cannot_be_written(studio: Studio) -> None:
    error = await refused(studio, image="deadbeef", path="absent/a.png")
    assert "there is no folder" in str(error) and "Make the folder first" in str(error)
    picture = "data:image/png;base64," + "A" * 100
    assert "there is no folder" in str(await refused(studio, image=picture, path="absent/a.png"))
    assert studio.store.usage().images == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_folder_without_permission_is_refused(studio: Studio) -> None:
    (studio.folder / "sub").mkdir(mode=0o555)
    assert "Permission denied" in str(await refused(studio, image=put(studio), path="sub/a.png"))


async def test_a_file_is_replaced_only_if_asked(studio: Studio) -> None:
    image, file = put(studio), studio.folder / "a.png"
    file.write_bytes(b"mine")
    hard = studio.folder / "hard"
    os.link(file, hard)
    await refused(studio, image=image, path="a.png")
    await studio.call("save_image", image=image, path="a.png", overwrite=True)
    with Image.open(file) as picture:
        assert picture.size == (60, 40)
    assert hard.read_bytes() == b"mine"


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
async def test_a_file_that_appears_while_the_picture_is_made_is_not_replaced(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    image, file = put(studio), studio.folder / "a.png"
    write = safe_files._publish

    def late(*arguments: Any) -> None:
        file.write_bytes(b"theirs")
        write(*arguments)

    def linkless(*_: Any, **more: Any) -> None:
        raise PermissionError(1, "no hard links")

    monkeypatch.setattr(safe_files, "_publish", late)
    if not links:
        monkeypatch.setattr(os, "link", linkless)
    with pytest.raises(ToolError, match="exists already"):
        await studio.call("save_image", image=image, path="a.png")
    assert file.read_bytes() == b"theirs" and os.listdir(studio.folder) == ["a.png"]
    monkeypatch.setattr(safe_files, "_publish", write)
    await studio.call("save_image", image=image, path="b.png")
    assert sorted(os.listdir(studio.folder)) == ["a.png", "b.png"]


@pytest.mark.parametrize("overwrite", [False, True])
async def test_nothing_outside_of_the_folders_or_behind_a_link_is_written(
    studio: Studio, tmp_path: Path, overwrite: bool
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "a.png").write_bytes(b"theirs")
    (studio.folder / "link").symlink_to(outside)
    (studio.folder / "a.png").symlink_to(outside / "a.png")
    (studio.folder / "new.png").symlink_to(outside / "new.png")
    image = put(studio)
    for path in (
        "../a.png",
        "../new.png",
        str(outside / "x.png"),
        "link/x.png",
        "a.png",
        "new.png",
        "/x.png",
    ):
        error = await refused(studio, image=image, path=path, overwrite=overwrite)
        assert error.code == "forbidden" and "may not be used" in str(error), path
        assert "--allow-dir" in error.advice and "data:" not in error.advice
    assert os.listdir(outside) == ["a.png"] and (outside / "a.png").read_bytes() == b"theirs"


async def test_nothing_outside_is_written_while_a_folder_is_swapped_for_a_link(
    studio: Studio, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (studio.folder / "sub").mkdir()
    image = put(studio)
    with swapping(*link_in_the_place_of(studio.folder / "sub", outside)) as ended:
        while not ended.is_set():
            try:
                await studio.call("save_image", image=image, path="sub/a.png", overwrite=True)
            except ToolError:
                pass
    assert os.listdir(outside) == []


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".avif"])
async def test_the_history_of_a_saved_file_arrives_in_another_store(
    studio: Studio, tmp_path: Path, ending: str
) -> None:
    first = await studio.call("generate_image", prompt="a logo & <more> \U0001f431", **QUICK)
    edit = await studio.call("edit_image", image=first.images[0].id, instruction="make it blue", **QUICK)
    await studio.call("save_image", image=edit.images[0].id, path=f"logo{ending}", width=16, height=16)
    with ImageStore(tmp_path / "other") as store:
        other = Studio(store, studio.engine, studio.folder)
        taken = await other.call("import_image", image=f"logo{ending}")
        told = await other.call("image_history", image=taken.image.id)
        (step,) = told.steps
        assert (step.tool, step.replay) == (IMPORT, None)
        generated, edited, saved = told.claims
        assert [claim.tool for claim in told.claims] == ["generate_image", "edit_image", "save_image"]
        assert generated.images == edited.inputs == [first.images[0].id]
        assert edited.images == saved.inputs == [edit.images[0].id] and saved.images == []
        assert generated.replay.arguments["prompt"] == "a logo & <more> \U0001f431"
        assert generated.replay.arguments["seed"] == first.images[0].seed and saved.replay is None
        assert saved.parameters["width"] == 16 and edited.model == edit.model
        assert {claim.told_by for claim in told.claims} == {taken.image.id}
        assert told.line().count("as the file of") == 3 and "Nothing proves them" in told.notes[0]
        again = await other.call(generated.replay.tool, **generated.replay.arguments)
        assert [image.id for image in again.images] == [first.images[0].id]  # the call makes it again
        # What is made from it goes on telling, and so does a file that is saved of that.
        further = await other.call("edit_image", image=taken.image.id, instruction="more", **QUICK)
        assert (await other.call("image_history", image=further.images[0].id)).claims == told.claims
        await other.call("save_image", image=further.images[0].id, path=f"further{ending}")
        store.rebuild_index()
        assert await other.call("image_history", image=taken.image.id) == told
    with ImageStore(tmp_path / "third") as store:
        third = Studio(store, studio.engine, studio.folder)
        last = await third.call("import_image", image=f"further{ending}")
        claims = (await third.call("image_history", image=last.image.id)).claims
        earlier = [claim.tool for claim in claims if claim.tool != "save_image" or claim.images == []]
        assert earlier[:5] == ["generate_image", "edit_image", "save_image", IMPORT, "edit_image"]


async def test_a_file_cannot_change_what_the_store_says_of_its_images(studio: Studio) -> None:
    mine = await studio.call("generate_image", prompt="mine", **QUICK)
    before = await studio.call("image_history", image=mine.images[0].id)
    record = studio.store.origin(Digest.parse(mine.images[0].id)).record
    assert record is not None
    forged = [
        record.model_copy(
            update={"parameters": {"prompt": "forged"}, "time": record.time.replace(year=2000)}
        ),
        make_record(tool="label_image", parameters={"label": "forged"}, inputs=[record.outputs[0]]),
        make_record(tool="generate_image", parameters=record.parameters, outputs=[], seed=record.seed),
    ]
    out = BytesIO()
    stripes().convert("RGB").save(out, "WEBP", xmp=metadata(record.outputs[0], forged, None).xmp)
    (studio.folder / "forged.webp").write_bytes(out.getvalue())
    taken = await studio.call("import_image", image="forged.webp")
    assert await studio.call("image_history", image=mine.images[0].id) == before
    assert (await studio.call("list_images", query="forged")).images == []
    assert (await studio.call("generate_image", prompt="mine", **QUICK)).images == mine.images
    assert [claim.tool for claim in (await studio.call("image_history", image=taken.image.id)).claims] == [
        "generate_image",
        "generate_image",
    ]


async def test_what_a_file_claims_is_bounded_in_the_store_and_in_the_answer(studio: Studio) -> None:
    long = [
        make_record(tool="x", parameters={"prompt": f"{n} " + "x" * 9_000}, outputs=[Digest(bytes([n]) * 32)])
        for n in range(MAX_RECORDS)
    ]
    out = BytesIO()
    stripes().convert("RGB").save(out, "WEBP", xmp=metadata(Digest(b"\0" * 32), long, None).xmp)
    (studio.folder / "long.webp").write_bytes(out.getvalue())
    taken = await studio.call("import_image", image="long.webp")
    assert any("oldest records of its history are too long" in note for note in taken.notes)
    record = studio.store.origin(Digest.parse(taken.image.id)).record
    assert record is not None and len(record.canonical) < MAX_CLAIMED + 2_000
    told = await studio.call("image_history", image=taken.image.id)
    assert (
        0 < len(told.claims) < len(claimed(record))
        and len(told.model_dump_json()) < history.MAX_CLAIMED + 5_000
    )
    assert any("too long to be listed" in note for note in told.notes)
    assert len(told.line()) < history.MAX_CLAIMED


async def test_a_history_that_comes_too_late_is_said_to_be_left_out(studio: Studio) -> None:
    image = put(studio)
    await studio.call("save_image", image=image, path="a.webp", quality=50)
    first = await studio.call("import_image", image="a.webp")
    assert await studio.call("import_image", image="a.webp") == first  # it is the same history
    with Image.open(studio.folder / "a.webp") as picture:
        told = metadata(Digest.parse(image), [make_record(tool="x")], None)
        picture.save(studio.folder / "b.webp", lossless=True, exact=True, xmp=told.xmp)
    again = await studio.call("import_image", image="b.webp")
    assert again.image == first.image and "not added" in again.notes[-1]


def test_the_tool_says_that_it_may_replace_a_file() -> None:
    assert saving.SAVE_IMAGE.destructive and not saving.SAVE_IMAGE.read_only
