"""Steps of one `edit_image` call by id: thread hops, SQL, hashes of pictures, PNG work.

    python -m benchmarks.walk [SEED]

Edits a stored image with nano over the in-memory MCP client, once the model is loaded; a first edit, which is
not counted, warms everything up. SEED is 7; `-` gives none, and the store is not asked for an equal request.
Counted from outside, so that two versions can be compared: `anyio.to_thread.run_sync` and event loop
executors by the function they run, SQL statements by database, SHA-256 of at least `PICTURE_BYTES` by caller.

Types of the values that carry the request, counted by hand:
- before: EditImage, StoredImage, Recipe, ImageTask, Work, Job, Status, Ticket, Outcome, JobTimes, Answer,
  Record, ImagesResult: 13;
- now: EditImage, StoredImage, Recipe, ImageTask, Work, Job, JobStatus, Ticket, Outcome, Record,
  ImagesResult: 11.
"""

import functools
import hashlib
import sqlite3
import sys
import tempfile
from asyncio.base_events import BaseEventLoop
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import torch
from anyio import to_thread
from mcp import Client
from PIL import Image, PngImagePlugin

from server.app import App, build_app
from server.caller import LOCAL, Caller
from server.mcp import Studio
from server.settings import Settings

PICTURE_BYTES = 4096
"""Fewer bytes are those of a record."""
ENDS = ("COMMIT", "ROLLBACK")
counts: Counter[str] = Counter()


def count(what: str | None) -> None:
    if what:
        counts[what] += 1


def count_calls(owner: Any, name: str, label: Callable[..., str | None]) -> None:
    """Count every call of `owner.name` under what `label` makes of its arguments."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        count(label(*args, **kwargs))
        return function(*args, **kwargs)

    setattr(owner, name, counted)


def hop(work: Any, *_: Any, **__: Any) -> str:
    while isinstance(work, functools.partial):
        work = work.func
    return f"hop    {work.__qualname__}"


def hashed(data: Any = b"", **_: Any) -> str | None:
    frame = sys._getframe(2)
    if frame.f_code.co_name == "of" and frame.f_back:
        frame = frame.f_back
    return f"sha256 in {frame.f_code.co_qualname}" if len(data) >= PICTURE_BYTES else None


def count_sql(file: str, sql: str) -> None:
    kind = {"BEGIN": "read transactions", "BEGIN IMMEDIATE": "write transactions"}.get(sql, "statements")
    count(None if sql in ENDS else f"sql    {file}: {kind}")


def watch() -> None:
    """Count from now on whatever is called through these names."""
    count_calls(to_thread, "run_sync", hop)
    count_calls(BaseEventLoop, "run_in_executor", lambda _, __, work, *args: hop(work))
    count_calls(hashlib, "sha256", hashed)
    count_calls(PngImagePlugin.PngImageFile, "load_end", lambda *_: "png    decoded")
    Image.init()
    encode, connect = Image.SAVE["PNG"], sqlite3.connect

    def encoded(*args: Any, **kwargs: Any) -> None:
        count("png    encoded")
        encode(*args, **kwargs)

    def connected(file: Any, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        database = connect(file, *args, **kwargs)
        database.set_trace_callback(functools.partial(count_sql, Path(str(file)).name))
        return database

    Image.SAVE["PNG"], sqlite3.connect = encoded, connected


async def listen(*_: Any) -> None:
    """Show progress, so that the server does not answer before the edit is done, however long it takes."""


async def edit(app: App, seed: str) -> Counter[str]:
    """The counts of the second of two edits."""
    server = Studio(app, lambda _: Caller(LOCAL, "benchmark")).server()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    async with app, Client(server) as client:
        image = app.store.put(Image.fromarray(noise))
        for words in ("make it blue", "make it green"):
            counts.clear()
            asked: dict[str, Any] = {"image": str(image.id), "instruction": words, "steps": 2}
            asked |= {"seed": int(seed)} if seed != "-" else {}
            result = await client.call_tool("edit_image", asked, progress_callback=listen)
            assert result.structured_content["status"] == "done", result.content
        return Counter(counts)


def main(seed: str = "7") -> None:
    torch.set_num_threads(1)
    watch()
    with tempfile.TemporaryDirectory() as folder:
        walk = anyio.run(edit, build_app(Settings(store=folder)), seed)
    for what, number in sorted(walk.items()):
        print(f"{number:4} {what}")
    for kind in ("hop", "sql", "sha256", "png"):
        print(f"{sum(number for what, number in walk.items() if what.startswith(kind)):4} {kind} in all")


if __name__ == "__main__":
    main(*sys.argv[1:])
