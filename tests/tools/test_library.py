"""Import, list, view, history on a real store."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest
from PIL import Image

from storage import Digest, ImageStore
from storage.errors import Corrupt
from tests.tools.studio import Studio
from tests.tools.test_studio import QUICK, picture
from tools.base import ToolError, short_id
from tools.history import MAX_STEPS
from tools.references import source_of

pytestmark = pytest.mark.anyio


async def test_a_file_is_taken_in_under_a_label_and_knows_where_it_came_from(studio: Studio) -> None:
    picture(40, 20).save(studio.folder / "cat.png")
    result = await studio.call("import_image", image="cat.png", label="my cat")
    assert (result.image.width, result.image.height, result.label) == (40, 20, "my cat")
    assert result.previewed() == (result.image.id,) and "my cat" in result.line()
    again = await studio.call("import_image", image=result.image.id)
    assert again == result
    (step,) = (await studio.call("image_history", image=result.image.id)).steps
    assert (step.tool, step.replay, step.label) == ("import_image", None, "my cat")
    assert studio.store.get_record(step.record).parameters == {"source": "cat.png"}


async def test_images_are_found_by_words_tool_time_and_page(studio: Studio) -> None:
    star = await studio.call("generate_image", prompt="a yellow star", **QUICK)
    edit = await studio.call("edit_image", image=star.images[0].id, instruction="make it blue", **QUICK)
    picture().save(studio.folder / "cat.png")
    cat = await studio.call("import_image", image="cat.png", label="whiskers")
    expected = [cat.image.id, edit.images[0].id, star.images[0].id]

    everything = await studio.call("list_images")
    assert [image.id for image in everything.images] == expected and everything.cursor is None
    assert [image.words for image in everything.images] == [None, "make it blue", "a yellow star"]
    assert everything.images[0].label == "whiskers"
    assert [image.tool for image in everything.images] == ["import_image", "edit_image", "generate_image"]
    assert "whiskers" in everything.line() and everything.previewed() == ()

    for asked, found in [
        ({"query": "yellow"}, [2]),
        ({"query": "whiskers"}, [0]),
        ({"tool": "edit_image"}, [1]),
        ({"since": (datetime.now(UTC) + timedelta(hours=1)).isoformat()}, []),
    ]:
        page = await studio.call("list_images", **asked)
        assert [image.id for image in page.images] == [expected[place] for place in found], asked

    first = await studio.call("list_images", limit=2)
    rest = await studio.call("list_images", limit=2, cursor=first.cursor)
    assert [image.id for image in (*first.images, *rest.images)] == expected
    assert first.cursor in first.line()


async def test_a_view_is_small_and_shows_the_region(studio: Studio) -> None:
    left_red = Image.new("RGB", (2000, 1000), "red")
    left_red.paste("blue", (1000, 0, 2000, 1000))
    image = str(studio.store.put(left_red).id)
    whole = await studio.call("view_image", image=image)
    (shown,) = whole.pictures()
    assert Image.open(io.BytesIO(shown.data)).size == (512, 256) and len(shown.data) <= 150_000
    part = await studio.call("view_image", image=image, region=[1000, 0, 400, 1000], max_side=100)
    (shown,) = part.pictures()
    seen = Image.open(io.BytesIO(shown.data)).convert("RGB")
    red, green, blue = seen.getpixel((10, 50))  # type: ignore[misc]
    assert seen.size == (40, 100) and blue > 240 and red < 15 and green < 15
    assert part.model_dump(mode="json")["region"] == [1000, 0, 400, 1000] and "(1000, 0)" in part.line()


@pytest.mark.parametrize("region", [[-1, 0, 2, 2], [0, 0, 0, 1], [31, 0, 2, 1], [0, 0, 32, 33]])
async def test_a_region_outside_the_image_is_refused(studio: Studio, region: list[int]) -> None:
    image = str(studio.store.put(picture()).id)
    with pytest.raises(ToolError, match=r"region: .*32x32"):
        await studio.call("view_image", image=image, region=region)


async def test_a_history_is_the_calls_that_make_the_image_again(studio: Studio) -> None:
    star = await studio.call("generate_image", prompt="a star", num_images=2, **QUICK)
    ids = [image.id for image in star.images]
    edit = await studio.call("edit_image", image=ids[1], instruction="make it blue", steps=1)
    both = await studio.call(
        "compose_from_references", images=[ids[0], edit.images[0].id], instruction="a", **QUICK
    )
    history = await studio.call("image_history", image=both.images[0].id)
    steps = history.steps
    assert {step.image.id for step in steps} == {*ids, edit.images[0].id, both.images[0].id}
    assert steps[-1].image.id == both.images[0].id
    assert steps[-1].inputs == [ids[0], edit.images[0].id]
    for place, step in enumerate(steps):
        assert set(step.inputs) <= {earlier.image.id for earlier in steps[:place]}
        again = await studio.call(step.replay.tool, **step.replay.arguments)
        assert again.cached and step.image.id in [image.id for image in again.images]
        assert again.record == step.record
    assert history.line().splitlines()[-1].startswith(f"4. {short_id(both.images[0].id)}, ")


def chain(store: ImageStore, length: int) -> list[Digest]:
    """Images of which each was made from the one before."""
    images: list[Digest] = []
    for number in range(length):
        image = Image.new("RGB", (2, 1), (number >> 8, number & 255, 7))
        store.put_made([image], tool="edit_image", inputs=images[-1:], parameters={"instruction": "more"})
        images.append(store.list(limit=1).images[0].id)
    return images


@contextmanager
def database_steps(store: ImageStore) -> Iterator[list[int]]:
    """Counts what SQLite does for a store: one entry for every ten instructions of its machine."""
    steps: list[int] = []
    connection = store._repository.index._connect()
    connection.set_progress_handler(lambda: steps.append(1), 10)
    store._repository.index.close()
    store._repository.index._free.append(connection)
    yield steps
    connection.set_progress_handler(None, 0)


async def test_listing_and_importing_cost_the_same_however_long_the_history_is(studio: Studio) -> None:
    images = chain(studio.store, 120)
    costs: dict[str, list[int]] = {}
    for depth in (10, 119):
        for name, arguments in {
            "list_images": {"limit": 1, "cursor": f"{studio.store._row(images[depth]).key + 1:x}"},
            "import_image": {"image": str(images[depth])},
        }.items():
            with database_steps(studio.store) as steps:
                answer = await studio.call(name, **arguments)
            assert answer.named() == (str(images[depth]),)
            costs.setdefault(name, []).append(len(steps))
    assert all(late <= 2 * early for early, late in costs.values()), costs


async def test_a_long_history_tells_the_nearest_and_where_it_goes_on(studio: Studio) -> None:
    images = [str(digest) for digest in chain(studio.store, MAX_STEPS + 30)]
    near = await studio.call("image_history", image=images[-1])
    assert [step.image.id for step in near.steps] == images[-MAX_STEPS:]
    assert near.steps[0].image.id in near.notes[0] and near.notes[0] in near.summary()
    far = await studio.call("image_history", image=near.steps[0].image.id)
    assert [step.image.id for step in far.steps] == images[:31] and far.notes == ()


async def test_an_export_looks_at_each_ancestor_once(studio: Studio) -> None:
    images = chain(studio.store, 60)
    costs: list[int] = []
    for asked in (images[-1:], images):
        with database_steps(studio.store) as steps:
            assert studio.store.with_ancestors(asked) == set(images)
        costs.append(len(steps))
    assert costs[1] <= 2 * costs[0]


async def test_a_damaged_image_is_not_imported_again_by_its_id(studio: Studio) -> None:
    image = studio.store.put(picture()).id
    path = studio.store.path / "blobs" / "sha256" / image.hex[:2] / image.hex[2:]
    path.chmod(0o600)
    path.write_bytes(b"damaged")
    with pytest.raises(Corrupt):
        await studio.call("import_image", image=str(image))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://example.com/" + "a" * 500 + ".png", "https://example.com/" + "a" * 500 + ".png"),
        ("https://ann:pw@example.com:8443/a.png?id=7#x", "https://example.com:8443/a.png?id=7"),
        (
            "https://s3.example/a?X-Amz-Signature=ab&w=2&access_token=c",
            "https://s3.example/a?X-Amz-Signature=...&w=2&access_token=...",
        ),
        ("data:image/png;base64," + "A" * 5000, "data:image/png;base64"),
        ("HTTPS://example.com/a.png", "https://example.com/a.png"),
        ("pictures/" + "ä" * 300 + ".png", "pictures/" + "ä" * 300 + ".png"),
        ("https://example.com/" + "a" * 5000, "https://example.com/" + "a" * 1980),
    ],
)
def test_a_record_keeps_where_an_image_came_from_without_what_is_secret(given: str, kept: str) -> None:
    assert source_of(given) == kept
