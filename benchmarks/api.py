"""schemathesis against `/openapi.json` of a real server: no failure of the server, no undocumented answer.

    python -m benchmarks.api [--examples N] [--seed N]

The server listens on a free port of this machine, with a store of its own and a model that answers at once.
schemathesis (its command line, as a process of its own) makes right and wrong requests for every operation,
holds the answers to their documented statuses, media types, schemas and headers, and allows 503. Printed is
what it found, and the answers by status as the server counted them. The exit status is that of schemathesis.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from PIL import Image

from benchmarks.fuzz_app import InstantPlugin
from server.app import App, build_app
from server.http.app import http_app
from server.http.serve import uvicorn_config
from server.plugins import core_plugins
from server.settings import Settings

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "unsupported_method",
    "response_headers_conformance", "response_schema_conformance", "allow_header_conformance",
)  # fmt: skip
CONFIG = """\
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "503"]
"""
PHASES = "coverage,fuzzing"
"""What is made: requests at the limits of each schema, a few thousand, and random ones."""
START_S = 30.0


@dataclass
class Run:
    """What came of it."""

    status: int
    output: str
    answers: Counter[str]
    """Number of answers by status."""


def operations(app: App) -> int:
    """Number of operations in the document."""
    paths = http_app(app).routes
    return sum(len((getattr(route, "methods", None) or {"GET"}) - {"HEAD"}) for route in paths)


@contextmanager
def served(app: App) -> Generator[str]:
    """Serve an app on a free port, on a thread of its own; its address."""
    config = uvicorn_config(http_app(app))
    config.port = 0
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + START_S
    while not server.started and time.monotonic() < until:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def examine(folder: Path, examples: int, seed: int, phases: str = PHASES) -> Run:
    """Make about `examples` requests to a server in `folder`, beside those of the phase `coverage`."""
    app = build_app(
        Settings(store=str(folder / "store"), model="instant"), [*core_plugins(), InstantPlugin()]
    )
    app.store.put(Image.new("RGB", (64, 64), (200, 30, 30)), "a red square")
    (folder / "schemathesis.toml").write_text(CONFIG, encoding="utf-8")
    with served(app) as url:
        program = Path(sys.executable).with_name("schemathesis")
        ran = subprocess.run(
            [
                program, "--config-file", folder / "schemathesis.toml", "run", f"{url}/openapi.json",
                "--max-examples", str(max(1, examples // operations(app))), "--seed", str(seed),
                "--checks", ",".join(CHECKS), "--phases", phases, "--no-color",
                "--continue-on-failure", "--generation-database", "none", "--request-timeout", "60",
                "--suppress-health-check", "all", "--warnings", "off",
            ],
            capture_output=True, text=True, check=False, cwd=folder,
        )  # fmt: skip
        answers: Counter[str] = Counter()
        for (_, status), number in app.counts.of("http_answers").items():
            answers[status] += round(number)
    return Run(ran.returncode, ran.stdout + ran.stderr, answers)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=5000, help="requests to make, about")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = examine(Path(folder), given.examples, given.seed)
    print(run.output)
    print(
        f"{run.answers.total()} answers in {time.monotonic() - started:.0f} s:",
        dict(sorted(run.answers.items())),
    )
    return run.status


if __name__ == "__main__":
    sys.exit(main())
