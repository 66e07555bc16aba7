"""What a file of any format carries of how it was made, and what an import keeps of it as a claim."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.store_crash import noise
from storage import Digest, ImageStore, Model, Record
from storage.embedding import embed, metadata
from storage.extraction import MAX_TEXT, NAMESPACE
from storage.history import HISTORY, MAX_RECORDS, as_text, claimed, from_text, to_claims
from storage.records import IMPORT, MAX_DEPTH, make_record

ABSENT, MADE = Digest(b"\1" * 32), Digest(b"\2" * 32)
AWKWARD = 'a <cat> & a "dog" ]]> \ufffe\x7f\x01\U0001f431'
TIME = "2026-01-01T00:00:00Z"
FORMATS = ("JPEG", "WEBP", "AVIF")


def steps(words: str = AWKWARD) -> list[Record]:
    """An edit and the picture that it was made from; the last step is first."""
    model = Model(id="nano", digest="sha256:" + "1" * 64)
    asked, told = {"prompt": words}, {"instruction": "blue"}
    first = make_record(
        tool="generate_image", parameters=asked, outputs=[ABSENT], model=model, seed=1, time=TIME
    )
    last = make_record(tool="edit_image", parameters=told, inputs=[ABSENT], outputs=[MADE], time=TIME)
    return [last, first]


def encoded(kind: str, xmp: bytes, exif: bytes = b"") -> bytes:
    out = io.BytesIO()
    noise(1, (16, 16)).save(out, kind, xmp=xmp, exif=exif)
    return out.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_file_of_every_format_brings_its_history(kind: str, tmp_path: Path):
    told = metadata(MADE, steps(), None)
    data = encoded(kind, told.xmp, told.exif)
    with ImageStore(tmp_path) as store:
        image = store.put(data)
        assert from_text(image.history) == (steps(), ()) and image.notes == ()
        assert store.origin(image.id).record is None  # nothing is stored without being asked for
        store.put(data, source="logo")
        record = store.origin(image.id).record
        assert record is not None and claimed(record) == steps() and record.parameters["source"] == "logo"
    with Image.open(io.BytesIO(data)) as picture:
        comment = picture.getexif().get_ifd(0x8769)[0x9286]
        assert comment.startswith(b"UNICODE\0") and "blue" in comment[8:].decode("utf-16-be")
        assert b"<dc:source>" in picture.info["xmp"] and b"<dc:identifier>" not in picture.info["xmp"]


def test_a_png_that_another_program_has_added_to_brings_its_history_too(tmp_path: Path):
    out = io.BytesIO()
    noise(1, (16, 16)).save(out, "PNG", dpi=(72, 72), exif=Image.Exif().tobytes())
    with ImageStore(tmp_path) as store:
        assert from_text(store.put(embed(out.getvalue(), MADE, steps())).history)[0] == steps()


def test_the_property_is_found_as_an_attribute_as_well(tmp_path: Path):
    text = as_text(steps("words")).replace("&", "&amp;").replace('"', "&quot;")
    packet = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
        <r:Description xmlns:o="{NAMESPACE}" o:records="{text}"/></r:RDF></x:xmpmeta>"""
    with ImageStore(tmp_path) as store:
        assert from_text(store.put(encoded("WEBP", packet.encode())).history) == (steps("words"), ())


def test_a_history_without_room_loses_its_oldest_records_and_counts_them():
    records = steps("x" * 64_000)
    assert metadata(MADE, records, 65_000).left_out == 1
    assert metadata(MADE, records, None).left_out == 0
    assert metadata(MADE, records, 100) == (b"", metadata(MADE, records, None).exif, 2)


def bomb() -> bytes:
    entities = "".join(f"<!ENTITY e{n} '{f'&e{n - 1};' * 10}'>" for n in range(1, 10))
    text = (
        f"<!DOCTYPE x [<!ENTITY e0 'ha'>{entities}]><x xmlns:o='{NAMESPACE}'><o:records>&e9;</o:records></x>"
    )
    return text.encode()


@pytest.mark.parametrize(
    "packet",
    [
        bomb(),
        f"<x xmlns:o='{NAMESPACE}'><o:records>".encode(),
        f"<x xmlns:o='{NAMESPACE}'><o:records>{'x' * (MAX_TEXT + 1)}</o:records></x>".encode(),
        b"\xff\xfe" + NAMESPACE.encode(),
        f"<?xml version='1.0' encoding='klingon'?><x>{NAMESPACE}</x>".encode(),
    ],
    ids=["entities", "no end", "too long", "no text", "encoding"],
)
def test_a_packet_that_cannot_be_read_costs_the_history_and_not_the_picture(packet: bytes, tmp_path: Path):
    with ImageStore(tmp_path) as store:
        image = store.put(encoded("WEBP", packet))
        assert image.history == b"" and any("could not be read" in note for note in image.notes)


def fields(**more: Any) -> dict[str, Any]:
    return {"tool": "x", "time": TIME, "parameters": {}, **more}


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "wrong",
    [
        '{"tool":"x","time":"2026-01-01T00:00:00Z","parameters":{"n":NaN}}',
        '{"tool":"x","time":"2026-01-01T00:00:00Z","parameters":{"n":"\\ud800"}}',
        '{"tool":"x","time":"2026-01-01T00:00:00Z","parameters":{"n":1e400}}',
        '{"tool":"x","time":"2026-01-01T00:00:00Z","parameters":{"n":' + "[" * 250 + "]" * 250 + "}}",
        '{"tool":"x","time":"2026-01-01T00:00:00Z","parameters":{"n":' + "[" * 50_000 + "]" * 50_000 + "}}",
        '{"tool":"x","tool"',
        '"a text with ] and , and \\" in it"',
        "[]",
        "}{",
        "nul",
        "\ud800",
    ],
    ids=lambda wrong: ascii(wrong[50:80]),
)
def test_a_record_that_is_none_is_refused_alone(wrong: str):
    text = f"[ {as_text(steps())[1:-1]} , {wrong},{json.dumps(fields())}]".encode("utf-8", "surrogatepass")
    records, refused = from_text(text)
    assert records[:2] == steps() and len(refused) >= 1
    assert all(0 < len(reason) < 1000 for reason in refused)
    if wrong not in ("}{", '{"tool":"x","tool"'):  # after those, nobody can tell where a record begins
        assert [record.tool for record in records[2:]] == ["x"] and len(refused) == 1


NO_LISTS = (b"", b"{}", b"null", b'"', b"[", b'["', b'["' + b'\\"' * 200_000, b"[" * 2_100_000)


@pytest.mark.parametrize("text", NO_LISTS, ids=[repr(text[:9]) for text in NO_LISTS])
def test_what_is_no_list_is_refused_in_a_sentence_and_at_once(text: bytes):
    records, refused = from_text(text)
    assert records == [] and len(refused) == 1 and "could not be read" in refused[0]


def test_an_empty_history_is_none():
    assert from_text(b"[]") == from_text(b" [ ] ") == ([], ())


def test_more_records_than_are_read_are_counted():
    text = json.dumps([fields(seed=number) for number in range(MAX_RECORDS + 5)]).encode()
    records, refused = from_text(text)
    assert [record.seed for record in records] == list(range(MAX_RECORDS)) and len(refused) == 1


def test_claims_are_bounded_and_what_is_left_out_is_said():
    long = make_record(**fields(parameters={"prompt": "x" * 300_000}))
    claims, left = to_claims([*steps(), long, long])
    assert len(claims) == 3 and left == ("The 1 oldest records of its history are too long.",)
    flat, nested = (make_record(**fields(parameters={"n": deep(levels)})) for levels in (50, MAX_DEPTH - 2))
    claims, left = to_claims([nested, flat])
    assert len(claims) == 1 and "nested too deeply" in left[0]
    assert make_record(tool=IMPORT, parameters={HISTORY: claims}).canonical


def test_claims_of_claims_are_told_after_them_and_wrong_ones_are_passed_over():
    earlier = make_record(tool=IMPORT, parameters={HISTORY: to_claims(steps())[0]}, outputs=[ABSENT])
    edit = make_record(tool="edit_image", inputs=[ABSENT], outputs=[MADE])
    claims, left = to_claims([edit, earlier])
    record = make_record(tool=IMPORT, parameters={HISTORY: [1, {}, None, *claims]})
    assert claimed(record) == [edit, earlier, *steps()] and left == ()
    assert claimed(record, most=1) == [edit]
    assert claimed(edit) == claimed(make_record(tool=IMPORT, parameters={HISTORY: "x"})) == []


def test_files_saved_and_imported_again_and_again_reach_a_bound(tmp_path: Path):
    records = steps("words")
    told: list[str] = []
    for number in range(40):
        claims, left = to_claims(records)
        told += left
        records = [make_record(tool=IMPORT, parameters={HISTORY: claims, "n": number}, outputs=[MADE])]
    assert "nested too deeply" in told[0] and 0 < len(claimed(records[0])) < 40


def test_a_folder_of_any_formats_is_imported_with_its_history(tmp_path: Path):
    (tmp_path / "in").mkdir()
    told = metadata(MADE, steps(), None)
    (tmp_path / "in" / "logo.webp").write_bytes(encoded("WEBP", told.xmp))
    with ImageStore(tmp_path / "store") as store:
        found = store.import_(tmp_path / "in")
        (step,) = store.lineage(found.images[0].id)
        assert step.record is not None and claimed(step.record) == steps() and not found.skipped
        assert step.record.parameters["source"] == "logo.webp"
        assert store.find_equal(tool="generate_image", parameters={"prompt": AWKWARD}) is None
        assert store.list(tool="edit_image").images == ()
        before = store.lineage(found.images[0].id)
        store.rebuild_index()
        assert store.lineage(found.images[0].id) == before and store.verify().clean
