"""Records with every field wrong in every way, imported or lying in the folder: the store goes on."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from benchmarks.store_crash import noise
from storage import Digest, ImageStore, LocalBlobs, Model, embedding
from storage.embedding import extract
from storage.errors import InvalidArgument
from storage.records import LABEL, MAX_BYTES, MAX_DEPTH, PIN, Record, make_record, parse_record

NEVER: dict[str, Any] = {"grace": timedelta(0), "keep_accessed": timedelta(0)}
TIME = "2026-01-01T00:00:00Z"
PARAMETERS = ("prompt", "negative_prompt", "width")


def nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value]
    return value


def wrong_values(image: Digest) -> list[Any]:
    """Values of every JSON type, with the borders of what SQLite, Python and JSON can hold."""
    numbers = [0, -1, 2**53, -(2**63), 2**63, 2**64, 10**400, 0.5, -0.0, 1e20, 1e308]
    texts = ["", " ", "\0", "a\0b", "\x1b[2J", "\ud800", "\u202e", "𐏿", "x" * 501, "NaN", "1", "true"]
    times = ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.9999999-14:00", "1600-01-01T00:00:00Z"]
    times += ["2026-02-30T00:00:00Z", "2026-01-01T00:00:00", "2026-01-01T00:00:00+23:59:59"]
    ids = [str(image), "sha256:" + "0" * 64, "sha256:abc"]
    lists = [[], [None], [{}], [""], ids, [str(image)] * 1001, nested(MAX_DEPTH), nested(150), nested(300)]
    objects = [{}, {"a": {"b": 1}}, {"": None}, {"id": 1}, {"a": float("nan")}, {"label": ["x"]}]
    constants = [None, True, False, float("nan"), float("inf")]
    return [1e300, *numbers, *texts, *times, *ids, *lists, *objects, *constants]


def hostile_records(image: Digest) -> Iterator[dict[str, Any]]:
    """Every field of every kind of record, and every parameter that means something, wrong in every way."""
    right: dict[str, dict[str, Any]] = {
        LABEL: {"parameters": {"label": "mine"}, "inputs": [str(image)]},
        PIN: {"parameters": {"pinned": True}, "inputs": [str(image)]},
        "generate_image": {"parameters": {"prompt": "a cat"}, "outputs": [str(image)], "seed": 1},
    }
    for tool, fields in right.items():
        known = {"tool": tool, "time": TIME, **fields}
        yield {**known, "inputs": [str(image)], "outputs": [str(image)]}
        yield {name: value for name, value in known.items() if name != "time"}
        for value in wrong_values(image):
            made = tool == "generate_image"
            for name in PARAMETERS if made else ("label", "pinned"):
                yield {**known, "parameters": {**known["parameters"], name: value}}
            for field in (*Record.model_fields, "unknown") if made else ("inputs", "time"):
                yield {**known, field: value}
    for value in wrong_values(image):
        for part in Model.model_fields:
            yield {**known, "model": {"id": "nano", part: value}}
        yield {**known, "timings": {"total_ms": value}}


def with_history(png: bytes, records: list[Any]) -> bytes:
    chunk = embedding._text_chunk(embedding.RECORDS, json.dumps(records))
    return png[:33] + chunk + png[33:]


def use(folder: Path, image: Digest) -> None:
    """Do everything that reads records."""
    for _ in range(2):
        with ImageStore(folder) as store:
            assert image in {found.id for found in store.list(limit=1000).images}
            store.list(query="cat", tool="generate_image")
            assert store.lineage(image)[-1].image.id == image and store.origin(image)
            assert store.open(image).size == (8, 8)
            store.notes(image)
            store.collect(dry_run=True, **NEVER)
            assert store.usage().images >= 1
            found = store.verify()
            assert not (found.missing or found.indexed or found.left)


def test_imported_records_that_are_wrong_are_named_and_the_store_goes_on(tmp_path: Path):
    with ImageStore(tmp_path / "store") as store:
        image = store.put(noise(1, (8, 8))).id
        png = store.read(image)
        cases = list(hostile_records(image))
        files = [cases[start : start + 100] for start in range(0, len(cases), 100)] + [[]]
        (tmp_path / "in").mkdir()
        for number, records in enumerate(files):
            (tmp_path / "in" / f"{number}.png").write_bytes(with_history(png, records))
        found = store.import_(tmp_path / "in")
        assert {taken.id for taken in found.images} == {image}
        skipped, joined = len(found.skipped), len(found.records)
        assert len(cases) > 900 and skipped > 600 and skipped + joined > len(cases) * 0.8
        assert all(10 < len(skipped.reason) < 1000 for skipped in found.skipped)
        assert store.verify().clean and store.verify().records == len(found.records)
        assert store.rebuild_index() == ()
        for digest in found.records:
            assert store.get_record(digest).id == digest
        (path,) = store.export([image], tmp_path / "out")
        label = store.get(image).label
        store.collect(**NEVER)
    use(tmp_path / "store", image)
    carried = extract(path.read_bytes())
    assert carried is not None and carried.refused == ()
    with ImageStore(tmp_path / "other") as other:
        again = other.import_(tmp_path / "out")
        assert not [skipped for skipped in again.skipped if "not stored" not in skipped.reason]
        assert other.get(image).label == label


@pytest.mark.parametrize("opened_after", ["a crash", "the loss of its index", "a good end"])
def test_records_in_the_folder_that_nobody_can_read_are_set_aside(tmp_path: Path, opened_after: str):
    with ImageStore(tmp_path / "store") as store:
        image = store.put(noise(1, (8, 8)), label="first").id
    records = LocalBlobs(tmp_path / "store" / "records")
    bodies = {json.dumps(fields).encode() for fields in hostile_records(image)}
    bodies |= {b"", b"{}", b"[]", b"nul", b"\xff", b"[" * 100_000, b" " * (MAX_BYTES + 1)}
    for body in bodies:
        path = records.path(Digest.of(body))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
    if opened_after == "a crash":
        (tmp_path / "store" / "locks" / "writers" / "0123456789abcdef").touch()
    elif opened_after == "the loss of its index":
        (tmp_path / "store" / "index.sqlite").unlink()
    with ImageStore(tmp_path / "store") as store:
        assert store.list().images[0].label == "first"
        aside = store.verify().quarantined if opened_after == "a good end" else store.rebuild_index()
        assert {path.read_bytes() for path in aside} == bodies  # json.dumps is not canonical: none is right
        assert all(path.name.startswith("record-") for path in aside)
        assert store.verify().clean and store.rebuild_index() == ()
    use(tmp_path / "store", image)


@pytest.mark.parametrize(
    "more",
    [
        {"parameters": {"prompt": "x" * MAX_BYTES}},
        {"parameters": {"prompt": nested(MAX_DEPTH)}},
        {"parameters": {"prompt": nested(5_000)}},
        {"text": "\ud800"},
        {"tool": LABEL, "parameters": {"label": "x" * 501}},
        {"outputs": [Digest.of(b"")] * 1001},
        {"timings": {"a": float("inf")}},
        {"seed": 2**53},
    ],
    ids=["size", "depth", "endless", "surrogate", "label", "outputs", "infinite", "seed"],
)
def test_a_record_is_only_made_if_it_can_be_read(more: dict[str, Any]):
    with pytest.raises(InvalidArgument) as refused:
        make_record(**({"tool": "x", "parameters": {}} | more))
    assert len(str(refused.value)) < 1000


def test_the_largest_and_the_deepest_record_can_be_read(tmp_path: Path):
    with ImageStore(tmp_path / "store") as store:
        image = store.put(noise(1, (8, 8))).id
        for value in ("x" * (MAX_BYTES - 1000), nested(MAX_DEPTH - 2)):
            made = store.record(tool="x", parameters={"prompt": value}, outputs=[image])
            assert parse_record(store.get_record(made).canonical).parameters["prompt"] == value
        store.export([image], tmp_path / "out")
        assert store.verify().clean
    with ImageStore(tmp_path / "other") as other:
        assert other.import_(tmp_path / "out").skipped == ()
