"""Finding images by words, in any script, whatever is typed."""

import sqlite3
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from storage import ImageStore
from storage.errors import InvalidArgument
from storage.index.search import MAX_TERMS

LABELS = (
    "東京タワーの夜景",
    "夜の京都、東の山",
    "กินข้าวที่กรุงเทพ",
    "고양이가 소파에",
    "ភាសាខ្មែរ",
    "a cat 🐱 and 👩\u200d🚀 fly",
    "thumbs 👍🏽 up ❤\ufe0f 🇩🇪",
    "a new 🫨 face",
    "Cafés à la crème",
    "eine Straße",
    "שָׁלוֹם עולם",
    "مُحَمَّد",
    "हिन्दी भाषा",
    "ＦＵＬＬ ｶﾀｶﾅ",
    "snake_case-name",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImageStore]:
    with ImageStore(tmp_path_factory.mktemp("search") / "store") as store:
        for number, label in enumerate(LABELS):
            store.put(Image.new("RGB", (1, 1), (number, 0, 0)), label=label)
        yield store


def found(store: ImageStore, query: str) -> set[str]:
    return {LABELS.index(image.label or "") for image in store.list(query=query).images}  # type: ignore[misc]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("東", {0, 1}), ("京", {0, 1}), ("東京", {0}), ("京都", {1}), ("タワー", {0}), ("ワ", {0}),
        ("京タ", {0}),
        ("東の山", {1}), ("夜景 東京", {0}), ("東夜", set()), ("都東", set()), ("东京", set()),
        ("กิน", {2}), ("กรุงเทพ", {2}), ("ข้าว", {2}), ("고양이", {3}), ("이가", {3}), ("소", {3}),
        ("ខ្មែរ", {4}),
        ("🐱", {5}), ("👩\u200d🚀", {5}), ("🚀", {5}), ("🐶", set()), ("🫨", {7}), ("🐱 cat", {5}),
        ("👍", {6}), ("👍🏽", {6}), ("👍🏿", set()), ("❤", {6}), ("❤\ufe0f", {6}), ("🇩🇪", {6}), ("🇫🇷", set()),
        ("cafe", {8}), ("CAFÉS", {8}), ("creme cafes", {8}), ("caf", set()), ("strasse", {9}),
        ("STRASSE", {9}),
        ("שלום", {10}), ("محمد", {11}), ("हिन्दी", {12}), ("भाषा", {12}), ("full", {13}), ("カタカナ", {13}),
        ("snake", {14}), ("name snake_case", {14}), ("thumb", {6}),
    ],
)  # fmt: skip
def test_a_query_finds_parts_of_words_where_a_script_has_no_spaces(
    store: ImageStore, query: str, expected: set[int]
):
    assert found(store, query) == expected
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert found(store, unicodedata.normalize(form, query)) == expected, form


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('"', set()), ('""', set()), ("cat*", {5}), ("-cat", {5}), ("^cat", {5}), ("cat\0", {5}),
        ("\ud800cat", {5}),
        ("(cat)", {5}), ("'cat'", {5}), ("cat OR thumbs", set()), ("NEAR(cat fly)", set()),
        ("tools : cat", set()),
        ("cat\ue000fly", {5}), ("\ue000", set()), ("、。!", set()), ("\u200d", set()), ("\ufe0f", set()),
        ('cat" OR text : "thumbs', set()), ("東" * 500, set()), ('"' * 500, set()), ("z" * 100_000, set()),
        ("; DROP TABLE words; --", set()),
    ],
)  # fmt: skip
def test_whatever_is_typed_is_words_and_never_a_query_language(
    store: ImageStore, query: str, expected: set[int]
):
    assert found(store, query) == expected


def test_more_words_than_can_be_looked_for_are_refused(store: ImageStore):
    assert found(store, " ".join(map(str, range(MAX_TERMS)))) == set()
    assert found(store, "cat " * 10_000) == {5}
    with pytest.raises(InvalidArgument, match=f"10000 words given; at most {MAX_TERMS}"):
        store.list(query=" ".join(map(str, range(10_000))))


def test_words_of_prompt_and_label_are_found_together_but_are_no_phrase(tmp_path: Path):
    with ImageStore(tmp_path / "store") as store:
        image = store.put(Image.new("RGB", (1, 1)))
        store.record(tool="generate_image", parameters={"prompt": "山の東"}, outputs=[image.id])
        store.label(image.id, "京の夜")
        assert store.list(query="山の東 京の夜").images and store.list(query="山の夜").images == ()
        assert store.list(query="東京").images == ()


def test_an_index_of_the_version_before_is_built_anew(tmp_path: Path):
    with ImageStore(tmp_path / "store") as store:
        store.put(Image.new("RGB", (1, 1)), label="東京")
    with sqlite3.connect(store.path / "index.sqlite") as db:
        db.execute("DROP TABLE words")
        db.execute("CREATE VIRTUAL TABLE words USING fts5 (text, tools, tokenize = 'porter unicode61')")
        db.execute("PRAGMA user_version = 2")
    db.close()
    with ImageStore(tmp_path / "store") as store:
        assert len(store.list(query="京").images) == 1
