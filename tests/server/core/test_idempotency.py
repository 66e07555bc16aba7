"""Idempotency keys: a call under a key is made once, also for those who ask again while it is under way."""

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from omnigen2.model import OmniGen2
from server import journal as module
from server.app import App
from server.journal import Journal, Keyed
from tests.server.core.conftest import ANN, BOB, SMALL, HeldEngine, call, settled
from tools.base import ToolError

pytestmark = pytest.mark.anyio
KEYED = replace(ANN, idempotency_key="key-1")
ASKED: dict[str, Any] = {"prompt": "x", **SMALL}  # without a seed: made anew, it would be another picture


async def test_a_repeated_call_has_the_same_answer_and_another_key_another(
    app: App, engine: HeldEngine
) -> None:
    async with app:
        first = await call(app, "generate_image", KEYED, **ASKED)
        again = await call(app, "generate_image", KEYED, **ASKED)
        assert (again.images, again.job_id) == (first.images, first.job_id)
        await call(app, "generate_image", replace(KEYED, idempotency_key="key-2"), **ASKED)
        await call(app, "generate_image", replace(BOB, idempotency_key="key-1"), **ASKED)
        assert engine.submitted == 3


async def test_two_who_ask_at_once_follow_one_job(app: App, engine: HeldEngine) -> None:
    engine.hold_at = 1
    results: list[Any] = []

    async def ask() -> None:
        results.append(await call(app, "generate_image", KEYED, **ASKED))

    async with app, anyio.create_task_group() as group:
        group.start_soon(ask)
        group.start_soon(ask)
        await engine.is_held()
        group.start_soon(ask)
        await settled()
        engine.released.set()
    assert engine.submitted == 1 and results[0] == results[1] == results[2]


async def test_a_keyed_job_goes_on_without_its_caller_and_answers_who_comes_back(
    app: App, engine: HeldEngine
) -> None:
    engine.hold_at = 1
    async with app:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: call(app, "generate_image", KEYED, **ASKED))
            await engine.is_held()
            group.cancel_scope.cancel()
        engine.released.set()
        made = await call(app, "generate_image", KEYED, **ASKED)
        assert made.images and engine.submitted == 1


async def test_the_same_key_with_other_arguments_is_refused_also_while_the_first_runs(
    app: App, engine: HeldEngine
) -> None:
    engine.hold_at = 1
    async with app, anyio.create_task_group() as group:
        group.start_soon(lambda: call(app, "generate_image", KEYED, **ASKED))
        await engine.is_held()
        for tool, other in (("generate_image", ASKED | {"prompt": "y"}), ("describe_image", {})):
            other |= {} if tool == "generate_image" else {"question": "?", "images": ["0" * 8]}
            with pytest.raises(ToolError, match="came before with other arguments") as caught:
                await call(app, tool, KEYED, **other)
            assert caught.value.code == "conflict"
        engine.released.set()


async def test_a_call_that_failed_is_made_again(app: App, engine: HeldEngine) -> None:
    async with app:
        with pytest.raises(ToolError, match="names no image"):
            await call(app, "edit_image", KEYED, image="data:x", instruction="y")
        job = await call(app, "generate_image", KEYED, **ASKED, background=True)
        await call(app, "cancel_job", job_id=job.job_id)
        again = await call(app, "generate_image", KEYED, **ASKED, background=True)
        assert again.job_id != job.job_id
        assert (await call(app, "get_job", job_id=again.job_id, wait_seconds=50)).status == "done"
        same = await call(app, "generate_image", KEYED, **ASKED, background=True)
        assert same.job_id == again.job_id and same.parameters == again.parameters


async def test_calls_without_a_job_keep_their_results(app: App) -> None:
    async with app:
        made = await call(app, "generate_image", seed=1, **ASKED)
        kept = await call(app, "generate_image", KEYED, seed=1, **ASKED)
        assert kept.cached and kept.images == made.images
        assert (await call(app, "generate_image", KEYED, seed=1, **ASKED)).images == made.images
        with pytest.raises(ToolError):
            await call(app, "generate_image", KEYED, seed=2, **ASKED)


@pytest.mark.parametrize("key", ["", "x" * 256, "a\nb"])
async def test_a_key_must_be_a_short_line(app: App, key: str) -> None:
    async with app:
        with pytest.raises(ToolError, match="1 to 255 printable"):
            await call(app, "generate_image", replace(ANN, idempotency_key=key), **ASKED)


async def test_keys_outlive_the_server(make_app: Callable[..., App], omnigen: OmniGen2) -> None:
    async with make_app(lambda: HeldEngine(omnigen)) as app:
        first = await call(app, "generate_image", KEYED, **ASKED)
    engine = HeldEngine(omnigen)
    async with make_app(lambda: engine) as app:
        again = await call(app, "generate_image", KEYED, **ASKED)
        assert again.images == first.images and engine.submitted == 0


def test_keys_are_bounded_in_number_and_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_KEYS", 3)
    journal = Journal(tmp_path)
    journal.keep_key("bob", "0", Keyed("call", "job", None))
    for number in range(5):
        journal.keep_key("ann", str(number), Keyed("call", None, "{}"))
    assert [number for number in range(5) if journal.find_key("ann", str(number))] == [2, 3, 4]
    assert journal.find_key("bob", "0") == Keyed("call", "job", None)
    journal.close()
    with sqlite3.connect(tmp_path / "jobs" / module.FILE) as database:
        database.execute("UPDATE keys SET created = created - 100000 WHERE key = '2'")
    database.close()
    journal = Journal(tmp_path)
    assert journal.find_key("ann", "2") is None and journal.find_key("ann", "3") is not None
    journal.close()
