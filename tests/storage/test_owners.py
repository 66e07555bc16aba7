"""Whose images are whose: what a principal's view of a store shows, and that it shows nothing of others."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from storage import LOCAL, Digest, ImageStore, Model, StoreView
from storage.errors import ImageNotFound, InvalidArgument, OverQuota
from storage.transfer import with_history
from tests.storage.test_store import picture

REQUEST = {"tool": "generate_image", "parameters": {"prompt": "a dragon"}, "seed": 7}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ImageStore]:
    with ImageStore(tmp_path / "store") as store:
        yield store


@pytest.fixture
def ann(store: ImageStore) -> StoreView:
    return store.for_principal("ann", own=True)


@pytest.fixture
def bob(store: ImageStore) -> StoreView:
    return store.for_principal("bob", own=True)


def made(view: StoreView, number: int, *inputs: Digest, prompt: str = "a dragon") -> Digest:
    parameters = {"prompt": prompt, "number": number}
    record = view.put_made(
        [picture(number)], tool="edit_image", parameters=parameters, inputs=inputs, model=Model(id="nano")
    )
    return record.outputs[0]


def seen(view: StoreView, **asked: str) -> set[Digest]:
    return {image.id for image in view.list(**asked).images}  # type: ignore[arg-type]


def test_an_image_exists_for_the_one_who_made_it_only(ann: StoreView, bob: StoreView, store: ImageStore):
    image = made(ann, 1)
    assert seen(ann) == seen(store) == {image}
    assert (seen(bob), seen(bob, query="dragon")) == (set(), set())
    never = Digest.of(b"never stored")
    asks: list[Callable[[Digest], object]] = [
        bob.get, bob.read, bob.open, bob.preview, bob.origin, bob.lineage, bob.notes,
        lambda digest: bob.label(digest, "mine"), bob.pin, lambda digest: bob.get(digest.hex[:8]),
        lambda digest: bob.record(tool="edit_image", parameters={}, inputs=[digest]),
        lambda digest: bob.record(tool="edit_image", parameters={}, outputs=[digest]),
        lambda digest: bob.put_made([picture(2)], tool="edit_image", parameters={}, inputs=[digest]),
        lambda digest: bob.hold([digest]).__enter__(),
    ]  # fmt: skip
    for ask in asks:
        words: list[str] = []
        for digest in (image, never):
            with pytest.raises(ImageNotFound) as refused:
                ask(digest)
            words.append(str(refused.value).replace(digest.hex, "ID").replace(digest.hex[:8], "ID"))
        assert words[0] == words[1]
    assert bob.with_ancestors([image]) == set()
    assert bob.usage().images == 0 and ann.usage().images == 1


def test_a_record_exists_for_its_principal_only(ann: StoreView, bob: StoreView):
    record = ann.origin(made(ann, 1)).record
    assert record and record.principal == "ann" and ann.get_record(record.id) == record
    never = Digest.of(b"never stored")
    words: list[str] = []
    for digest in (record.id, never):
        with pytest.raises(InvalidArgument) as refused:
            bob.get_record(digest)
        words.append(str(refused.value).replace(digest.hex, "ID"))
    assert words[0] == words[1]


def test_the_same_picture_is_each_ones_own(ann: StoreView, bob: StoreView, store: ImageStore):
    image = made(ann, 1)
    ann.label(image, "secret wyvern")
    before = datetime.now(UTC)
    mine = bob.put(picture(1), source="here.png")
    assert mine.id == image and mine.label is None and mine.created >= before > ann.get(image).created
    assert seen(bob, query="dragon") == seen(bob, query="wyvern") == seen(bob, tool="edit_image") == set()
    assert seen(bob, tool="import_image") == {image}
    origin = bob.origin(image).record
    assert origin and (origin.tool, origin.principal, origin.parameters) == (
        "import_image", "bob", {"source": "here.png"},
    )  # fmt: skip
    bob.label(image, "my lizard")
    assert (ann.get(image).label, bob.get(image).label) == ("secret wyvern", "my lizard")
    assert seen(bob, query="lizard") == {image} and seen(ann, query="lizard") == set()
    assert [record.parameters for record in bob.notes(image)] == [{"label": "my lizard"}]
    bob.label(image, None)
    assert (ann.get(image).label, bob.get(image).label) == ("secret wyvern", None)
    assert seen(store, query="wyvern dragon") == set() == seen(ann, query="lizard")
    assert store.usage().images == 1


def test_importing_again_keeps_one_record(bob: StoreView):
    first = bob.put(picture(1))
    assert bob.put(picture(1)).created == first.created
    assert len(bob.lineage(first.id)) == 1


def test_an_equal_result_of_another_is_not_served(ann: StoreView, bob: StoreView, store: ImageStore):
    first = ann.put_made([picture(1)], **REQUEST)
    assert bob.find_equal(**REQUEST) is None
    second = bob.put_made([picture(1)], **REQUEST)
    assert second.outputs == first.outputs
    assert bob.find_equal(**REQUEST) == second and ann.find_equal(**REQUEST) == first
    assert store.find_equal(**REQUEST) == first


def test_the_history_ends_where_it_is_another_ones(ann: StoreView, bob: StoreView):
    first = made(ann, 1)
    second = made(ann, 2, first)
    bob.put(picture(2))
    third = made(bob, 3, second)
    assert [step.image.id for step in bob.lineage(third)] == [second, third]
    assert bob.lineage(third)[0].record.tool == "import_image"  # type: ignore[union-attr]
    assert [step.image.id for step in ann.lineage(second)] == [first, second]
    assert bob.with_ancestors([third]) == {second, third}


def test_images_of_others_make_no_short_id_ambiguous(bob: StoreView, store: ImageStore):
    first: dict[str, int] = {}
    for number in range(17):  # two of them begin with the same digit
        digit = store.put(picture(number)).id.hex[0]
        if digit in first:
            mine = bob.put(picture(first[digit])).id
            # Below the public interface, which wants more digits than collide here.
            assert [row.digest for row in bob._repository.find(digit, "bob")] == [mine]
            assert len(store._repository.find(digit)) == 2
            return
        first[digit] = number


def test_pages_are_of_ones_own_images(ann: StoreView, bob: StoreView):
    mine = [made(bob if number % 3 == 0 else ann, number) for number in range(30)][::3]
    for asked in ({}, {"query": "dragon"}, {"tool": "edit_image"}):
        found: list[Digest] = []
        cursor = None
        while True:
            page = bob.list(limit=4, cursor=cursor, **asked)  # type: ignore[arg-type]
            found += [image.id for image in page.images]
            if (cursor := page.cursor) is None:
                break
        assert found == mine[::-1]
    middle = bob.get(mine[5]).created
    assert {image.id for image in bob.list(since=middle).images} == set(mine[5:])


def test_who_runs_the_process_sees_all_and_owns_nothing(store: ImageStore, ann: StoreView):
    local = store.for_principal(LOCAL, own=True)
    image = local.put(picture(1)).id
    assert store.origin(image).record is None
    assert seen(local) == {image} | seen(ann) and seen(ann) == set()
    record = local.put_made([picture(2)], **REQUEST)
    assert record.principal == LOCAL and seen(ann) == set()


def test_what_a_principal_stores_where_all_is_shared_is_its_own_later(store: ImageStore, ann: StoreView):
    shared = store.for_principal("ann", own=False)
    image = shared.put(picture(1), label="mine").id
    old = store.put(picture(2)).id  # as an earlier version stored it
    assert seen(shared) == {image, old}
    assert seen(ann) == {image} and ann.get(image).label == "mine"


def test_a_rebuilt_index_knows_whose_is_whose(ann: StoreView, bob: StoreView, store: ImageStore):
    first = made(ann, 1)
    made(bob, 2, bob.put(picture(1)).id)
    ann.label(first, "wyvern")
    bob.pin(first)
    late = datetime(2020, 1, 1, tzinfo=UTC)
    bob.record(tool="compose", parameters={"prompt": "old hydra"}, outputs=[first], time=late)

    def answers() -> list[object]:
        found = [view.list(query=word) for view in (ann, bob) for word in (None, "hydra", "wyvern")]
        return [*found, *((view.usage(), view.lineage(first)) for view in (ann, bob))]

    before = answers()
    assert bob.get(first).created == late and bob.get(first).pinned and not ann.get(first).pinned
    store.rebuild_index()
    assert answers() == before


def test_what_is_collected_is_nobodys(ann: StoreView, bob: StoreView, store: ImageStore):
    image = made(ann, 1)
    kept = made(ann, 2)
    bob.put(picture(1))
    bob.label(bob.put(picture(2)).id, "kept by bob")
    used = ann.usage().bytes
    store.collect(grace=timedelta(0), keep_accessed=timedelta(0))
    gone = {image} - seen(store)
    assert gone == {image} and seen(ann) == seen(bob) == {kept}
    assert ann.usage().images == bob.usage().images == 1 and ann.usage().bytes < used
    assert seen(ann, query="dragon") == {kept}


def test_a_quota_is_what_one_principal_stores(store: ImageStore):
    def noise(number: int) -> Image.Image:
        return picture(number, (64, 64))

    size = store.put(noise(1)).bytes
    most = 3 * size + 2000
    ann = store.for_principal("ann", own=False, max_bytes=most)
    image = ann.put(noise(1)).id  # stored already, and counts all the same
    ann.refuse_if_full(size)
    for number in (2, 3):
        ann.put(noise(number))

    def label_again_and_again() -> None:
        for number in range(10):
            ann.label(image, f"{number}" * 500)

    for refused in (
        lambda: ann.put(noise(4)),
        lambda: ann.put_made([noise(5)], **REQUEST),
        lambda: ann.refuse_if_full(size),
        label_again_and_again,
    ):
        with pytest.raises(OverQuota, match=f"of the {most:,} bytes"):
            refused()
    assert ann.put(noise(3)).label is None  # it is there
    owned = store.for_principal("ann", own=True, max_bytes=most).usage()
    assert owned.images == 3 and owned.bytes <= most == owned.quota_bytes
    store.for_principal("bob", own=False, max_bytes=most).put(noise(4))
    store.for_principal(LOCAL, own=False, max_bytes=1).put(noise(5))


def test_writers_at_once_do_not_exceed_a_quota_together(store: ImageStore):
    most = 5 * store.put(picture(0, (64, 64))).bytes
    ann = store.for_principal("ann", own=True, max_bytes=most)

    def put(number: int) -> bool:
        try:
            ann.put(picture(number, (64, 64)))
        except OverQuota:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        stored = list(pool.map(put, range(16)))
    assert sum(stored) == ann.usage().images == 4 and ann.usage().bytes <= most


def test_the_history_in_a_file_is_kept_as_claims_and_makes_nothing_anybodys(ann: StoreView, bob: StoreView):
    first = made(ann, 1)
    second = made(ann, 2, first)
    file = with_history(ann, second, ancestors=True)
    taken = bob.put(file)
    origin = bob.origin(taken.id).record
    assert taken.id == second and origin and origin.tool == "import_image"
    claims = origin.parameters["history"]
    assert isinstance(claims, list) and len(claims) == 2
    assert seen(bob) == {second} == bob.with_ancestors([second]) and seen(bob, query="dragon") == set()
    with pytest.raises(ImageNotFound):
        bob.get(first)
