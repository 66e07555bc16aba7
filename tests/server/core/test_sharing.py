"""Whose images are whose, as tools answer two principals of one server; and what each may have."""

import asyncio
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest

from server.app import App
from server.caller import LOCAL, Caller
from tests.server.core.conftest import ANN, BOB, SMALL, HeldEngine, call
from tests.server.core.test_references import png
from tools.base import ToolError

pytestmark = pytest.mark.anyio
WORDS: dict[str, Any] = {"prompt": "a dragon", "seed": 7, **SMALL}
HOST = Caller(LOCAL, "stdio")


@pytest.fixture
def own(make_app: Callable[..., App], engine: HeldEngine) -> App:
    return make_app(lambda: engine, sharing="own")


async def refused(app: App, tool: str, caller: Caller, **arguments: Any) -> str:
    with pytest.raises(ToolError) as error:
        await call(app, tool, caller, **arguments)
    return f"{error.value.code}: {error.value}"


async def ids(app: App, caller: Caller, **asked: Any) -> list[str]:
    return [image.id for image in (await call(app, "list_images", caller, **asked)).images]


async def test_an_equal_request_of_another_is_computed_and_gives_the_same_id(own: App, engine: HeldEngine):
    async with own:
        first = await call(own, "generate_image", ANN, **WORDS)
        second = await call(own, "generate_image", BOB, **WORDS)
        assert not second.cached and engine.submitted == 2
        assert [image.id for image in second.images] == [image.id for image in first.images]
        assert second.record != first.record
        assert (await call(own, "generate_image", BOB, **WORDS)).record == second.record
        assert engine.submitted == 2


async def test_where_all_is_shared_an_equal_request_is_answered_from_the_store(app: App, engine: HeldEngine):
    async with app:
        first = await call(app, "generate_image", ANN, **WORDS)
        second = await call(app, "generate_image", BOB, **WORDS)
        assert second.cached and second.record == first.record and engine.submitted == 1


async def test_what_was_sent_with_a_call_is_the_callers(own: App):
    data = f"data:image/png;base64,{b64encode(png('red')).decode()}"
    async with own:
        edited = await call(own, "edit_image", ANN, image=data, instruction="a dragon", steps=2)
        history = await call(own, "image_history", ANN, image=edited.images[0].id)
        source, made = history.steps
        assert [source.tool, made.tool] == ["import_image", "edit_image"]
        assert set(await ids(own, ANN)) == {source.image.id, made.image.id}
        assert await ids(own, BOB) == [] == await ids(own, BOB, query="dragon")
        for image in (source.image.id, made.image.id):
            words = await refused(own, "view_image", BOB, image=image)
            never = await refused(own, "view_image", BOB, image="0" * 64)
            assert words.replace(image.removeprefix("sha256:"), "0" * 64) == never
        taken = await call(own, "import_image", BOB, image=data, label="mine")
        assert taken.image.id == source.image.id and await ids(own, BOB) == [source.image.id]
        listed = await call(own, "list_images", ANN)
        assert {image.label for image in listed.images} == {None}
        assert len(await ids(own, HOST)) == 2


async def test_a_job_and_its_result_are_the_principals(own: App):
    async with own:
        job = (await call(own, "generate_image", ANN, background=True, **WORDS)).job_id
        assert (await call(own, "get_job", ANN, job_id=job, wait_seconds=30)).status == "done"
        for name in ("get_job", "cancel_job"):
            words = await refused(own, name, BOB, job_id=job)
            never = await refused(own, name, BOB, job_id="job_0123456789abcdef")
            assert words.replace(job, "") == never.replace("job_0123456789abcdef", "")


async def test_images_per_hour_are_counted_at_once_and_refused_with_the_time_to_come_back(
    make_app: Callable[..., App], engine: HeldEngine
):
    app = make_app(lambda: engine, max_images_per_hour=4)
    async with app:
        made = await asyncio.gather(
            *(call(app, "generate_image", ANN, prompt=f"{n}", **SMALL) for n in range(7)),
            return_exceptions=True,
        )
        refusals = [error for error in made if isinstance(error, ToolError)]
        assert len(refusals) == 3 and engine.submitted == 4
        assert {error.code for error in refusals} == {"busy"}
        assert all(3500 < (error.retry_after_s or 0) < 3700 for error in refusals)
        assert "4 images made within an hour" in str(refusals[0]) and "4 per hour" in str(refusals[0])
        equal = {"prompt": "again", "seed": 1, **SMALL}
        await call(app, "generate_image", BOB, **equal)
        for _ in range(5):  # an equal repeat costs nothing
            assert (await call(app, "generate_image", BOB, **equal)).cached
        await refused(app, "generate_image", BOB, prompt="x", num_images=4, **SMALL)
        await call(app, "generate_image", BOB, prompt="x", num_images=3, **SMALL)
        await call(app, "generate_image", HOST, prompt="x", num_images=8, **SMALL)  # it is the host's own
        words = await refused(app, "generate_image", Caller("eve", "eve"), prompt="x", num_images=5)
        assert words.startswith("invalid_argument: num_images: 5 given")
        app.dispatcher._quotas._made.clear()  # as after a restart
        assert "4 images made" in await refused(app, "generate_image", ANN, prompt="z", **SMALL)


async def test_a_job_that_made_nothing_costs_nothing(make_app: Callable[..., App], engine: HeldEngine):
    app = make_app(lambda: engine, max_images_per_hour=1)
    engine.hold_at = 1
    async with app:
        job = (await call(app, "generate_image", ANN, prompt="x", background=True, **SMALL)).job_id
        await engine.is_held()
        await refused(app, "generate_image", ANN, prompt="y", **SMALL)
        engine.released.set()
        await call(app, "cancel_job", ANN, job_id=job)
        await call(app, "generate_image", ANN, prompt="y", **SMALL)


async def test_only_so_many_jobs_of_one_principal_wait(make_app: Callable[..., App], engine: HeldEngine):
    app = make_app(lambda: engine, max_waiting_jobs=2)
    engine.hold_at, engine._pictures._room = 1, 1
    async with app:
        await call(app, "generate_image", ANN, prompt="x", background=True, **SMALL)
        await engine.is_held()
        waiting = {"background": True, **SMALL}
        for number in range(2):
            await call(app, "generate_image", ANN, prompt=f"{number}", **waiting)
        words = await refused(app, "generate_image", ANN, prompt="y", **waiting)
        assert "2 requests of yours are waiting" in words and "2 at once" in words
        await call(app, "generate_image", BOB, prompt="y", **waiting)
        engine.released.set()


async def test_bytes_are_refused_before_work(make_app: Callable[..., App], engine: HeldEngine):
    most = 32 * 32 * 3 + 3000  # one picture without compression, and records
    app = make_app(lambda: engine, max_stored_bytes=most)
    data = f"data:image/png;base64,{b64encode(png('red')).decode()}"
    async with app:
        made = await asyncio.gather(
            *(call(app, "generate_image", ANN, prompt=f"{n}", **SMALL) for n in range(4)),
            return_exceptions=True,
        )
        refusals = [error for error in made if isinstance(error, ToolError)]
        assert len(refusals) == 3 == 4 - engine.submitted
        assert {error.code for error in refusals} == {"forbidden"}
        assert f"of the {most:,} bytes" in str(refusals[0])
        await call(app, "import_image", BOB, image=data)
