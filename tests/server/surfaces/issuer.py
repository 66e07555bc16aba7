"""An authorization server on this machine: its metadata, its keys, and the tokens that it issues."""

import json
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

AUDIENCE = "https://studio.example/mcp"


@cache
def private_key(_: str) -> rsa.RSAPrivateKey:
    """The key of that name; making one takes a while."""
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


class Issuer:
    """The issuer at `url`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys: dict[str, rsa.RSAPrivateKey] = {}
        self.asked: list[str] = []
        """Paths of the requests it had."""
        self.works = True
        self.turn_over("first")

    def turn_over(self, name: str) -> None:
        """Sign with a new key from now on."""
        self.keys = {name: private_key(name)}

    @property
    def public_pem(self) -> bytes:
        (key,) = self.keys.values()
        return key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def token(self, *, key: Any = None, algorithm: str = "RS256", headers: Any = None, **claims: Any) -> str:
        """A right token, but for what is given; a claim that is None is left out."""
        ((name, own),) = self.keys.items()
        whole = {
            "iss": self.url,
            "sub": "ann",
            "aud": AUDIENCE,
            "exp": time.time() + 600,
            "scope": "studio:read studio:write",
            **claims,
        }
        kept = {claim: value for claim, value in whole.items() if value is not None}
        return jwt.encode(kept, key or own, algorithm, {"kid": name} | (headers or {}))

    def answer(self, path: str) -> object:
        """What is at a path; None if nothing is."""
        if path.startswith("/.well-known/oauth-authorization-server"):
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        if path == "/keys":
            made = [(name, key.public_key()) for name, key in self.keys.items()]
            return {
                "keys": [
                    jwt.algorithms.RSAAlgorithm.to_jwk(key, as_dict=True) | {"kid": name}
                    for name, key in made
                ]
            }
        return None


@contextmanager
def issuing() -> Generator[Issuer]:
    """An issuer that is served on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            issuer.asked.append(self.path)
            found = issuer.answer(self.path) if issuer.works else None
            body = json.dumps(found).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer = Issuer(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()
