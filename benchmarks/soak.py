"""A real server under friendly and hostile clients for as long as it is told: what it promises must hold.

    python -m benchmarks.soak [--minutes M] [--clients N] [--hostile SHARE] [--seed N]
    python -m benchmarks.soak --principals N [--sharing own] [--minutes M] [--clients N]

Starts `omnigen2-mcp serve` over HTTP with nano, its own store and a token file; the clients of
`benchmarks/soak_clients.py` use it until the time is over. Holds it to: memory that does not grow over the
second half (the server alone, and with its workers), every answer documented, `/healthz` within a second
(asked four times a second by a process of its own), a log without tracebacks whose size is bounded by the
requests, an end within ten seconds of SIGTERM with no process left, and a store that verifies.

With `--principals`, so many tokens are used alike, by clients that leave a third of their calls and do no
other harm: also held are fairness between principals, and `/metrics`, see `benchmarks/soak_principals.py`.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import httpx
import psutil

from benchmarks.soak_clients import FRIENDLY, HOSTILE, TOKENS, Behaviour, Client, Tally
from benchmarks.soak_principals import MIXED, tokens, unfair, wrong_metrics
from storage import ImageStore

MOST_GROWTH = 0.05
HEALTH_S = 1.0
HEALTH_EVERY_S = 0.25
STOP_S = 10.0
"""Seconds from SIGTERM to the end of the process."""
LOG_BYTES = 1500
"""Bytes of log for each request, connection or broken attempt; and as many for the start."""
MEASURE_EVERY_S = 2.0
REPORT_EVERY_S = 60.0


@dataclass
class Server:
    """A server process, its log, and its memory on the way."""

    process: subprocess.Popen[bytes]
    folder: Path
    alone: list[float] = field(default_factory=list)
    """MB of the server."""
    together: list[float] = field(default_factory=list)
    """MB of the server and its workers."""

    @classmethod
    def start(cls, folder: Path, known: dict[str, str], sharing: str) -> "Server":
        """Start one in `folder` that knows these tokens by name."""
        tokens = folder / "tokens.txt"
        tokens.write_text("".join(f"{name}:{token}\n" for name, token in known.items()), encoding="utf-8")
        tokens.chmod(0o600)
        program = Path(sys.executable).with_name("omnigen2-mcp")
        options = {"transport": "http", "port": "0", "store": folder / "store", "token-file": tokens}
        options["sharing"] = sharing
        command = [program, "serve", *(f"--{name}={value}" for name, value in options.items())]
        with (folder / "log").open("wb") as log:
            return cls(subprocess.Popen(command, stderr=log, stdout=log, cwd=folder), folder)

    @property
    def log(self) -> str:
        """All that it logged."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def url(self) -> str:
        """Where it listens; waits for it."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            for line in self.log.splitlines():
                if '"listening"' in line:
                    return json.loads(line)["url"]
            time.sleep(0.1)
        raise SystemExit(f"the server did not start: {self.log[-2000:]}")

    def measure(self) -> None:
        """Note its memory."""
        process = psutil.Process(self.process.pid)
        alone = process.memory_info().rss / 1e6
        workers = 0.0
        for child in process.children(recursive=True):
            try:
                workers += child.memory_info().rss / 1e6
            except psutil.Error:  # it ended meanwhile
                continue
        self.alone.append(alone)
        self.together.append(alone + workers)

    def stop(self) -> list[str]:
        """Ask it to stop; what was wrong with how it did."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return ["it did not stop within a minute of SIGTERM"]
        took = time.monotonic() - started
        print(f"stopped {took:.1f} s after SIGTERM with code {code}")
        left = [child.pid for child in psutil.wait_procs(children, timeout=3)[1]]
        wrong = [f"it took {took:.1f} s to stop"] if took > STOP_S else []
        wrong += [f"exit code {code}"] if code not in (0, -signal.SIGTERM) else []
        return wrong + ([f"processes {left} were left"] if left else [])


def growth(series: list[float]) -> float:
    """By what part the middle of the last fifth is above that of the fifth after half-time."""
    fifth = max(1, len(series) // 5)
    half = len(series) // 2
    return statistics.median(series[-fifth:]) / statistics.median(series[half : half + fifth]) - 1


def watch_health(url: str) -> None:
    """Ask `/healthz` again and again, and print the seconds each took; for a process of its own."""
    with httpx.Client(
        limits=httpx.Limits(max_keepalive_connections=0), timeout=120, trust_env=False
    ) as client:
        while os.getppid() != 1:
            started = time.monotonic()
            try:
                good = client.get(f"{url}/healthz").status_code == 200
            except httpx.HTTPError as error:
                good = False
                print(f"# {error!r}", flush=True)
            took = time.monotonic() - started
            print(f"{took:.4f}" if good else f"# no answer after {took:.1f} s", flush=True)
            time.sleep(max(0.0, HEALTH_EVERY_S - took))


async def drive(
    server: Server, url: str, given: argparse.Namespace, tally: Tally, known: dict[str, str]
) -> None:
    """Let the clients loose until the time is over; measure meanwhile."""
    end = time.monotonic() + 60 * given.minutes

    def kinds(number: int) -> dict[Behaviour, float]:
        if given.principals:
            return MIXED
        return HOSTILE if number < given.hostile * given.clients else FRIENDLY

    own = given.sharing == "own"
    clients = [
        Client(url, number, kinds(number), given.seed, tally, known, own) for number in range(given.clients)
    ]

    async def measure() -> None:
        reported = time.monotonic()
        while time.monotonic() < end and server.process.poll() is None:
            server.measure()
            if time.monotonic() - reported > REPORT_EVERY_S:
                reported = time.monotonic()
                print(f"{(end - reported) / 60:5.1f} min left, {server.alone[-1]:.0f} MB,", end=" ")
                print(f"{server.together[-1]:.0f} MB with workers, {tally.asked} requests", flush=True)
            await anyio.sleep(MEASURE_EVERY_S)

    async with anyio.create_task_group() as group:
        group.start_soon(measure)
        for client in clients:
            group.start_soon(client.work, end)


def judged(server: Server, tally: Tally, health: list[str]) -> list[str]:
    """Print what was measured; what of it breaks a promise."""
    wrong: list[str] = []
    for name, series in (("server", server.alone), ("with workers", server.together)):
        grown = growth(series)
        print(f"memory, {name}: most {max(series):.0f} MB, last {series[-1]:.0f} MB,", end=" ")
        print(f"grown by {100 * grown:.1f} % over the second half")
        wrong += [f"memory, {name}, grew by {100 * grown:.1f} %"] if grown > MOST_GROWTH else []
    times = sorted(float(line) for line in health if line and line[0] != "#")
    p99, most = times[int(0.99 * (len(times) - 1))], times[-1]
    print(f"/healthz: {len(times)} answers, p99 {p99:.3f} s, most {most:.3f} s")
    wrong += [f"/healthz took {most:.2f} s"] if most > HEALTH_S else []
    wrong += [f"/healthz: {line[2:]}" for line in health if line.startswith("#")][:3]
    log = server.log
    print(f"log: {len(log) / 1e6:.2f} MB, {len(log) / max(1, tally.asked):.0f} bytes per request")
    wrong += [f"logged {times} x {words}" for words, times in mishaps(log).items()]
    wrong += [f"the log has {len(log):,} bytes"] if len(log) > LOG_BYTES * (tally.asked + 1000) else []
    return wrong


def mishaps(log: str) -> Counter[str]:
    """Errors and tracebacks in a log: who logged them, and their last words."""
    found: Counter[str] = Counter()
    for line in log.splitlines():
        if not line.startswith("{"):
            found[f"no line of a log: {line[:200]}"] += 1
        elif "Traceback" in line or '"level": "error"' in line:
            entry = json.loads(line)
            last = entry.get("exception", "").rpartition("\n")[2]
            found[f"{entry['logger']}: {entry['event'].strip()}: {last}"[:300]] += 1
    return found


def main() -> int:
    """Soak; exit code 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--hostile", type=float, default=0.35, help="part of the clients that mean harm")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--principals", type=int, default=0, help="tokens that are used alike")
    parser.add_argument("--sharing", choices=("shared", "own"), default="shared")
    parser.add_argument("--health", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.health:
        watch_health(given.health)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"log and store: {folder}")
    known = tokens(given.principals) if given.principals else TOKENS
    server, tally = Server.start(folder, known, given.sharing), Tally()
    adds_up: list[str] = []
    try:
        url = server.url()
        with (folder / "health").open("wb") as out:
            asking = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.soak", "--health", url], stdout=out, stderr=out
            )
        try:
            anyio.run(drive, server, url, given, tally, known)
            if given.principals:
                adds_up = wrong_metrics(url, next(iter(known.values())), tally)
        finally:
            asking.terminate()
            asking.wait()
        wrong = [f"{times} x {fault}" for fault, times in tally.faults.items()] + adds_up
        wrong += unfair(tally, list(known)) if given.principals else []
        if (code := server.process.poll()) is not None:
            wrong.append(f"the server died with code {code}")
        else:
            wrong += server.stop()
    finally:
        server.process.kill()
    print(f"{tally.asked} requests:")
    for word, times in sorted(tally.answers.items()):
        print(f"{times:9}  {word}")
    wrong += judged(server, tally, (folder / "health").read_text(encoding="utf-8").splitlines())
    with ImageStore(folder / "store") as store:
        found = store.verify()
        print(f"store: {store.usage().images} images; {found}")
        wrong += [] if found.clean else [f"the store does not verify: {found}"]
    print("\n".join(f"FAULT {line}" for line in wrong) or "every promise was kept")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
