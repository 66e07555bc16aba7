"""The spellings of an image reference, and what is said about everything else."""

import base64
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.base import ToolError
from tools.references import (
    DataRef,
    FileRef,
    StoredRef,
    UrlRef,
    names_stored,
    parse_reference,
    shown,
    source_of,
)

HEX = "0123456789abcdef" * 4
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(60))
BASE64 = base64.b64encode(PNG).decode()
OWN = ("http://localhost:8765", "https://studio.example/art")


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
        (' "01234567" ', StoredRef("01234567")),
        ("`sha256:01234567`", StoredRef("01234567")),
        ("<image://sha256/01234567>", StoredRef("01234567")),
        ("[the logo](sha256:01234567)", StoredRef("01234567")),
        ("![](<https://example.com/a.png>)", UrlRef("https://example.com/a.png")),
        ("\u201c01234567\u201d", StoredRef("01234567")),
        ("sha256:01234567...", StoredRef("01234567")),
        ("01234567\u2026", StoredRef("01234567")),
        ("01234567.", StoredRef("01234567")),
        ("id 01234567,", StoredRef("01234567")),
        (f"/images/{HEX}", StoredRef(HEX)),
        ("'a b.png'", FileRef(Path("a b.png"))),
        ("it's.png", FileRef(Path("it's.png"))),
        ("[1](2).png", FileRef(Path("[1](2).png"))),
        ("./0123", FileRef(Path("0123"))),
        ("/images/cat.png", FileRef(Path("/images/cat.png"))),
        ("~/a.png", FileRef(Path.home() / "a.png")),
        ("~", FileRef(Path.home())),
        ("~root/a.png", FileRef(Path("~root/a.png"))),
        ("data:image/png;base64,aGk", DataRef("image/png", b"hi")),
        ("DATA:Image/PNG; Base64 , aG k\t=", DataRef("image/png", b"hi")),
        ("data:;base64,--__", DataRef("", b"\xfb\xef\xff")),
        ("data:image/x-icon;charset=utf-8;base64,aGk=", DataRef("image/x-icon", b"hi")),
        ("data:application/octet-stream;base64,aGk=", DataRef("application/octet-stream", b"hi")),
        (BASE64, DataRef("", PNG)),
        (f"\n{BASE64.rstrip('=')}\n", DataRef("", PNG)),
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
        f"{HEX}0",
        "''",
        f"http://localhost:8765/images/{HEX}",
        f"{BASE64}!",
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


def test_an_id_that_is_too_short_is_answered_with_how_many_digits_it_needs() -> None:
    with pytest.raises(ToolError, match="8 to 64 hex digits") as caught:
        parse_reference("dbc1", "image")
    assert "./dbc1" in caught.value.advice


@pytest.mark.parametrize("end", ["", "?w=64", "/preview?expires=1&sig=a#b"])
def test_an_address_below_one_of_ours_is_a_stored_image(end: str) -> None:
    for text in (
        f"HTTP://LocalHost:8765/images/{HEX}{end}",
        f"https://studio.example/art/images/sha256:01234567{end}",
    ):
        assert isinstance(parse_reference(text, "image", OWN), StoredRef)
        assert names_stored(text, OWN) and not names_stored(text)
    for text in (f"https://studio.example/images/{HEX}{end}", f"https://studio.example/art/images/cat{end}"):
        assert parse_reference(text, "image", OWN) == UrlRef(text)


@pytest.mark.parametrize(
    ("head", "end"),
    [("data:image/png;base64,", ""), ("![x](data:image/png;base64,", ")"), ("'iVBORw0KGgo", "'")],
)
def test_an_error_never_repeats_pixels(head: str, end: str) -> None:
    with pytest.raises(ToolError) as caught:
        parse_reference(head + "A" * 9999 + "!" + end, "image")
    assert len(str(caught.value)) < 600 and "AAA" not in str(caught.value)
    assert "AAA" not in source_of(head + "A" * 9999 + end)


@given(st.text() | st.from_regex(r"(data:image/png;base64,|https://|file://|sha256:|image://).{0,40}"))
def test_any_text_is_a_reference_or_an_error_in_words(text: str) -> None:
    try:
        parse_reference(text, "image")
    except ToolError as error:
        assert error.code == "invalid_argument" and error.message.startswith("image: ")


def seconds(text: str) -> float:
    """Processor time of reading a reference, the best of three."""

    def once() -> float:
        begun = time.thread_time()
        with suppress(ToolError):
            parse_reference(text, "image")
        return time.thread_time() - begun

    return min(once() for _ in range(3))


@pytest.mark.parametrize("piece", ["%41", "%2541", "%", "%2", "=", ";a", " \n", "://", "é", "\0"])
def test_data_of_any_kind_is_read_about_as_fast_as_plain_base64(piece: str) -> None:
    size, head = 4_000_000, "data:image/png;base64,"
    plain = seconds(head + "A" * size)
    assert seconds(head + piece * (size // len(piece))) < 15 * plain


@pytest.mark.parametrize(
    "head", ["", "data:image/png", "data:image/png;", "data:", "https://", "file:///", "sha256:"]
)
@pytest.mark.parametrize("piece", ["a", ";a", ";", "%41", "0", "a+", "/", "://", "é", "\0", " "])
def test_a_reference_that_is_too_long_for_a_name_is_refused_unread(head: str, piece: str) -> None:
    text = head + piece * (4_000_000 // len(piece))
    assert seconds(text) < 0.05
    with pytest.raises(ToolError) as error:
        parse_reference(text, "image")
    assert len(error.value.message) < 300


@given(st.text(alphabet=st.characters(), max_size=400))
def test_what_is_shown_of_a_reference_has_at_most_100_characters(text: str) -> None:
    assert len(shown(text)) <= 100 and shown(text).isprintable()


@given(st.binary())
def test_percent_escapes_are_read_as_urllib_reads_them(data: bytes) -> None:
    encoded = base64.b64encode(data).decode()
    for text in (quote(encoded, safe=""), "".join(f"%{ord(sign):02x}" for sign in encoded)):
        assert parse_reference(f"data:image/png;base64,{text}", "image") == DataRef("image/png", data)


def test_secrets_of_an_address_are_not_recorded_and_the_rest_is_in_time() -> None:
    assert source_of("https://a@example.com/x?a=1&Token=2&b&x-sig=3#f") == (
        "https://example.com/x?a=1&Token=...&b&x-sig=..."
    )
    begun = time.thread_time()
    source_of("https://example.com/?" + "token" * 1600)
    assert time.thread_time() - begun < 0.1
