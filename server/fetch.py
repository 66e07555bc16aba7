"""Fetch an image from a public https address, and nothing from anywhere else.

A client may name any address, and the server sits where the client does not: so a host is looked up first,
refused if any of its addresses is not public, and connected to by the address that was checked (a second
look-up could answer otherwise). Redirects are followed by the same rules. There are no cookies, no proxies
and no credentials; size and time are bounded.
"""

import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from socket import SOCK_STREAM

import anyio
import httpx2
from anyio import to_thread

from storage.errors import ImageRejected
from tools.base import ToolError
from tools.references import shown

MAX_REDIRECTS = 3
SECONDS = 30.0
"""From the first look-up to the last byte."""

_NAT64 = ip_network("64:ff9b::/96")
_UNICAST_V6 = ip_network("2000::/3")
_SPECIAL = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24",
            "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
            "224.0.0.0/4", "240.0.0.0/4",
            "168.63.129.16/32",  # not in the registry: Azure's own services, on every machine there
            "2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3ffe::/16", "3fff::/20",
        ),
    )
)  # fmt: skip
"""What is not the public internet: the special-purpose registries of IANA (RFC 6890), multicast, reserved
space, and IPv6 that carries an IPv4 address. Python's own tables differ from one version to the next."""
_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "omnigen2-mcp"}


async def look_up(host: str, port: int) -> list[str]:
    """Every address of a host. Raises OSError if it has none."""
    found = await anyio.getaddrinfo(host, port, type=SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


@dataclass(frozen=True)
class Fetcher:
    """Fetches images of up to `max_bytes`. How names are looked up and connections made can be replaced."""

    max_bytes: int
    look_up: Callable[[str, int], Awaitable[Sequence[str]]] = look_up
    transport: httpx2.AsyncBaseTransport | None = None

    async def fetch(self, url: str, field: str) -> bytes:
        """The bytes at `url`.

        Raises:
            ToolError: `forbidden`: not https, or not public. `image_not_found`: it could not be had.
            ImageRejected: it is too large.
        """
        try:
            with anyio.fail_after(SECONDS):
                return await self._follow(httpx2.URL(url), field)
        except TimeoutError:
            raise _absent(url, field, f"it took longer than {SECONDS:.0f} seconds") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError) as error:
            raise _absent(url, field, str(error) or type(error).__name__) from error

    async def _follow(self, url: httpx2.URL, field: str) -> bytes:
        tls = await to_thread.run_sync(ssl.create_default_context)
        for _ in range(MAX_REDIRECTS + 1):
            address = await self._checked_address(url, field)
            # A client of its own for every hop: nothing that one server sets is sent to the next.
            async with httpx2.AsyncClient(
                verify=tls, trust_env=False, timeout=SECONDS, transport=self.transport
            ) as client:
                response = await client.send(_request(client, url, address), stream=True)
                try:
                    if not response.has_redirect_location:
                        return await self._body(response, url, field)
                finally:
                    await response.aclose()
            url = url.join(response.headers["location"])
        raise _absent(str(url), field, f"it redirects more than {MAX_REDIRECTS} times")

    async def _checked_address(self, url: httpx2.URL, field: str) -> str:
        if url.scheme != "https" or not url.host or url.userinfo:
            raise _forbidden(url, field, "only https:// addresses without a user name are fetched")
        addresses = await self.look_up(url.raw_host.decode("ascii"), url.port or 443)
        if not addresses or not all(map(is_public, addresses)):
            raise _forbidden(url, field, "only public addresses are fetched")
        return addresses[0]

    async def _body(self, response: httpx2.Response, url: httpx2.URL, field: str) -> bytes:
        if response.status_code != 200:
            raise _absent(str(url), field, f"the answer was {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            raise _absent(str(url), field, "the answer is compressed, though that was not asked for")
        body = bytearray()
        async for chunk in response.aiter_raw():
            body += chunk
            if len(body) > self.max_bytes:
                raise ImageRejected(
                    f"The image at {url.host[:100]} has more than {self.max_bytes:,} bytes.",
                    "Send a smaller one.",
                )
        return bytes(body)


def is_public(address: str) -> bool:
    """Whether an address belongs to the public internet; of a mapped one, whether the inner one does."""
    ip = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        inner = IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else ip.ipv4_mapped
        if inner is None and ip not in _UNICAST_V6:
            return False
        ip = inner or ip
    return not any(ip in network for network in _SPECIAL)


def _request(client: httpx2.AsyncClient, url: httpx2.URL, address: str) -> httpx2.Request:
    """A request to the checked address that still asks, and verifies the certificate, for the host's name."""
    host = url.raw_host.decode("ascii")
    return client.build_request(
        "GET",
        url.copy_with(host=address, fragment=None),
        headers=_HEADERS | {"Host": url.netloc.decode("ascii")},
        extensions={"sni_hostname": host},
    )


def _forbidden(url: httpx2.URL, field: str, reason: str) -> ToolError:
    return ToolError(
        "forbidden",
        f"{field}: https access to {(url.host or 'no host')[:100]!r} is not allowed: {reason}.",
        "Give the address of a picture on the public internet, or send the picture as a data: URI.",
    )


def _absent(url: str, field: str, reason: str) -> ToolError:
    return ToolError(
        "image_not_found",
        f"{field}: the image at {shown(url)} could not be fetched: {reason[:100]}.",
        "Check the address, or send the picture as a data: URI.",
    )
