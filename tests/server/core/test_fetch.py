"""Fetching: only https, only public addresses, at every hop; bounded in size; nothing leaks along."""

from collections.abc import AsyncGenerator, Callable

import httpx2
import pytest

from server.fetch import Fetcher, is_public
from storage.errors import ImageRejected
from tools.base import ToolError

pytestmark = pytest.mark.anyio
Answer = Callable[[httpx2.Request], httpx2.Response]
PUBLIC = "93.184.215.14"


class Web:
    """Names and servers as a test has them."""

    def __init__(self, **names: list[str]) -> None:
        self.names = {"example.com": [PUBLIC]} | names
        self.asked: list[httpx2.Request] = []

    def fetcher(self, answer: Answer, max_bytes: int = 100) -> Fetcher:
        async def look_up(host: str, port: int) -> list[str]:
            return self.names[host]

        def note(request: httpx2.Request) -> httpx2.Response:
            self.asked.append(request)
            return answer(request)

        return Fetcher(max_bytes, look_up, httpx2.MockTransport(note))


async def streamed(body: bytes) -> AsyncGenerator[bytes]:
    yield body


async def refused(fetcher: Fetcher, url: str) -> ToolError:
    with pytest.raises(ToolError) as error:
        await fetcher.fetch(url, "image")
    return error.value


async def test_the_address_that_was_checked_is_the_one_that_is_connected_to() -> None:
    web = Web()
    body = await web.fetcher(lambda _: httpx2.Response(200, content=streamed(b"pixels"))).fetch(
        "https://example.com/a.png?b=1#c", "image"
    )
    (request,) = web.asked
    assert body == b"pixels"
    assert request.url == f"https://{PUBLIC}/a.png?b=1"
    assert request.headers["host"] == "example.com"
    assert request.extensions["sni_hostname"] == "example.com"
    assert "cookie" not in request.headers and "authorization" not in request.headers


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
        "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1", "ff02::1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "2001:db8::1",
        # what some versions of Python take for public, and the ends of every block
        "192.0.0.0", "192.0.0.9", "192.0.0.192", "192.0.0.255", "192.88.99.1", "192.31.196.1",
        "192.52.193.1", "192.175.48.1", "0.255.255.255", "10.255.255.255", "100.100.100.200",
        "100.127.255.255", "127.255.255.255", "169.254.0.0", "172.31.255.255", "192.0.2.1", "198.18.0.0",
        "198.19.255.255", "198.51.100.7", "203.0.113.9", "239.255.255.255", "240.0.0.1", "168.63.129.16",
        "fec0::1", "3fff::1", "3fff:fff:ffff::1", "3ffe::1", "5f00::1", "64:ff9b:1::1", "64:ff9b::c000:c0",
        "100::1", "100:0:0:1::1", "2001::1", "2001:1ff:ffff::1", "2001:2::1", "2001:10::1", "2001:20::1",
        "2002:808:808::1", "2620:4f:8000::1", "::7f00:1", "::808:808", "::ffff:0:808:808", "fdff::1",
        "febf::1", "4000::1", "1fff::1", "ff0e::1", "::ffff:192.0.0.192", "2001:0:808:808::1",
    ],
)  # fmt: skip
async def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not is_public(address)
    web = Web(inside=[PUBLIC, address])
    assert (await refused(web.fetcher(lambda _: httpx2.Response(200)), "https://inside/")).code == "forbidden"
    assert web.asked == []


@pytest.mark.parametrize(
    "address",
    [
        PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "1.0.0.0",
        "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255", "128.0.0.0",
        "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "191.255.255.255", "192.0.1.0",
        "192.0.3.0", "192.88.98.255", "192.88.100.0", "192.167.255.255", "192.169.0.0", "198.17.255.255",
        "198.20.0.0", "198.51.99.255", "198.51.101.0", "203.0.112.255", "203.0.114.0", "223.255.255.255",
        "168.63.129.15", "2001:200::1", "2001:4860:4860::8888", "2001:db7:ffff::1", "2001:db9::1",
        "2003::1", "2a00:1450::1",
    ],
)  # fmt: skip
async def test_a_public_address_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("url", ["http://example.com/", "https://ann:pw@example.com/", "file:///etc/passwd"])
async def test_other_schemes_and_credentials_are_refused(url: str) -> None:
    web = Web()
    assert (await refused(web.fetcher(lambda _: httpx2.Response(200)), url)).code == "forbidden"
    assert web.asked == []


@pytest.mark.parametrize(
    "target", ["http://example.com/", "https://inside/", "https://127.0.0.1/", "file:///x"]
)
async def test_a_redirect_is_judged_like_the_first_address(target: str) -> None:
    web = Web(inside=["10.0.0.1"])
    web.names["127.0.0.1"] = ["127.0.0.1"]
    fetcher = web.fetcher(lambda _: httpx2.Response(302, headers={"location": target}))
    assert (await refused(fetcher, "https://example.com/")).code == "forbidden"
    assert len(web.asked) == 1


async def test_redirects_are_followed_without_cookies_and_not_for_ever() -> None:
    web = Web()

    def turn(request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/end":
            return httpx2.Response(200, content=streamed(b"pixels"))
        return httpx2.Response(302, headers={"location": "/end", "set-cookie": "a=b"})

    assert await web.fetcher(turn).fetch("https://example.com/", "image") == b"pixels"
    assert all("cookie" not in request.headers for request in web.asked)
    loop = web.fetcher(lambda _: httpx2.Response(302, headers={"location": "/"}))
    assert "redirects more than" in str(await refused(loop, "https://example.com/"))


async def test_a_body_beyond_the_limit_is_not_read_to_its_end() -> None:
    sent = 0

    async def endless() -> AsyncGenerator[bytes]:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 40

    fetcher = Web().fetcher(lambda _: httpx2.Response(200, content=endless()))
    with pytest.raises(ImageRejected, match="more than 100 bytes"):
        await fetcher.fetch("https://example.com/", "image")
    assert sent == 3


async def test_a_compressed_body_is_refused_before_it_unfolds() -> None:
    fetcher = Web().fetcher(lambda _: httpx2.Response(200, headers={"content-encoding": "gzip"}, content=b""))
    assert (await refused(fetcher, "https://example.com/")).code == "image_not_found"


async def test_failures_say_what_happened() -> None:
    def fail(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("no route")

    assert "no route" in str(await refused(Web().fetcher(fail), "https://example.com/"))
    missing = Web().fetcher(lambda _: httpx2.Response(404))
    assert "the answer was 404" in str(await refused(missing, "https://example.com/"))
