"""A Hugging Face Hub on loopback: one repository, its metadata, its files by range, and ways to fail."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "c0ffee" + "0" * 34


class Hub:
    """What the server serves and what it was asked; `damaged` names a file whose bytes arrive wrong."""

    def __init__(self, repo_id: str, files: dict[str, bytes], commit: str = COMMIT):
        self.repo_id = repo_id
        self.files = files
        self.commit = commit
        self.damaged: str | None = None
        self.requests: list[tuple[str, str | None]] = []  # file name, Range header

    def info(self) -> dict:
        """The answer of the model endpoint: large files by SHA-256, small ones by git's id only."""
        siblings = []
        for name, content in self.files.items():
            entry = {"rfilename": name, "size": len(content)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()
            if name.endswith(".safetensors"):
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 130}
            siblings.append(entry)
        return {"id": self.repo_id, "sha": self.commit, "siblings": siblings}

    def content(self, name: str) -> bytes:
        """The bytes that go over the wire."""
        content = self.files[name]
        return content[:-1] + bytes([content[-1] ^ 1]) if name == self.damaged else content


def use_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """What HF_ENDPOINT sets when the library is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    )


@contextmanager
def serve(hub: Hub) -> Iterator[str]:
    """The endpoint of a running `hub`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            base = f"/{hub.repo_id}/resolve/{hub.commit}/"
            if path in (f"/api/models/{hub.repo_id}", f"/api/models/{hub.repo_id}/revision/main"):
                self._answer(200, json.dumps(hub.info()).encode())
            elif path.startswith(base) and path.removeprefix(base) in hub.files:
                self._file(path.removeprefix(base))
            else:
                known = hub.repo_id in path
                self._answer(404, b"{}", {"X-Error-Code": "RevisionNotFound" if known else "RepoNotFound"})

        def _file(self, name: str) -> None:
            asked = self.headers.get("Range")
            hub.requests.append((name, asked))
            content = hub.content(name)
            if not asked:
                return self._answer(200, content)
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            return self._answer(206, content[start:], {"Content-Range": span})

        def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
