"""Many clients at once, of all kinds, some of which go away."""

from collections import Counter
from dataclasses import replace

import anyio
import pytest

from server.app import App
from tests.server.core.conftest import ANN, SMALL, HeldEngine, call, settled
from tools.base import ToolError

pytestmark = pytest.mark.anyio
CLIENTS = 32


async def test_32_clients_with_mixed_tools_some_leaving_are_all_answered(
    app: App, engine: HeldEngine
) -> None:
    ends: Counter[str] = Counter()

    async def talk(number: int, image: str) -> None:
        caller = replace(ANN, client=f"client {number}", principal=f"p{number}")
        asks = [
            ("generate_image", {"prompt": f"p{number}", **SMALL}),
            ("edit_image", {"image": image, "instruction": f"e{number}", "steps": 2}),
            ("describe_image", {"images": [image], "question": f"q{number}", "max_tokens": 5}),
            ("compose_from_references", {"images": [image, image], "instruction": f"c{number}", **SMALL}),
            ("list_images", {}),
        ]
        for turn in range(2):
            tool, arguments = asks[(number + turn) % len(asks)]
            try:
                await call(app, tool, caller, **arguments)
                ends["answered"] += 1
            except ToolError as error:
                ends[error.code] += 1

    async def leave(number: int, image: str) -> None:
        with anyio.CancelScope() as connection:
            async with anyio.create_task_group() as group:
                group.start_soon(talk, number, image)
                await settled()
                connection.cancel()
        ends["left"] += 1

    engine.hold_at = 1
    async with app:
        first = await call(app, "generate_image", prompt="first", background=True, **SMALL)
        await engine.is_held()
        engine.released.set()
        image = (await call(app, "get_job", job_id=first.job_id, wait_seconds=30)).result.images[0].id
        async with anyio.create_task_group() as clients:
            for number in range(CLIENTS):
                clients.start_soon(leave if number % 4 == 3 else talk, number, image)
        jobs = list(app.dispatcher._jobs.values())
        with anyio.fail_after(60):
            for job in jobs:
                await job.ended.wait()
        assert {job.state for job in jobs} <= {"done", "cancelled"}
        assert all(not lane.queue and not lane.running for lane in app.dispatcher._lanes.values())
        assert not engine.busy()
        assert (await call(app, "generate_image", prompt="last", **SMALL)).images
    assert ends["left"] == CLIENTS / 4
    assert ends["answered"] >= 2 * CLIENTS * 3 / 4
    assert ends.keys() <= {"left", "answered"}
