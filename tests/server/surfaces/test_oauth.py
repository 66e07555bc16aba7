"""Access tokens of an authorization server: which are accepted, what they allow, how often it is asked."""

import base64
import hashlib
import hmac
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import httpx
import httpx2
import jwt
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from pydantic import ValidationError
from starlette.requests import Request

from server import log
from server.app import App
from server.caller import READ, SCOPES
from server.http import access_tokens
from server.http.access_tokens import AccessTokens
from server.http.auth import Identity
from server.settings import Settings
from tests.server.core.conftest import HeldEngine
from tests.server.surfaces.conftest import SMALL
from tests.server.surfaces.issuer import AUDIENCE, Issuer, issuing, private_key
from tests.server.surfaces.test_http import ANN, GENERATE, TOKENS, rest, served

pytestmark = pytest.mark.anyio
METADATA = "https://studio.example/.well-known/oauth-protected-resource/mcp"


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with issuing() as issuer:
        yield issuer


@pytest.fixture
def verifier(issuer: Issuer) -> AccessTokens:
    return AccessTokens(issuer.url, AUDIENCE)


@pytest.fixture
def oauth_app(make_app: Callable[..., App], engine: HeldEngine, issuer: Issuer) -> App:
    return make_app(lambda: engine, oauth_issuer=issuer.url, oauth_audience=AUDIENCE)


async def identify(verifier: AccessTokens, token: str) -> Identity | None:
    headers = [(b"authorization", f"Bearer {token}".encode())]
    return await verifier.identify(Request({"type": "http", "headers": headers}))


def by_hand(header: dict[str, Any], claims: dict[str, Any], secret: bytes = b"") -> str:
    """A token that no library would make."""

    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).rstrip(b"=").decode()

    signed = f"{part(json.dumps(header).encode())}.{part(json.dumps(claims).encode())}"
    return f"{signed}.{part(hmac.digest(secret, signed.encode(), hashlib.sha256)) if secret else ''}"


async def test_a_right_token_names_issuer_and_subject(verifier: AccessTokens, issuer: Issuer) -> None:
    ann = Identity(f"{issuer.url}#ann", SCOPES)
    assert await identify(verifier, issuer.token()) == ann
    assert await identify(verifier, issuer.token(aud=[AUDIENCE, "https://other.example"])) == ann
    assert await identify(verifier, issuer.token(exp=time.time() - 10)) == ann  # clocks differ a little
    read = Identity(f"{issuer.url}#ann", frozenset({READ}))
    for scopes in ({"scope": "openid studio:read"}, {"scope": None, "scp": ["studio:read", "x"]}):
        assert await identify(verifier, issuer.token(**scopes)) == read
    assert await identify(verifier, issuer.token(scope=None)) == Identity(f"{issuer.url}#ann", frozenset())


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": 1},
        {"exp": None},
        {"nbf": 9_999_999_999},
        {"iat": 9_999_999_999},
        {"aud": "https://other.example/mcp"},
        {"aud": None},
        {"iss": "https://evil.example"},
        {"iss": None},
        {"sub": None},
        {"sub": ""},
        {"sub": "a\nb"},
        {"sub": "a" * 256},
        {"headers": {"kid": "unknown"}},
        {"headers": {"crit": ["x"]}},
        {"headers": {"alg": "RS512"}},
        {"key": private_key("foreign")},
        {"key": "a secret of more than thirty-two bytes", "algorithm": "HS256"},
    ],
)
async def test_a_wrong_token_is_nobodys(
    verifier: AccessTokens, issuer: Issuer, claims: dict[str, Any]
) -> None:
    assert await identify(verifier, issuer.token(**claims)) is None


async def test_no_signature_and_the_public_key_as_a_secret_prove_nothing(
    verifier: AccessTokens, issuer: Issuer
) -> None:
    good = jwt.decode(issuer.token(), options={"verify_signature": False})
    assert await identify(verifier, by_hand({"alg": "none", "kid": "first"}, good)) is None
    pem = issuer.public_pem
    assert await identify(verifier, by_hand({"alg": "HS256", "kid": "first"}, good, pem)) is None
    for text in ("", "a.b", "a.b.c", "..", "é.é.é", "a." * 9000, issuer.token()[:-8] + "AAAAAAAA"):
        assert await identify(verifier, text) is None


async def test_a_new_key_is_fetched_but_the_issuer_is_asked_rarely(
    verifier: AccessTokens, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(identify, verifier, issuer.token())
    assert issuer.asked == ["/.well-known/oauth-authorization-server", "/keys"]
    old = issuer.token()
    issuer.turn_over("second")
    for number in range(20):
        await identify(verifier, issuer.token(headers={"kid": str(number)}))
    assert await identify(verifier, issuer.token()) is None and len(issuer.asked) == 2
    monkeypatch.setattr(access_tokens, "PAUSE_S", 0)
    assert await identify(verifier, issuer.token()) is not None and issuer.asked[2:] == ["/keys"]
    assert await identify(verifier, old) is None


async def test_keys_outlast_an_issuer_that_is_away(
    verifier: AccessTokens, issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await identify(verifier, issuer.token()) is not None
    issuer.works = False
    monkeypatch.setattr(access_tokens, "PAUSE_S", 0)
    monkeypatch.setattr(access_tokens, "FRESH_S", 0)
    assert await identify(verifier, issuer.token()) is not None and len(issuer.asked) > 2
    monkeypatch.setattr(access_tokens, "LATEST_S", 0)
    assert await identify(verifier, issuer.token()) is None


async def test_an_issuer_cannot_send_the_server_elsewhere(
    issuer: Issuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(path: str) -> object:
        return {"issuer": issuer.url, "jwks_uri": "http://169.254.169.254/keys"} | (
            {"issuer": "https://evil.example", "jwks_uri": f"{issuer.url}/keys"} if "openid" in path else {}
        )

    monkeypatch.setattr(issuer, "answer", answer)
    assert await identify(AccessTokens(issuer.url, AUDIENCE), issuer.token()) is None
    assert "/keys" not in issuer.asked and len(issuer.asked) == 2


async def test_refusals_lead_to_the_issuer(oauth_app: App, issuer: Issuer) -> None:
    async with rest(oauth_app, tokens=TOKENS) as client:
        for url in ("/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"):
            metadata = (await client.get(url)).json()
            assert metadata["resource"] == AUDIENCE
            assert metadata["authorization_servers"] == [issuer.url]
            assert metadata["scopes_supported"] == ["studio:read", "studio:write"]
        answer = await client.post("/mcp", json={})
        assert answer.status_code == 401
        assert f'resource_metadata="{METADATA}"' in answer.headers["www-authenticate"]
        expired = {"Authorization": f"Bearer {issuer.token(exp=1)}"}
        answer = await client.post("/mcp", json={}, headers=expired)
        assert answer.status_code == 401 and 'error="invalid_token"' in answer.headers["www-authenticate"]
        paths = (await client.get("/openapi.json", headers=ANN)).json()["paths"]
        assert "/.well-known/oauth-protected-resource/mcp" in paths


async def test_scopes_hold_over_rest_and_mcp(oauth_app: App, issuer: Issuer) -> None:
    reader = {"Authorization": f"Bearer {issuer.token(scope='studio:read')}"}
    stranger = {"Authorization": f"Bearer {issuer.token(scope='mail')}"}
    call = {"prompt": "x", **SMALL}
    async with served(oauth_app) as url:
        async with httpx.AsyncClient(base_url=url) as client:
            for tool, headers, needed in (
                ("list_images", stranger, "studio:read"),
                ("generate_image", reader, "studio:write"),
            ):
                answer = await client.post(f"/v1/tools/{tool}", json=call, headers=headers)
                assert answer.status_code == 403
                assert 'error="insufficient_scope"' in answer.headers["www-authenticate"]
                assert f'scope="{needed}"' in answer.headers["www-authenticate"]
            assert (await client.post("/v1/tools/list_images", json={}, headers=reader)).status_code == 200
        async with httpx2.AsyncClient(headers=reader) as http:
            async with Client(streamable_http_client(f"{url}/mcp", http_client=http)) as agent:
                assert not (await agent.call_tool("list_images", {})).is_error
                refused = await agent.call_tool("generate_image", call)
        assert refused.is_error and "needs the scope studio:write" in refused.content[0].text


async def test_a_subject_is_not_the_token_of_that_name(oauth_app: App, issuer: Issuer) -> None:
    jwt_ann = {"Authorization": f"Bearer {issuer.token(sub='ann')}"}
    async with rest(oauth_app, tokens=TOKENS) as client:
        body = {"prompt": "x", "background": True, **SMALL}
        job = (await client.post(GENERATE, json=body, headers=ANN)).json()["job_id"]
        asked = {"job_id": job, "wait_seconds": 50}
        assert (await client.post("/v1/tools/get_job", json=asked, headers=jwt_ann)).status_code == 400
        assert (await client.post("/v1/tools/get_job", json=asked, headers=ANN)).status_code == 200


async def test_no_level_of_logging_shows_an_access_token(
    oauth_app: App, issuer: Issuer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log.configure("debug")
    tokens = [issuer.token(), issuer.token(exp=1), issuer.token(sub="a\nb")]
    async with rest(oauth_app) as client:
        for token in tokens:
            await client.get("/openapi.json", headers={"Authorization": f"Bearer {token}"})
    shown = capsys.readouterr().err
    assert "ExpiredSignatureError" in shown
    assert not any(part in shown for token in tokens for part in token.split(".")[1:])


@pytest.mark.parametrize(
    "wrong",
    [
        {"oauth_issuer": "https://issuer.example"},
        {"oauth_audience": AUDIENCE},
        {"oauth_issuer": "http://issuer.example", "oauth_audience": AUDIENCE},
        {"oauth_issuer": "https://issuer.example#x", "oauth_audience": AUDIENCE},
        {"oauth_issuer": "https://issuer.example", "oauth_audience": "studio"},
        {"oauth_issuer": "https://issuer.example", "oauth_audience": AUDIENCE, "oauth_jwks": "file:///keys"},
    ],
)
def test_settings_that_protect_nothing_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Settings(**wrong)  # type: ignore[arg-type]
