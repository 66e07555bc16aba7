"""Addresses of images that people open: in every result, signed where there are tokens, and taken back."""

import re
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from PIL import Image
from pydantic import ValidationError

from server import schema
from server.app import App
from server.http.addresses import DAY_S, KEY_BYTES, KEY_FILE, PREVIEW, VALID_DAYS, Addresses, signing_key
from server.settings import Settings
from tests.server.core.conftest import HeldEngine
from tests.server.surfaces.conftest import SMALL
from tests.server.surfaces.test_http import ANN, GENERATE, TOKENS, rest, served
from tools.results import ImageInfo

pytestmark = pytest.mark.anyio
HEX = "0123456789abcdef" * 4
KEY = bytes(KEY_BYTES)


@pytest.fixture
def stored(app: App) -> str:
    return str(app.store.put(Image.new("RGB", (40, 20), "red")).id)


async def test_without_tokens_a_result_has_the_plain_address_as_the_client_reached_us(app: App) -> None:
    async with rest(app) as client:
        for host in (None, "localhost:4242"):
            headers = {"Host": host} if host else {}
            made = (
                await client.post(GENERATE, json={"prompt": "x", "seed": 1, **SMALL}, headers=headers)
            ).json()
            (image,) = made["images"]
            base = f"http://{host}" if host else str(client.base_url)
            assert image["url"] == f"{base}/images/{image['id'].removeprefix('sha256:')}"
        assert (await client.get(f"/images/{image['id'][7:]}")).status_code == 200


async def test_a_proxy_on_this_machine_says_https_and_the_setting_beats_what_a_client_says(
    make_app: Callable[..., App], engine: HeldEngine, app: App, stored: str
) -> None:
    view = "/v1/tools/view_image"
    async with rest(app, tokens=TOKENS, headers=ANN) as client:
        headers = {"Host": "gpu.example", "X-Forwarded-Proto": "https"}
        seen = (await client.post(view, json={"image": stored}, headers=headers)).json()
        assert seen["image"]["url"].startswith("https://gpu.example/images/")
        odd = (await client.post(view, json={"image": stored}, headers={"Host": "a/b?c"})).json()
        assert odd["image"]["url"].startswith(f"http://127.0.0.1:{client.base_url.port}/images/")
    app = make_app(lambda: engine, public_url="https://studio.example/art/")
    async with rest(app) as client:
        seen = (await client.post(view, json={"image": stored})).json()
        assert seen["image"]["url"] == f"https://studio.example/art/images/{stored[7:]}"
        again = await client.post(view, json={"image": seen["image"]["url"]})
        assert again.json()["image"]["id"] == stored


async def test_a_signed_address_opens_one_picture_in_one_form_and_nothing_else(app: App, stored: str) -> None:
    other = str(app.store.put(Image.new("RGB", (40, 20), "blue")).id)
    async with rest(app, tokens=TOKENS) as client:
        seen = (await client.post("/v1/tools/view_image", json={"image": stored}, headers=ANN)).json()
        url = seen["image"]["url"]
        assert (await client.get(url)).headers["content-type"] == "image/png"
        wrong = (
            url.replace(stored[7:], other[7:]),
            url.replace("?", "/preview?"),
            f"{url}&w=20",
            re.sub("expires=([0-9]+)", "expires=9\\1", url),
            re.sub("expires=[0-9]+&", "", url),
            url.replace("sig=", "sig=A"),
            re.sub("sig=.*", "sig=", url),
            re.sub("sig=.*", "sig=%C3%A9", url),
            url.replace(stored[7:], stored[7:23]),
        )
        for address in wrong:
            answer = await client.get(address)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "forbidden"), address
            assert (await client.get(address, headers=ANN)).status_code in (200, 404)
        query = url.partition("?")[2]
        assert (await client.get(f"/images/{stored[7:]}")).status_code == 401
        for method, path in (("GET", "/openapi.json"), ("POST", GENERATE), ("POST", f"/images/{stored[7:]}")):
            answer = await client.request(method, f"{path}?{query}", json={})
            assert answer.status_code == 401


async def test_over_mcp_links_and_words_carry_the_address_and_it_can_be_read_and_edited(app: App) -> None:
    async with (
        served(app, TOKENS) as url,
        httpx2.AsyncClient(headers=ANN) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
        httpx.AsyncClient() as browser,
    ):
        made = await client.call_tool("generate_image", {"prompt": "a red  circle", "seed": 7, **SMALL})
        (link,) = (block for block in made.content if block.type == "resource_link")
        assert made.content[0].text.endswith(f"For the user to open: {link.uri}")
        assert link.uri == made.structured_content["images"][0]["url"]
        assert link.annotations and link.annotations.audience == ["user"]
        assert (link.title, link.description) == ("a red circle", "generate_image, 32 x 32, seed 7")
        opened = await browser.get(link.uri)
        assert opened.content.startswith(b"\x89PNG")
        assert (await client.read_resource(link.uri)).contents
        edited = await client.call_tool("edit_image", {"image": link.uri, "instruction": "y", **SMALL})
        assert not edited.is_error, edited.content
        listed = (await client.list_resources()).resources
        assert [one.title for one in listed] == ["y", "a red circle"]
        for tool, arguments in (("list_images", {}), ("image_history", {"image": link.uri})):
            answer = await client.call_tool(tool, arguments)
            assert {block.type for block in answer.content} == {"text"}
        assert all(image["url"] for image in answer.structured_content["steps"][0].values() if "url" in image)


async def test_every_way_to_write_our_own_address_is_taken_and_no_other_server_s(
    app: App, stored: str
) -> None:
    async with rest(app) as client:

        async def import_(reference: str) -> httpx.Response:
            return await client.post("/v1/tools/import_image", json={"image": reference})

        digits, port = stored[7:], client.base_url.port
        for reference in (
            f"http://127.0.0.1:{port}/images/{digits}",
            f"http://LOCALHOST:{port}/images/{digits[:12]}?w=64#x",
            f"<https://localhost:{port}/images/sha256:{digits}/preview>",
            f"/images/{digits}",
        ):
            answer = await import_(reference)
            assert answer.json()["image"]["id"] == stored, answer.text
        assert app.store.origin(stored).record is None  # it did not come from anywhere
        for reference in (
            f"http://127.0.0.1:{port + 1}/images/{digits}",
            f"https://elsewhere.example/images/{digits}",
            f"http://localhost:{port}/other/{digits}",
        ):
            assert (await import_(reference)).status_code in (400, 403)
        assert (await import_(f"http://localhost:{port}/images/{'0' * 64}")).status_code == 404


async def test_an_address_expires_and_is_the_same_all_day(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 20_000 * DAY_S + 5.0
    monkeypatch.setattr(time, "time", lambda: now)
    addresses = Addresses(None, KEY)
    url = addresses.url("", HEX)
    now += DAY_S - 10
    assert addresses.url("", HEX) == url
    expires = int(re.search("expires=([0-9]+)", url)[1])  # type: ignore[index]
    assert expires - now > VALID_DAYS * DAY_S
    assert addresses.url("", HEX, PREVIEW).startswith(f"/images/{HEX}/preview?")
    assert addresses.url("", HEX, "w=64").startswith(f"/images/{HEX}?w=64&")
    assert len({addresses.url("", HEX, form)[-22:] for form in ("", PREVIEW, "w=64", "w=65")}) == 4
    assert Addresses(None, b"other" + KEY).url("", HEX) != url


async def test_an_expired_address_is_refused(app: App, stored: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = Addresses(None, signing_key(app.store.path)).url("", stored)
    async with rest(app, tokens=TOKENS) as client:
        answer = await client.get(url)
        assert answer.status_code == 200
        later = time.time() + (VALID_DAYS + 1) * DAY_S
        monkeypatch.setattr("server.http.addresses.time.time", lambda: later)
        answer = await client.get(url)
    assert answer.status_code == 403 and "expired" in answer.json()["error"]["message"]


def test_the_key_is_made_once_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    key = signing_key(tmp_path)
    assert len(key) == KEY_BYTES and signing_key(tmp_path) == key
    assert [path.name for path in tmp_path.iterdir()] == [KEY_FILE]
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    (tmp_path / KEY_FILE).write_bytes(b"short")
    assert (
        len({signing_key(tmp_path), signing_key(tmp_path), signing_key(tmp_path / "no"), signing_key(None)})
        == 4
    )


def test_only_images_get_an_address(app: App, stored: str) -> None:
    class Odd(ImageInfo):
        more: dict[str, Any]

    odd = Odd.of(app.store.get(stored), more={"id": stored, "uri": "image://sha256/0"})
    dumped = schema._addressed(odd.model_dump(), lambda image: image)
    assert dumped["url"] == stored and "url" not in dumped["more"]


@pytest.mark.parametrize("url", ["studio.example", "ftp://x", "https://", "https://x/?q=1"])
def test_a_public_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="https://studio"):
        Settings(public_url=url)
