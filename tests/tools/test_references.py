"""The spellings of an image reference, and what is said about everything else."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.base import ToolError
from tools.references import DataRef, FileRef, StoredRef, UrlRef, parse_reference

HEX = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        (f"sha256:{HEX}", StoredRef(HEX)),
        (f"image://sha256/{HEX}", StoredRef(HEX)),
        ("sha256:01234567", StoredRef("01234567")),
        ("01234567", StoredRef("01234567")),
        (HEX.upper(), StoredRef(HEX)),
        ("data:image/png;base64,aGk=", DataRef("image/png", b"hi")),
        ("data:image/PNG;name=a.png;base64,aG\n k%3D", DataRef("image/png", b"hi")),
        ("cat.png", FileRef(Path("cat.png"))),
        ("./01234567", FileRef(Path("01234567"))),
        ("../up.png", FileRef(Path("../up.png"))),
        ("a: b.png", FileRef(Path("a: b.png"))),
        ("file:///a%20b.png", FileRef(Path("/a b.png"))),
        ("file://localhost/a.png", FileRef(Path("/a.png"))),
        ("https://example.com/a.png?x=1", UrlRef("https://example.com/a.png?x=1")),
    ],
)
def test_every_form_is_read(text: str, meant: object) -> None:
    assert parse_reference(text, "image") == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a\0b.png",
        "sha256:",
        "sha256:0123",
        f"sha256:{HEX}0",
        f"image://md5/{HEX}",
        "http://127.0.0.1/a.png",
        "ftp://example.com/a.png",
        "https://",
        "https://[::1",
        "https://exa mple.com/",
        "file://elsewhere/a.png",
        "file://[bad",
        "data:image/png;base64,@@",
        "data:image/png;base64,é",
        "data:image/png,raw",
        "data:text/plain;base64,aGk=",
    ],
)
def test_what_is_in_no_form_is_refused_with_the_field_and_the_forms(text: str) -> None:
    with pytest.raises(ToolError, match=r"^images\.1: ") as caught:
        parse_reference(text, "images.1")
    assert caught.value.code == "invalid_argument"
    assert "sha256:" in caught.value.advice


def test_an_error_never_repeats_pixels() -> None:
    with pytest.raises(ToolError) as caught:
        parse_reference("data:image/png;base64," + "A" * 9999 + "!", "image")
    assert len(str(caught.value)) < 600


@given(st.text() | st.from_regex(r"(data:image/png;base64,|https://|file://|sha256:|image://).{0,40}"))
def test_any_text_is_a_reference_or_an_error_in_words(text: str) -> None:
    try:
        parse_reference(text, "image")
    except ToolError as error:
        assert error.code == "invalid_argument" and error.message.startswith("image: ")
