"""Two servers on one bucket: one is killed, one is frozen, one is stopped; the other writes, nothing is lost.

    python -m benchmarks.fronts

Two `serve` processes over HTTP with an index each, as on two machines, and an S3 server of this machine
(`moto[server]` and `s3fs` must be installed). A client asks whichever says at /readyz that it is ready, and
asks again when it gets no answer. Prints what each server does when, and in the end compares the bucket with
what was acknowledged. Takes about two minutes.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.patience import PROGRAM

BUCKET = "studio"
TAKEN_S = 30.0
"""Seconds within which another server must write."""
FROZEN_S = 40.0
BUSY = 429
LONG = 150
"""Steps of a picture that is being made when its server is frozen."""


class Front:
    """One server, as on a machine of its own."""

    def __init__(self, name: str, folder: Path, port: int) -> None:
        self.name, self._folder = name, folder / name
        self._folder.mkdir()
        self._port = port
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5)
        self.process: psutil.Popen | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        environment = os.environ | {
            "XDG_DATA_HOME": str(self._folder),
            "OMNIGEN2_STORE": f"s3://{BUCKET}/store",
        }
        command = [PROGRAM, "serve", "--transport", "http", "--port", str(self._port)]
        with (self._folder / "log").open("a") as log:
            self.process = psutil.Popen(command, env=environment, stderr=log)
        until(60, lambda: self.state("/healthz") is not None, f"{self.name} answers")

    def state(self, path: str = "/readyz") -> dict[str, Any] | None:
        """What a probe says; None if there is no answer."""
        with suppress(httpx.HTTPError):
            return self.client.get(path).json()
        return None

    def ready(self) -> bool:
        """Whether it says that it is."""
        return bool((self.state() or {}).get("ready"))

    def make(self, seed: int, wait_s: float = 60) -> httpx.Response:
        """Ask for a picture."""
        asked = {"prompt": "a red circle", "seed": seed}
        return self.client.post("/v1/tools/generate_image", json=asked, timeout=wait_s)

    def listed(self) -> list[str]:
        """The ids of all images that it knows, without their scheme."""
        found = self.client.post("/v1/tools/list_images", json={"limit": 100}).raise_for_status().json()
        return [digits(one["id"]) for one in found["images"]]

    def end(self, how: signal.Signals) -> None:
        """Send a signal that ends it."""
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(15)


def digits(image: str) -> str:
    """The hex digits of an id."""
    return image[-64:]


def until(limit_s: float, holds: Any, what: str) -> float:
    """Wait until something holds; after how many seconds it did.

    Raises:
        SystemExit: it took longer than `limit_s`.
    """
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > limit_s:
            sys.exit(f"not within {limit_s:.0f} s: {what}")
        time.sleep(0.1)
    return time.monotonic() - began


class Client:
    """Asks whichever server is ready, and remembers what was acknowledged."""

    def __init__(self, fronts: list[Front]) -> None:
        self._fronts = fronts
        self.made: dict[int, str] = {}

    def make(self, seed: int) -> bool:
        """Ask the ready one for a picture; whether it was made."""
        for front in self._fronts:
            with suppress(httpx.HTTPError):
                if front.ready() and (answer := front.make(seed)).status_code == 200:
                    self.made[seed] = digits(answer.json()["images"][0]["id"])
                    return True
        return False

    def make_again_until(self, seed: int, limit_s: float) -> float:
        """Ask again and again; seconds until it was made."""
        return until(limit_s, lambda: self.make(seed), f"picture {seed}")

    def check(self, front: Front) -> None:
        """Every acknowledged picture can be read through a server, and is listed once.

        Raises:
            AssertionError: one cannot, or is not.
        """
        known = Counter(front.listed())
        for image in self.made.values():
            assert known[image] == 1, image
            assert front.client.get(f"/images/{image}").status_code == 200, image
        print(f"    {front.name} reads and lists all {len(self.made)} acknowledged pictures", flush=True)


def killed(first: Front, second: Front, client: Client) -> None:
    """The writer is killed while it works; the other one takes over, the killed one comes back."""
    for seed in range(3):
        client.make(seed)
    second.start()
    stands_by = {"store": "standing by", "model": "ok"}
    until(60, lambda: stands_by.items() <= (second.state() or {}).items(), "the second stands by")
    print(f"  {second.name} says {json.dumps(second.state())}")
    refused = second.make(100)
    print(f"    and refuses: {refused.status_code} {refused.text}")
    assert refused.status_code == BUSY
    client.check(second)
    repeated = second.make(1).raise_for_status().json()
    assert repeated["cached"] and digits(repeated["images"][0]["id"]) == client.made[1]
    print("    and answers a repeat from the store")
    with suppress(httpx.HTTPError):  # a picture that is under way
        first.make(3, wait_s=0.15)
    first.end(signal.SIGKILL)
    took = client.make_again_until(3, TAKEN_S)
    print(f"  {first.name} killed; {second.name} made the picture under way {took:.1f} s later", flush=True)
    client.check(second)
    first.start()
    until(60, lambda: stands_by.items() <= (first.state() or {}).items(), "the first stands by")
    print(f"  {first.name} is back and says {json.dumps(first.state())}")


def frozen(writer: Front, other: Front, client: Client) -> None:
    """The writer is frozen in the middle of a picture, for longer than its lease, and wakes up."""
    assert writer.process is not None
    started = writer.client.post(
        "/v1/tools/generate_image",
        json={"prompt": "a blue square", "seed": 7, "steps": LONG, "background": True},
    )
    job = started.raise_for_status().json()["job_id"]
    time.sleep(0.5)
    writer.process.suspend()
    began = time.monotonic()
    client.make_again_until(4, TAKEN_S)
    took = time.monotonic() - began
    print(f"  {writer.name} frozen; {other.name} made a picture {took:.1f} s later", flush=True)
    time.sleep(max(0.0, began + FROZEN_S - time.monotonic()))
    writer.process.resume()
    late = writer.make(101)
    print(f"    awake, {writer.name} refuses: {late.status_code} {late.json()}")
    assert late.status_code == BUSY
    until(60, lambda: job_of(writer, job)["status"] != "running", "the job ends")
    ended = job_of(writer, job)
    print(f"    the picture under way: {ended['status']}, {json.dumps(ended['error'])}")
    assert ended["status"] == "failed"
    client.check(other)


def job_of(front: Front, job: str) -> dict[str, Any]:
    """A job as a server tells it."""
    return front.client.get(f"/v1/jobs/{job}").raise_for_status().json()


def stopped(writer: Front, other: Front, client: Client) -> None:
    """The writer is asked to end."""
    writer.end(signal.SIGTERM)
    took = client.make_again_until(5, TAKEN_S)
    print(f"  {writer.name} stopped; {other.name} made a picture {took:.1f} s later", flush=True)
    client.check(other)


def compare(client: Client) -> None:
    """The bucket against what was acknowledged.

    Raises:
        AssertionError: a picture or a record is missing, or there are two records of one request.
    """
    import s3fs  # pyright: ignore[reportMissingImports]

    files: Any = s3fs.S3FileSystem()
    records = [json.loads(files.cat_file(path)) for path in files.find(f"{BUCKET}/store/records")]
    made = Counter(record["seed"] for record in records if record["tool"] == "generate_image")
    images = {"".join(path.split("/")[-2:]) for path in files.find(f"{BUCKET}/store/blobs")}
    assert made == dict.fromkeys(client.made, 1), made
    assert set(client.made.values()) == images, images
    print(f"  the bucket holds {len(images)} pictures and one record of each, and nothing else")


@contextmanager
def bucket(folder: Path) -> Iterator[None]:
    """An S3 server of this machine, in the environment of everything that is started."""
    port = free_port()
    with (folder / "s3.log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        )
    try:
        os.environ |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "x") | {
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        }
        address = os.environ["AWS_ENDPOINT_URL"]
        until(60, lambda: answers(f"{address}/moto-api/"), "the S3 server answers")
        httpx.put(f"{address}/{BUCKET}").raise_for_status()
        yield
    finally:
        server.terminate()
        server.wait()


def answers(url: str) -> bool:
    """Whether something answers there."""
    with suppress(httpx.HTTPError):
        return httpx.get(url).status_code < 500
    return False


def free_port() -> int:
    """A port of 127.0.0.1 that nothing uses now."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main() -> None:
    """Run all of it; an error where something is not as it should be."""
    if missing := [name for name in ("moto", "s3fs") if find_spec(name) is None]:
        sys.exit(f"install {' and '.join(missing)} first: pip install 'moto[server]' s3fs")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(bucket(folder))
        first, second = (Front(name, folder, free_port()) for name in ("one", "two"))
        client = Client([first, second])
        try:
            first.start()
            until(60, first.ready, "the first is ready")
            killed(first, second, client)
            frozen(second, first, client)
            stopped(first, second, client)
            compare(client)
        finally:
            for front in (first, second):
                if front.process is not None and front.process.is_running():
                    front.process.kill()


if __name__ == "__main__":
    main()
