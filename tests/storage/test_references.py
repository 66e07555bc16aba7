"""Ids and records as values: every spelling, every wrong one, canonical bytes."""

import json
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from benchmarks.store_crash import noise
from storage import Digest, ImageStore
from storage.errors import ImageNotFound, InvalidArgument
from storage.records import canonical, make_record, parse_record, request_key

DIGESTS = st.binary(min_size=32, max_size=32).map(Digest)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(-1e15, 1e15)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
PARAMETERS = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), JSON, max_size=6)
TEMPTING = st.sampled_from(
    [*("../", "/", "\\", "%2e%2e/", "\0", "\n", " ", "*", "%", "٣", "０", "é"), "sha256:", "image://sha256/"]
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ImageStore:
    store = ImageStore(tmp_path_factory.mktemp("store"))
    store.put(noise(1, (4, 4)))
    return store


@settings(max_examples=300, deadline=None)
@given(st.text() | st.lists(TEMPTING | st.text("0123456789abcdefABCDEF", max_size=70)).map("".join))
def test_any_text_is_an_image_or_refused(store: ImageStore, text: str):
    with pytest.raises((InvalidArgument, ImageNotFound)) as caught:
        store.get(text)
    assert caught.value.advice and len(str(caught.value)) < 600


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 7), st.integers(65, 5000))
def test_too_few_and_too_many_digits_are_refused(store: ImageStore, few: int, many: int):
    digits = store.list().images[0].id.hex
    for text in (
        digits[:few],
        (digits * 80)[:many],
        "sha512:" + digits,
        digits[:20] + "/../" + digits[20:40],
    ):
        with pytest.raises(InvalidArgument, match="does not name a stored image"):
            store.get(text)


@settings(max_examples=100, deadline=None)
@given(st.integers(8, 64), st.sampled_from(["", "sha256:", "image://sha256/", "SHA256:"]), st.booleans())
def test_every_prefix_in_every_spelling_names_it(store: ImageStore, digits: int, scheme: str, upper: bool):
    image = store.list().images[0].id
    text = image.hex[:digits]
    assert store.get(scheme + (text.upper() if upper else text)).id == image


@given(DIGESTS)
def test_a_digest_survives_every_way_of_writing_it(digest: Digest):
    class Holder(BaseModel):
        at: Digest

    for text in (str(digest), digest.hex, digest.uri, digest.hex.upper()):
        assert Digest.parse(text) == digest
    holder = Holder(at=digest)
    assert Holder.model_validate_json(holder.model_dump_json()) == holder
    assert json.loads(holder.model_dump_json()) == {"at": str(digest)}
    assert Holder.model_json_schema()["properties"]["at"]["type"] == "string"


@given(PARAMETERS, st.lists(DIGESTS, max_size=3), st.none() | st.integers(-(2**53) + 1, 2**53 - 1))
def test_a_record_survives_its_canonical_form(parameters: dict, inputs: list[Digest], seed: int | None):
    record = make_record(tool="x", parameters=parameters, inputs=inputs, seed=seed)
    body = record.canonical
    again = parse_record(body)
    assert again.canonical == body and again.id == record.id and again.request_key == record.request_key
    assert json.loads(body)["parameters"] == json.loads(json.dumps(parameters))


@given(PARAMETERS)
def test_the_order_of_parameters_does_not_matter(parameters: dict):
    turned = dict(reversed(parameters.items()))
    assert canonical(parameters) == canonical(turned)
    assert request_key("x", parameters, [], "m", 1, "1") == request_key("x", turned, [], "m", 1, "1")


@given(PARAMETERS, PARAMETERS)
def test_other_parameters_are_another_request(one: dict, other: dict):
    assume(canonical(one) != canonical(other))
    assert request_key("x", one, [], "m", 1, "1") != request_key("x", other, [], "m", 1, "1")


def test_canonical_bytes_are_those_of_the_standard():
    """Examples of RFC 8785, sections 3.2.2 and 3.2.3."""
    assert canonical({"numbers": [333333333.33333329, 1e30, 4.50, 2e-3, 1e-27]}) == (
        b'{"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27]}'
    )
    assert canonical({"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5}).decode() == (
        '{"\\r":2,"1":4,"€":1,"😀":5,"\ufb33":3}'
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**60, 2.0**60, "\ud800"])
def test_what_json_cannot_say_is_refused(store: ImageStore, value: object):
    with pytest.raises(InvalidArgument, match=r"cannot contain|is invalid"):
        store.record(tool="x", parameters={"value": value})  # type: ignore[dict-item]


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_words_can_be_searched_for(store: ImageStore, words: str):
    store.list(query=words, tool=words)


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_any_cursor_is_a_page_or_refused(store: ImageStore, cursor: str):
    try:
        store.list(cursor=cursor)
    except InvalidArgument as error:
        assert "cursor" in str(error)


def test_a_label_may_be_any_short_text(tmp_path: Path):
    with ImageStore(tmp_path) as store:
        image = store.put(noise(1, (4, 4)), label="名前 🎨 <b>\"'; DROP")
        assert store.get(image.id).label == "名前 🎨 <b>\"'; DROP"
        for label in ("", "  ", "x" * 501):
            with pytest.raises(InvalidArgument, match="label has"):
                store.label(image.id, label)
        with pytest.raises(InvalidArgument, match="cannot contain"):
            store.label(image.id, "\ud800")
