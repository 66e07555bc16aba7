"""Whatever is sent, the answer is a tool error with a code and advice, and the server lives on."""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from server.app import App
from server.schema import ERROR
from storage.index import search
from tests.server.surfaces import hostile
from tests.server.surfaces.conftest import SMALL, Connect, succeeded

pytestmark = pytest.mark.anyio
REFUSALS = {"invalid_argument", "image_not_found", "image_rejected", "forbidden"}


def told(result: Any) -> dict[str, Any]:
    """The error of a call that must have failed, complete and in words."""
    assert result.is_error
    error = result.structured_content["error"]
    Draft202012Validator(ERROR).validate(error)
    assert error["message"] and error["advice"]
    assert len(result.content[0].text) < 4000  # a large value is not thrown back
    return error


async def test_every_wrong_argument_of_every_tool_is_refused_by_name(app: App, connect: Connect) -> None:
    cases = 0
    async with connect(app) as client:
        for tool, field, arguments in hostile.wrong(app):
            error = told(await client.call_tool(tool, arguments))
            assert error["code"] == "invalid_argument", (tool, field, arguments, error)
            assert field in error["message"], (tool, field, error)
            cases += 1
        await succeeded(client, "list_images")
    assert cases > 100


async def test_every_hostile_reference_is_refused(app: App, connect: Connect, tmp_path: Path) -> None:
    outside = tmp_path.parent / f"{tmp_path.name}-outside.png"
    Image.new("RGB", (8, 8)).save(outside)
    os.symlink(outside, tmp_path / "link.png")
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    os.mkfifo(tmp_path / "pipe.png")
    more = (
        *(str(tmp_path / name) for name in ("link.png", "text.png", "pipe.png", "missing.png")),
        str(tmp_path),
    )
    async with connect(app) as client:
        for tool, arguments in hostile.references(app, more):
            error = told(await client.call_tool(tool, arguments))
            assert error["code"] in REFUSALS, (tool, arguments, error)
        await succeeded(client, "generate_image", prompt="still here", **SMALL)
    assert app.store.usage().images == 1


async def test_prefix_of_two_images_is_refused_and_names_them(
    app: App, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [app.store.put(Image.new("RGB", (8, 8), (n, 0, 0))) for n in range(17)]
    first = Counter(picture.id.hex[0] for picture in pictures).most_common(1)[0][0]
    matching = search.images_with_prefix
    # Two ids with the same 8 digits are hard to come by: one digit stands for them.
    monkeypatch.setattr(
        "storage.index.search.images_with_prefix",
        lambda db, digits, *more: matching(db, digits.replace("c" * 8, first), *more),
    )
    async with connect(app) as client:
        error = told(await client.call_tool("view_image", {"image": "sha256:" + "c" * 8}))
    assert error["code"] == "invalid_argument"
    assert sum(str(picture.id) in error["message"] for picture in pictures) == 2
