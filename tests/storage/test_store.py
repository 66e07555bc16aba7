"""The image store through its public face: images in and out, records, questions, lineage."""

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from storage import Digest, ImageStore, Model
from storage.errors import Corrupt, ImageNotFound, InvalidArgument, StoreFull


def picture(number: int, size: tuple[int, int] = (8, 6)) -> Image.Image:
    """A picture that no other number has."""
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    return ImageStore(tmp_path / "store")


def made(
    store: ImageStore, number: int, *inputs: Digest, tool: str = "edit_image", **parameters: object
) -> Digest:
    """Store a picture with the record of how it was made."""
    image = store.put(picture(number))
    store.record(tool=tool, parameters=parameters, inputs=inputs, outputs=[image.id], seed=number)  # type: ignore[arg-type]
    return image.id


def test_a_picture_comes_back_as_it_went_in(store: ImageStore):
    image = store.put(picture(1), label="first")
    assert (image.width, image.height, image.mime_type, image.label) == (8, 6, "image/png", "first")
    assert store.open(image.id).tobytes() == picture(1).tobytes()
    assert Digest.of(store.read(image.id)) == image.id
    assert image.bytes == len(store.read(image.id))


def test_equal_pixels_have_one_id(store: ImageStore):
    first = store.put(picture(1))
    assert store.put(picture(1).convert("RGBA")).id == first.id
    assert store.usage().images == 1


def test_every_spelling_names_the_image(store: ImageStore):
    image = store.put(picture(1))
    for ref in (
        image.id,
        str(image.id),
        image.id.uri,
        image.id.hex,
        image.id.hex[:8],
        f"sha256:{image.id.hex[:12]}",
    ):
        assert store.get(ref).id == image.id


@pytest.mark.parametrize(
    "ref",
    [
        "",
        "abc",
        "sha256:",
        "../../etc/passwd",
        "image://sha256/zz",
        "١٢٣٤٥٦٧٨",
        "f" * 65,
        "md5:" + "0" * 32,
        "0123456 ",
    ],
)
def test_what_names_no_image_is_refused(store: ImageStore, ref: str):
    with pytest.raises(InvalidArgument, match="does not name"):
        store.get(ref)


def test_an_unknown_id_and_an_ambiguous_prefix_say_what_to_do(store: ImageStore):
    with pytest.raises(ImageNotFound, match="import it first"):
        store.get("sha256:" + "0" * 64)
    image = store.put(picture(1))
    twin = image.id.hex[:10] + "0" * 54
    with sqlite3.connect(store.path / "index.sqlite") as db:
        db.execute("INSERT INTO images VALUES (1, ?, 1, 1, 1, 1)", (bytes.fromhex(twin),))
    db.close()
    with pytest.raises(InvalidArgument, match="Give more digits"):
        store.get(image.id.hex[:10])
    assert store.get(image.id.hex[:20]).id == image.id


def test_damaged_bytes_are_an_error_never_an_answer(store: ImageStore):
    image = store.put(picture(1))
    path = next((store.path / "blobs").rglob("*" + image.id.hex[2:]))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(Corrupt, match="damaged"):
        store.open(image.id)


def test_files_are_immutable_and_named_by_their_hash(store: ImageStore):
    image = store.put(picture(1))
    path = store.path / "blobs" / "sha256" / image.id.hex[:2] / image.id.hex[2:]
    assert path.stat().st_mode & 0o777 == 0o400
    assert Digest.of(path.read_bytes()) == image.id
    assert not list((store.path / "tmp").iterdir())


def test_an_equal_request_is_found_again(store: ImageStore):
    source = store.put(picture(1)).id
    model = Model(id="nano", digest="sha256:" + "1" * 64)
    asked = {
        "tool": "edit_image",
        "parameters": {"instruction": "blue", "steps": 4},
        "inputs": [source],
        "model": model,
    }
    result = store.put(picture(2)).id
    record = store.record(**asked, outputs=[result], seed=3, numerics="1")
    found = store.find_equal(**asked, seed=3, numerics="1")
    assert found is not None and found.id == record and found.outputs == (result,)
    assert store.find_equal(**asked, seed=4, numerics="1") is None
    assert store.find_equal(**asked, seed=3, numerics="2") is None
    assert store.find_equal(**asked | {"inputs": [result]}, seed=3, numerics="1") is None
    assert store.find_equal(**asked | {"parameters": {"instruction": "blue"}}, seed=3, numerics="1") is None
    assert store.find_equal(**asked | {"model": Model(id="other")}, seed=3, numerics="1") is None


def test_an_answer_whose_image_was_damaged_since_is_not_found_again(store: ImageStore):
    image = made(store, 2, tool="generate_image", prompt="red")
    asked = {"tool": "generate_image", "parameters": {"prompt": "red"}, "seed": 2}
    assert store.find_equal(**asked) and store.find_equal(**asked)
    path = store.path / "blobs" / "sha256" / image.hex[:2] / image.hex[2:]
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[::-1])
    assert store.find_equal(**asked) is None


def test_an_answer_whose_image_is_gone_is_not_found_again(store: ImageStore):
    made(store, 2, tool="generate_image", prompt="red")
    store.collect(grace=timedelta(0), keep_accessed=timedelta(0))
    assert store.find_equal(tool="generate_image", parameters={"prompt": "red"}, seed=2) is None


def test_a_record_names_only_what_is_stored(store: ImageStore):
    with pytest.raises(ImageNotFound, match="Store it first"):
        store.record(tool="edit_image", parameters={}, outputs=[Digest(bytes(32))])
    assert not list((store.path / "records").rglob("*")) or store.verify().records == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"tool": ""},
        {"tool": "x", "seed": "many"},
        {"tool": "x", "unknown": 1},
        {"tool": "x", "parameters": {"a": float("nan")}},
    ],
)
def test_a_wrong_record_is_refused_by_field(store: ImageStore, fields: dict):
    with pytest.raises(InvalidArgument):
        store.record(**{"parameters": {}, **fields})


def test_lineage_is_whole_and_oldest_first(store: ImageStore):
    a, b = store.put(picture(1)).id, made(store, 2, tool="generate_image", prompt="b")
    c = made(store, 3, a, b, tool="compose_from_references", instruction="both")
    d = made(store, 4, c, instruction="blue")
    steps = store.lineage(d)
    assert [step.image.id for step in steps[-2:]] == [c, d]
    assert {step.image.id for step in steps[:2]} == {a, b}
    assert {step.image.id: step.record and step.record.tool for step in steps} == {
        a: None, b: "generate_image", c: "compose_from_references", d: "edit_image"
    }  # fmt: skip


def test_a_deep_lineage_is_walked_to_its_end(store: ImageStore):
    last = store.put(picture(0)).id
    for number in range(1, 120):
        last = made(store, number, last, instruction=str(number))
    steps = store.lineage(last)
    assert len(steps) == 120 and [step.record and step.record.seed for step in steps] == [
        None,
        *range(1, 120),
    ]


def test_an_edit_that_changes_nothing_is_no_ancestor_of_itself(store: ImageStore):
    a = made(store, 1, tool="generate_image", prompt="a")
    store.record(tool="edit_image", parameters={}, inputs=[a], outputs=[a])
    assert [step.record and step.record.tool for step in store.lineage(a)] == ["generate_image"]


def test_search_finds_words_of_prompts_instructions_and_labels(store: ImageStore):
    a = made(store, 1, tool="generate_image", prompt="three red circles")
    b = made(store, 2, a, instruction="make the circle green")
    store.label(a, "Büro logo")
    ids = lambda **asked: [image.id for image in store.list(**asked).images]  # noqa: E731
    assert ids(query="circle") == [b, a]
    assert ids(query="red circle") == [a]
    assert ids(query="buro") == [a]
    assert ids(tool="edit_image") == [b]
    assert ids(query="circle", tool="generate_image") == [a]
    assert ids(since=store.get(b).created) == [b]
    assert ids(query='"; DROP TABLE images; --') == [] and ids(query="***") == []
    store.label(a, None)
    assert ids(query="logo") == []


def test_pages_join_without_gap_even_when_images_arrive(store: ImageStore):
    ids = [store.put(picture(number)).id for number in range(7)]
    page = store.list(limit=3)
    store.put(picture(99))
    seen = [image.id for image in page.images]
    while page.cursor:
        page = store.list(limit=3, cursor=page.cursor)
        seen += [image.id for image in page.images]
    assert seen == ids[::-1]


@pytest.mark.parametrize(
    "asked",
    [{"limit": 0}, {"limit": 1001}, {"cursor": "zz"}, {"cursor": "f" * 17}, {"since": datetime(2026, 1, 1)}],
)
def test_wrong_questions_are_refused(store: ImageStore, asked: dict):
    with pytest.raises(InvalidArgument):
        store.list(**asked)


def test_since_in_the_future_lists_nothing(store: ImageStore):
    store.put(picture(1))
    assert store.list(since=datetime.now(UTC) + timedelta(days=1)).images == ()
    assert store.list(since=datetime.max.replace(tzinfo=UTC)).images == ()
    assert len(store.list(since=datetime.min.replace(tzinfo=UTC)).images) == 1


@pytest.mark.parametrize("year", [1, 1970, 2500, 9999])
def test_a_record_from_a_clock_gone_wrong_is_kept(store: ImageStore, year: int):
    outputs = [store.put(picture(number)).id for number in range(3)]
    for output in outputs:
        store.record(tool="x", parameters={}, outputs=[output], time=datetime(year, 5, 1, tzinfo=UTC))
    store.rebuild_index()
    assert len(store.list(tool="x").images) == 3


def test_a_quota_refuses_and_keeps_what_is_there(tmp_path: Path):
    store = ImageStore(tmp_path, quota_bytes=10_000)
    first = store.put(picture(1))
    with pytest.raises(StoreFull, match="quota of 10,000 bytes"):
        store.put(picture(2, (100, 100)))
    assert store.usage().images == 1 and store.verify().clean
    assert store.put(picture(3)).id != first.id


def test_pictures_and_their_record_are_stored_together(store: ImageStore):
    source = store.put(picture(0))
    asked = {"tool": "edit_image", "parameters": {"instruction": "a pale moon"}, "inputs": (source.id,)}
    record = store.put_made([picture(1), picture(2)], **asked, seed=7)
    assert [store.open(digest).tobytes() for digest in record.outputs] == [
        picture(number).tobytes() for number in (1, 2)
    ]
    assert record == store.get_record(record.id) == store.find_equal(**asked, seed=7)
    assert {image.id for image in store.list(query="moon", tool="edit_image").images} == set(record.outputs)
    assert [ancestor.image.id for ancestor in store.lineage(record.outputs[1])] == [
        source.id,
        record.outputs[1],
    ]
    assert store.usage().images == 3 and store.verify().clean


def test_text_alone_is_recorded_as_well(store: ImageStore):
    source = store.put(picture(0))
    record = store.put_made([], tool="describe_image", parameters={}, inputs=[source.id], text="a moon")
    assert store.get_record(record.id).text == "a moon" and store.usage().images == 1


@pytest.mark.parametrize(
    "fields", [{"inputs": [Digest(bytes(32))]}, {"parameters": {"value": float("nan")}}, {"seed": "x"}]
)
def test_pictures_whose_record_is_refused_are_there_and_indexed(store: ImageStore, fields: dict):
    with pytest.raises((ImageNotFound, InvalidArgument)):
        store.put_made([picture(1)], **{"tool": "edit_image", "parameters": {}} | fields)
    [image] = store.list().images
    assert store.open(image.id).tobytes() == picture(1).tobytes()
    found = store.verify()
    assert found.clean and found.indexed == 0


def test_a_quota_counts_every_picture_of_a_record(tmp_path: Path):
    store = ImageStore(tmp_path, quota_bytes=100_000)
    pictures = [picture(number, (100, 100)) for number in range(5)]  # 30 kB each
    with pytest.raises(StoreFull):
        store.put_made(pictures, tool="x", parameters={})
    assert store.usage().images == 3 and store.usage().bytes <= 100_000 and store.verify().clean
    with pytest.raises(StoreFull):  # what is there already needs no room
        store.put_made(pictures[:4], tool="x", parameters={})
    assert store.put_made(pictures[:3], tool="x", parameters={}).outputs


def test_two_handles_see_each_other_at_once(tmp_path: Path):
    one, other = ImageStore(tmp_path), ImageStore(tmp_path)
    image = one.put(picture(1))
    assert other.get(image.id) == image
    other.label(image.id, "seen")
    assert one.get(image.id).label == "seen"


def test_an_index_of_another_version_is_rebuilt(tmp_path: Path):
    with ImageStore(tmp_path) as store:
        a = made(store, 1, tool="generate_image", prompt="a")
        made(store, 2, a, instruction="b")
        before = store.list(), store.lineage(a)
    db = sqlite3.connect(tmp_path / "index.sqlite")
    db.execute("PRAGMA user_version = 99")
    db.close()
    store = ImageStore(tmp_path)
    assert (store.list(), store.lineage(a)) == before


@pytest.mark.parametrize("damage", ["deleted", "garbage"])
def test_a_lost_index_loses_nothing(tmp_path: Path, damage: str):
    with ImageStore(tmp_path) as store:
        a = made(store, 1, tool="generate_image", prompt="a")
        store.label(a, "kept")
        before = store.list()
    for path in tmp_path.glob("index.sqlite*"):
        path.unlink()
    if damage == "garbage":
        (tmp_path / "index.sqlite").write_bytes(b"no database" * 500)
    assert ImageStore(tmp_path).list() == before


def test_a_blob_that_is_not_indexed_is_adopted_when_named(store: ImageStore):
    image = store.put(picture(1))
    db = sqlite3.connect(store.path / "index.sqlite")
    db.execute("DELETE FROM images")
    db.commit()
    db.close()
    assert store.get(image.id).id == image.id
