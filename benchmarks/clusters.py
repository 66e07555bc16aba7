"""Servers as processes on a Ray cluster that is already there: restarts, other versions, unloading, adapters.

    python -m benchmarks.clusters restarts
    python -m benchmarks.clusters scaling [--requests 24]
    python -m benchmarks.clusters adapters

Each starts `ray start --head` on a loopback address with token authentication, and `omnigen2-mcp serve --ray`
with nano. `restarts`: a server that is killed (SIGKILL, SIGTERM) while it works and started again finds its
replicas with the model loaded (the same processes), and its jobs `interrupted`; a server of another version
is refused with what differs; one that unloads the model leaves the replicas to the others, and the last one
ends them. `scaling`: from one replica to two and back by waiting work. `adapters`: replicas on a machine that
lacks the adapters of the server's (their folder is hidden by a mount namespace, which needs root).
"""

import argparse
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from safetensors.numpy import save_file

from storage import ImageStore

HOST = "127.0.0.2"  # at 127.0.0.1 Ray binds to the address of the machine
PORT = 7379
COMMAND = [str(Path(sys.executable).with_name("omnigen2-mcp"))]
OLDER = """
import importlib.metadata as metadata, sys
real = metadata.version
metadata.version = lambda name: "0.0.9" if name == "omnigen2-mcp" else real(name)
from omnigen2.start import main
sys.argv[0] = "omnigen2-mcp"
main()
"""
"""A server of another version."""
SMALL = {"width": 96, "height": 96}


@contextmanager
def head(folder: Path, *options: str) -> Generator[str]:
    """A cluster of one machine with token authentication; its address."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "OMP_NUM_THREADS": "1",
    }
    address = f"{HOST}:{PORT}"
    where = [f"--node-ip-address={HOST}", f"--port={PORT}", f"--temp-dir={folder / 'ray'}"]
    with ray_start("--head", *where, "--include-dashboard=false", *options):
        until(lambda: "1 machines" in doctor(address), 120)
        yield address


@contextmanager
def ray_start(*options: str, before: tuple[str, ...] = ()) -> Generator[None]:
    """`ray start` with these options, ended afterwards."""
    program = str(Path(sys.executable).with_name("ray"))
    command = [*before, program, "start", "--block", *options]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        try:
            yield
        finally:
            for own in [process_of := psutil.Process(process.pid), *process_of.children(recursive=True)]:
                with suppress(psutil.Error):
                    own.kill()


class Front:
    """A server as a process."""

    def __init__(
        self, address: str, store: Path, *options: str, program: tuple[str, ...] = tuple(COMMAND)
    ) -> None:
        self.started = time.monotonic()
        self.log = Path(tempfile.mkstemp(prefix="front-", dir=store.parent)[1])
        own = [
            "--transport",
            "http",
            "--port",
            "0",
            "--ray",
            address,
            "--model",
            "nano",
            "--store",
            str(store),
        ]
        with self.log.open("w") as log:
            self.process = subprocess.Popen([*program, "serve", *own, *options], stderr=log)
        until(lambda: self._said() or self.process.poll() is not None)
        said = self._said()
        assert said, self.log.read_text("utf-8")
        self.client = httpx.Client(base_url=said[1], timeout=900, trust_env=False)

    def _said(self) -> re.Match[str] | None:
        return re.search(r'"listening".*?"url": "([^"]+)"', self.log.read_text("utf-8"))

    def replicas(self) -> list[dict[str, Any]]:
        """What `/status` lists."""
        models = self.client.get("/status").json()["models"]
        return [replica for model in models for replica in model["replicas"]]

    def pids(self) -> list[int]:
        """The processes of the replicas that are ready."""
        return sorted(own["pid"] for own in self.replicas() if own["state"] == "ready")

    def ready(self, count: int) -> float:
        """Wait for so many replicas; seconds since the start of the server."""
        until(lambda: len(self.pids()) == count)
        return time.monotonic() - self.started

    def make(self, **asked: Any) -> httpx.Response:
        """Call `generate_image`."""
        body = {"prompt": "a red circle", **SMALL} | asked
        return self.client.post("/v1/tools/generate_image", json=body)

    def stages(self, **asked: Any) -> list[str]:
        """Call `generate_image`; the stages that it reported."""
        body, heard = {"prompt": "a red circle", **SMALL} | asked, list[str]()
        accept = {"Accept": "text/event-stream"}
        with self.client.stream("POST", "/v1/tools/generate_image", json=body, headers=accept) as said:
            for line in said.iter_lines():
                stage = json.loads(line[6:]).get("stage") if line.startswith("data: ") else None
                if stage and stage not in heard:
                    heard.append(stage)
        return heard

    def end(self, number: signal.Signals) -> float:
        """Send the process a signal; seconds until it has ended."""
        started = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(60)
        return time.monotonic() - started


def until(holds: Callable[[], Any], seconds: float = 180) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError("it did not come true in time")
        time.sleep(0.1)


def doctor(address: str) -> str:
    """What `doctor --ray` says of the replicas."""
    command = [*COMMAND, "doctor", "--ray", address, "--json"]
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return next(own["says"] for own in json.loads(said) if own["about"] == "replicas")


def restarts(_: argparse.Namespace, folder: Path) -> bool:
    """Servers come and go; the replicas stay."""
    store, holds = folder / "store", True

    def check(what: str, is_so: bool) -> None:
        nonlocal holds
        holds &= is_so
        print(f"{what}: {'holds' if is_so else 'FAILS'}", flush=True)

    with head(folder, "--num-cpus=2") as address:
        front = Front(address, store, "--replicas", "2")
        print(f"first server: two replicas ready after {front.ready(2):.1f} s")
        pids = front.pids()
        print("doctor:", doctor(address))
        for number in (signal.SIGKILL, signal.SIGTERM):
            jobs = [front.make(seed=n, steps=1000, background=True).json()["job_id"] for n in range(4)]
            until(lambda: any(own["tokens_outstanding"] for own in front.replicas()))  # noqa: B023
            took = front.end(number)
            print(f"{number.name}: ended after {took:.1f} s with {front.process.returncode}")
            front = Front(address, store, "--replicas", "2")
            took = front.ready(2)
            check(f"started again: ready after {took:.1f} s, the same processes", front.pids() == pids)
            states = [front.client.get(f"/v1/jobs/{job}").json()["status"] for job in jobs]
            check(f"its jobs: {', '.join(states)}", set(states) == {"interrupted"})
            check("it makes pictures", front.make(seed=7).status_code == 200)
        older = Front(address, folder / "other", program=(sys.executable, "-c", OLDER))
        refused = older.make(seed=1)
        print(f"a server of another version answers {refused.status_code}: {refused.json()['error']}")
        said = [json.loads(line) for line in older.log.read_text("utf-8").splitlines() if "refused" in line]
        print("  and logs:", *{own["reason"] for own in said})
        check("refused, and the replicas stay", refused.status_code == 503 and front.pids() == pids)
        older.end(signal.SIGTERM)
        second = Front(address, folder / "third", "--replicas", "2", "--idle-unload", "12")
        check("a second server finds them", second.ready(2) > 0 and second.pids() == pids)
        until(lambda: not second.replicas())
        time.sleep(3)
        check("it unloads the model, and the replicas stay", front.pids() == pids)
        check("the first one makes pictures with them", front.make(seed=8).status_code == 200)
        front.end(signal.SIGTERM)
        check("the second one again", second.make(seed=9).status_code == 200 and second.pids() == pids)
        until(lambda: not second.replicas())
        time.sleep(3)
        said_then = doctor(address)
        check(f"it unloads the model as the last one: {said_then}", "0 replicas" in said_then)
        second.end(signal.SIGTERM)
    return holds


def scaling(options: argparse.Namespace, folder: Path) -> bool:
    """Replicas are added while work waits, and ended when there is none."""
    with head(folder, "--num-cpus=2") as address:
        range_ = ("--min-replicas", "1", "--max-replicas", "2")
        front = Front(address, folder / "store", *range_, "--queue-size", "256")
        print("what a call hears that comes first:", *front.stages(seed=2000))
        print(f"one replica ready after {front.ready(1):.1f} s")
        started, seen = time.monotonic(), ""
        counts: list[int] = []

        def note() -> None:
            nonlocal seen
            now = ", ".join(f"{own['state']} ({own['tasks']} tasks)" for own in front.replicas())
            counts.append(len(front.pids()))
            if now != seen:
                print(f"{time.monotonic() - started:6.1f} s: {now}", flush=True)
            seen = now

        with ThreadPoolExecutor(options.requests) as pool:
            made = [pool.submit(front.make, seed=n, steps=100) for n in range(options.requests)]
            while not all(own.done() for own in made):
                note()
                time.sleep(0.5)
        answers = {own.result().status_code for own in made}
        print(f"{options.requests} requests: {answers} after {time.monotonic() - started:.1f} s")
        grew = max(counts) == 2
        end = time.monotonic() + 180
        while len(front.replicas()) > 1 and time.monotonic() < end:
            note()
            time.sleep(0.5)
        note()
        shrank = len(front.replicas()) == 1
        again = front.make(seed=1000).status_code
        front.end(signal.SIGTERM)
    print(f"grew to two: {grew}; back to one: {shrank}; then a request: {again}")
    return grew and shrank and answers == {200} and again == 200


def adapters(_: argparse.Namespace, folder: Path) -> bool:
    """An adapter that only the server's machine has."""
    loras = folder / "loras"
    loras.mkdir()
    generator = np.random.default_rng(0)
    sides = {
        "A": generator.standard_normal((4, 192), np.float32),
        "B": generator.standard_normal((192, 4), np.float32),
    }
    layers = {
        f"layers.{n}.attn.to_q.lora_{side}.weight": own for n in range(4) for side, own in sides.items()
    }
    save_file(layers, loras / "noise.safetensors")
    hidden = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {loras} && exec "$@"', "sh")
    asked = {"seed": 3, "lora": [{"name": "noise"}]}
    with (
        head(folder, "--num-cpus=0") as address,
        ray_start(f"--address={address}", "--num-cpus=2", before=hidden),
    ):
        until(lambda: "2 machines" in doctor(address), 120)
        front = Front(address, folder / "store", "--replicas", "2", "--lora-dir", str(loras))
        front.ready(2)
        made = [front.make(**asked).json(), front.make(**asked | {"seed": 4}).json()]
        plain = front.make(seed=3).json()
        hidden_there = not any(
            Path(f"/proc/{pid}/root{loras}/noise.safetensors").exists() for pid in front.pids()
        )
        print("the replicas lack the file:", hidden_there)
        front.end(signal.SIGTERM)
    from omnigen2 import load

    local = load("nano", device="cpu", dtype="float32")
    store = ImageStore(folder / "store")
    same: list[bool] = []
    for seed, own in zip((3, 4), made, strict=True):
        here = local.generate("a red circle", seed=seed, lora=str(loras / "noise.safetensors"), **SMALL)
        there = store.open(store.get(own["images"][0]["id"]).id)
        same.append(here[0].tobytes() == there.tobytes())  # type: ignore[index]
    differs = plain["images"][0]["id"] != made[0]["images"][0]["id"]
    print(
        f"pictures with an adapter that was sent: those of this process {same}, not those without {differs}"
    )
    return all(same) and differs and hidden_there


def main() -> int:
    """Run one of them; exit code 1 if something does not hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = {"restarts": restarts, "scaling": scaling, "adapters": adapters}
    parser.add_argument("what", choices=what)
    parser.add_argument("--requests", type=int, default=24)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clusters-", dir="/tmp") as folder:
        return 0 if what[options.what](options, Path(folder)) else 1


if __name__ == "__main__":
    sys.exit(main())
