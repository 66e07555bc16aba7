"""Images over HTTP: brought as files, read whole, in part and smaller."""

import io
from typing import Any

import anyio
import httpx
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from server.app import App
from server.http.images import MAX_WIDTH
from server.renditions import Renditions
from storage import Digest, StoreView
from tests.server.surfaces.test_http import ANN, TOKENS, rest

pytestmark = pytest.mark.anyio
UPLOADS = "/v1/images"


def picture(size: tuple[int, int] = (640, 320), mode: str = "RGB") -> Image.Image:
    return Image.linear_gradient("L").resize(size).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


@pytest.fixture
def path(app: App) -> str:
    """The path of a stored image."""
    return f"/images/{app.store.put(picture()).id.hex}"


async def test_a_file_is_taken_in_a_form_or_as_the_body_as_the_tool_takes_it(app: App) -> None:
    png, jpeg = encoded(picture()), encoded(picture(), "JPEG")
    async with rest(app) as client:
        form = await client.post(
            UPLOADS, files={"file": ("my cat.png", png, "image/png")}, data={"label": "cat"}
        )
        made = form.json()
        assert (form.status_code, made["label"], made["image"]["width"]) == (200, "cat", 640)
        record = app.store.origin(made["image"]["id"]).record
        assert record and "my%20cat.png" in str(record.parameters["source"])
        assert (await client.get(made["image"]["url"])).status_code == 200
        for body, kind in ((jpeg, "image/jpeg"), (png, "application/octet-stream")):
            headers = {"Content-Type": kind}
            raw = await client.post(f"{UPLOADS}?label=raw", content=body, headers=headers)
            assert (raw.status_code, raw.json()["label"]) == (200, "raw")
        as_tool = await client.post("/v1/tools/import_image", json={"image": made["image"]["id"]})
        assert as_tool.json().keys() == made.keys()
        document = (await client.get("/openapi.json")).json()
        answered = document["paths"][UPLOADS]["post"]["responses"]["200"]["content"]["application/json"][
            "schema"
        ]
        Draft202012Validator(answered).validate(made)


async def test_what_is_no_file_is_refused_in_words(app: App) -> None:
    png = encoded(picture())
    two = [("file", ("a.png", png)), ("file", ("b.png", png))]
    form = {"Content-Type": "multipart/form-data"}
    cases: list[tuple[dict[str, Any], int, str]] = [
        ({"files": two}, 400, "many files"),
        ({"files": {"file": ("a.txt", b"words")}}, 422, "image"),
        ({"files": {"file": ("a.png", b"")}}, 422, "empty"),
        ({"files": {"file": ("a.png", png)}, "data": {"title": "x"}}, 400, "title"),
        ({"files": {"label": (None, "cat")}}, 400, "image"),
        ({"content": b"--x", "headers": form}, 400, "boundary"),
        ({"content": b"", "headers": {"Content-Type": "image/png"}}, 422, "empty"),
        ({"content": png, "headers": {"Content-Type": "text/plain"}}, 415, "image/*"),
        ({"data": {"label": "cat"}}, 415, "image/*"),
        (
            {"content": png, "headers": {"Content-Type": "image/png", "Origin": "https://evil.example"}},
            403,
            "origin",
        ),
        ({"files": {"f": ("a.png", png)}, "headers": {"Origin": "https://evil.example"}}, 403, "origin"),
    ]
    async with rest(app) as client:
        for sent, status, word in cases:
            answer = await client.post(UPLOADS, **sent)
            assert answer.status_code == status, (answer.text, word)
            assert word in str(answer.json()["error"]), answer.text
        assert app.store.usage().images == 0


async def test_a_body_of_any_bytes_is_not_taken_for_json(app: App) -> None:
    noisy = encoded(Image.effect_noise((400, 400), 90)) + b"," * 50_000
    async with rest(app) as client:
        answer = await client.post(UPLOADS, content=noisy, headers={"Content-Type": "image/png"})
        assert answer.status_code == 200 and "50,000 bytes" in str(answer.json()["notes"])


async def test_a_short_id_is_enough_and_says_that_it_may_change(app: App, path: str) -> None:
    async with rest(app) as client:
        full = await client.get(path)
        for name in (path[:16], f"/images/sha256:{path[8:20]}", path.upper().replace("IMAGES", "images")):
            short = await client.get(name)
            assert (short.status_code, short.headers["etag"]) == (200, full.headers["etag"])
        assert (await client.get(path[:16])).headers["cache-control"] == "private, no-cache"
        assert "immutable" in full.headers["cache-control"]
        assert (await client.get(f"{path[:16]}/preview")).headers["content-type"] == "image/jpeg"
        for name, status in (("/images/00000000", 404), ("/images/1234567", 400), ("/images/xyz", 400)):
            assert (await client.get(name)).status_code == status


async def test_head_tells_what_get_gives(app: App, path: str) -> None:
    async with rest(app) as client:
        for form in ("", "?w=64", "/preview"):
            get, head = await client.get(path + form), await client.head(path + form)
            assert (head.status_code, head.content) == (200, b"")
            for name in ("content-length", "content-type", "etag", "accept-ranges", "cache-control"):
                assert head.headers[name] == get.headers[name]
        assert (await client.head("/images/00000000")).status_code == 404


@pytest.mark.parametrize("form", ["", "?w=64"])
async def test_one_range_is_given_and_what_is_none_is_answered_with_the_whole(
    app: App, path: str, form: str
) -> None:
    async with rest(app) as client:
        full = await client.get(path + form)
        data, size, tag = full.content, len(full.content), full.headers["etag"]

        async def part(text: str, **more: str) -> httpx.Response:
            return await client.get(path + form, headers={"Range": text} | more)

        for text, begin, end in (
            ("0-9", 0, 10),
            ("5-", 5, size),
            ("-7", size - 7, size),
            ("3-99999999", 3, size),
        ):
            for headers in ({}, {"If-Range": tag}):
                answer = await part(f"bytes={text}", **headers)
                assert (answer.status_code, answer.content) == (206, data[begin:end])
                assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{size}"
        for text in (
            "bytes=5-2",
            "bytes=-",
            "bytes=0-1,4-5",
            "lines=0-1",
            "bytes=a-b",
            "bytes=" + "9" * 99 + "-",
        ):
            answer = await part(text)
            assert (answer.status_code, answer.content) == (200, data), text
        assert (await part("bytes=0-9", **{"If-Range": '"other"'})).status_code == 200
        past = await part(f"bytes={size}-")
        assert (past.status_code, past.headers["content-range"]) == (416, f"bytes */{size}")
        assert past.json()["error"]["code"] == "invalid_argument"


async def test_the_tag_saves_the_transfer_in_every_form(app: App, path: str) -> None:
    async with rest(app) as client:
        tags = []
        for form in ("", "?w=64", "?w=65", "/preview"):
            tag = (await client.get(path + form)).headers["etag"]
            tags.append(tag)
            for given in (tag, f'"other", W/{tag}', "*"):
                answer = await client.get(path + form, headers={"If-None-Match": given})
                assert (answer.status_code, answer.content) == (304, b"")
        assert len(set(tags)) == 4


async def test_a_copy_has_the_width_asked_for_and_is_never_enlarged(app: App, path: str) -> None:
    seen = app.store.put(Image.new("RGBA", (300, 601), (255, 0, 0, 90))).id.hex
    async with rest(app) as client:
        for name, width, size, kind in (
            (path, 64, (64, 32), "JPEG"),
            (path, 639, (639, 320), "JPEG"),
            (path, 1, (1, 1), "JPEG"),
            (path, 640, (640, 320), "PNG"),
            (path, MAX_WIDTH, (640, 320), "PNG"),
            (f"/images/{seen}", 100, (100, 200), "WEBP"),
        ):
            answer = await client.get(f"{name}?w={width}")
            with Image.open(io.BytesIO(answer.content)) as copy:
                assert (copy.size, copy.format) == (size, kind)
        for text in ("0", "-1", str(MAX_WIDTH + 1), "64.5", "x", "", "٣"):
            answer = await client.get(path, params={"w": text})
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_argument")


async def test_copies_are_kept_up_to_a_limit(app: App, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    resized = StoreView.resized

    def counted(store: StoreView, ref: Any, width: int) -> tuple[bytes, str]:
        made.append(width)
        return resized(store, ref, width)

    monkeypatch.setattr(StoreView, "resized", counted)
    async with rest(app) as client:
        async with anyio.create_task_group() as group:
            for _ in range(4):
                group.start_soon(client.get, f"{path}?w=64")
        before = len(made)
        await client.get(f"{path}?w=64")
        assert 1 <= len(made) == before
    kept = Renditions(most=10)
    one, two = (Digest.of(name) for name in (b"1", b"2"))
    for image, size in ((one, 6), (two, 6), (two, 6), (one, 6), (one, 11), (two, 3)):
        assert len(kept.get(image, str(size), lambda size=size: (bytes(size), "x"))[0]) == size
        assert kept._bytes == sum(len(copy[0]) for copy in kept._kept.values()) <= 10


async def test_only_who_may_write_brings_pictures_and_a_signed_address_may_not(app: App) -> None:
    async with rest(app, tokens=TOKENS) as client:
        files = {"file": ("a.png", encoded(picture()))}
        assert (await client.post(UPLOADS, files=files)).status_code == 401
        made = (await client.post(UPLOADS, files=files, headers=ANN)).json()
        url = made["image"]["url"]
        assert (await client.get(url, headers={"Range": "bytes=0-3"})).content == b"\x89PNG"
        assert (await client.head(url)).status_code == 200
        seconds = int((await client.get(url)).headers["cache-control"].split("max-age=")[1].split(",")[0])
        assert 7 * 86_400 <= seconds <= 8 * 86_400
        query = url.partition("?")[2]
        assert (await client.post(f"{UPLOADS}?{query}", files=files)).status_code == 401
