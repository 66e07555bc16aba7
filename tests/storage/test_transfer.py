"""Export to ordinary PNG files, import from any folder: pictures, history and ids survive the journey."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from benchmarks.store_crash import inspect, noise
from storage import Digest, ImageStore, LocalBlobs, Model, embedding
from storage.embedding import embed, extract
from storage.errors import InvalidArgument
from storage.history import claimed
from storage.records import IMPORT, canonical


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def history(store: ImageStore) -> list[Digest]:
    """A generated image, an upload, and a composition of both; the last is pinned."""
    first, upload, last = (store.put(noise(number, (20, 10))).id for number in range(3))
    model = Model(id="nano", digest="sha256:" + "1" * 64)
    asked = {"prompt": "a <cat> & a dog", "negative_prompt": "blur", "steps": 8, "width": 20, "height": 10}
    store.record(tool="generate_image", parameters=asked, outputs=[first], model=model, seed=1)
    store.record(
        tool="compose_from_references",
        parameters={"instruction": "both", "scheduler": "euler"},
        inputs=[first, upload],
        outputs=[last],
        seed=2,
    )
    store.label(first, "猫")
    store.pin(last)
    return [first, upload, last]


def test_an_export_imported_elsewhere_is_the_same_history(store: ImageStore, tmp_path: Path):
    first, upload, last = history(store)
    seen: list[tuple[int, int]] = []
    store.export([last], tmp_path / "out", lambda *at: seen.append(at))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert {file.name[:16] for file in (tmp_path / "out" / "lineage").iterdir()} == {
        first.hex[:16],
        upload.hex[:16],
    }
    with ImageStore(tmp_path / "other") as other:
        found = other.import_(tmp_path / "out")
        assert {image.id for image in found.images} == {first, upload, last} and not found.skipped
        assert other.lineage(last)[-1].record == store.lineage(last)[-1].record
        assert [step.record_id for step in other.lineage(last)] == [
            step.record_id for step in store.lineage(last)
        ]
        assert other.get(first).label == "猫" and other.get(last).pinned
        again = other.import_(tmp_path / "out")
        assert again.records == found.records and other.usage().images == 3
    inspect(tmp_path / "other")


def test_an_exported_file_says_what_other_programs_read(store: ImageStore, tmp_path: Path):
    first, _, _ = history(store)
    (path,) = store.export([first], tmp_path / "out")
    with Image.open(path) as picture:
        picture.load()
        assert picture.tobytes() == noise(0, (20, 10)).tobytes()
        assert picture.info["parameters"] == (
            "a <cat> & a dog\nNegative prompt: blur\nSteps: 8, Seed: 1, Size: 20x10, Model: nano"
        )
        packet = ElementTree.fromstring(picture.info["XML:com.adobe.xmp"].strip("\ufeff"))
    text = " ".join(packet.itertext())
    assert str(first) in text and "trainedAlgorithmicMedia" in text and "a <cat> & a dog" in text


def test_a_folder_of_pictures_is_taken_and_the_rest_skipped(store: ImageStore, tmp_path: Path):
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    noise(1, (9, 9)).save(folder / "deep" / "a.bmp")
    (folder / "text.txt").write_text("no picture")
    (folder / "link.png").symlink_to(folder / "deep" / "a.bmp")
    found = store.import_(folder)
    assert len(found.images) == 1 and found.records == ()
    assert [(skipped.path.name, "could not be read" in skipped.reason) for skipped in found.skipped] == [
        ("text.txt", True)
    ]
    with pytest.raises(InvalidArgument, match="no folder"):
        store.import_(tmp_path / "absent")


def test_a_record_whose_images_are_missing_is_a_claim_of_the_import(store: ImageStore, tmp_path: Path):
    last = history(store)[-1]
    store.export([last], tmp_path / "out")
    for ancestor in (tmp_path / "out" / "lineage").iterdir():
        ancestor.unlink()
    with ImageStore(tmp_path / "other") as other:
        found = other.import_(tmp_path / "out")
        assert len(found.images) == 1 and len(found.records) == 2 and not found.skipped
        (step,) = other.lineage(last)
        assert step.record is not None and step.record.tool == IMPORT and step.image.pinned
        assert claimed(step.record) == [store.lineage(last)[-1].record]
        assert other.import_(tmp_path / "out").records == found.records  # nothing new
        before = other.lineage(last)
        other.rebuild_index()
        assert other.lineage(last) == before and other.verify().clean


def test_a_forged_history_cannot_lie_about_the_pixels(store: ImageStore, tmp_path: Path):
    first, _, _ = history(store)
    (path,) = store.export([first], tmp_path / "out")
    forged = noise(77, (20, 10))
    other_png = store.read(store.put(forged).id)
    records = extract(path.read_bytes())
    assert records is not None
    path.write_bytes(embed(other_png, first, records[1]))
    with ImageStore(tmp_path / "other") as other:
        found = other.import_(tmp_path / "out")
        assert [image.id for image in found.images] == [Digest.of(other_png)]
        (step,) = other.lineage(found.images[0].id)
        assert step.record is not None and step.record.tool == IMPORT  # where the rest is only a claim
        assert np.array_equal(np.asarray(other.open(found.images[0].id)), np.asarray(forged))


@pytest.mark.parametrize("number", ["9007199254740993", "1e400", "1e20", "[" * 5000 + "]" * 5000])
def test_a_record_that_has_no_canonical_form_is_no_record(store: ImageStore, tmp_path: Path, number: str):
    image = store.put(noise(1, (8, 8)))
    fields = (
        f'"tool":"x","time":"2026-01-01T00:00:00Z","outputs":["{image.id}"],"parameters":{{"n":{number}}}'
    )
    record = f"[{{{fields}}}]"
    png = store.read(image.id)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(
        png[:33] + embedding._text_chunk(embedding.RECORDS, record) + png[33:]
    )
    found = store.import_(tmp_path / "in")
    assert [taken.id for taken in found.images] == [image.id] * len(found.images) and found.records == ()
    assert store.verify().clean and store.verify().records == 0


HOSTILE_RECORDS = (
    {"tool": "label_image", "parameters": {"label": {"a": 1}}},
    {"tool": "label_image", "parameters": {"label": ["a"]}},
    {"tool": "label_image", "parameters": {"label": True}},
    {"tool": "pin_image", "parameters": {"pinned": {"a": 1}}},
    {"tool": "pin_image", "parameters": {"pinned": "yes"}},
    {"tool": "x", "time": "0001-01-01T00:00:00+14:00"},
    {"tool": "x", "time": "9999-12-31T23:59:59-14:00"},
)


@pytest.mark.parametrize("fields", HOSTILE_RECORDS, ids=str)
def test_a_record_that_the_index_could_not_hold_never_becomes_durable(
    store: ImageStore, tmp_path: Path, fields: dict[str, Any]
):
    image = store.put(noise(1, (8, 8)))
    record = json.dumps([{"time": "2026-01-01T00:00:00Z", "inputs": [str(image.id)], **fields}])
    png = store.read(image.id)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(
        png[:33] + embedding._text_chunk(embedding.RECORDS, record) + png[33:]
    )
    assert store.import_(tmp_path / "in").records == ()
    assert store.verify().clean and store.verify().records == 0
    store.rebuild_index()
    store.collect(dry_run=True)


@pytest.mark.parametrize("fields", HOSTILE_RECORDS, ids=str)
def test_such_a_record_of_an_earlier_version_is_set_aside_and_the_store_opens(
    tmp_path: Path, fields: dict[str, Any]
):
    with ImageStore(tmp_path) as store:
        image = store.put(noise(1, (8, 8)))
    body = canonical({"time": "2026-01-01T00:00:00Z", "inputs": [str(image.id)], **fields})
    LocalBlobs(tmp_path / "records").put(body)
    with ImageStore(tmp_path) as store:
        aside = store.rebuild_index()
        assert [path.read_bytes() for path in aside] == [body]
        assert store.verify().clean and store.get(image.id).id == image.id


def test_an_export_folder_that_cannot_be_written_is_an_argument_error(store: ImageStore, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="Choose another folder"):
        store.export([history(store)[0]], tmp_path / "file")
