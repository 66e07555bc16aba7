"""A real server process for clients of all kinds; those from npm are installed once beside these tests."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

HERE = Path(__file__).parent
CHECKPOINT = HERE.parent / "data" / "golden" / "pipeline" / "checkpoint"
COMMAND = [str(Path(sys.executable).with_name("omnigen2-mcp")), "serve"]
INSTALL_S = 180
IN_REPLICAS: dict[str, str] = {}
"""What `--replicas N` adds to the environment of every server."""


def pytest_configure(config: pytest.Config) -> None:
    """Take in `--replicas`."""
    if count := config.getoption("--replicas"):
        IN_REPLICAS.update(OMNIGEN2_REPLICAS=str(count), OMNIGEN2_MODEL="nano")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """A store of its own, and the tiny checkpoint with random weights as the model."""
    return settings(tmp_path)


def settings(folder: Path) -> dict[str, str]:
    """The environment of a server whose store and log are in `folder`."""
    own = {"OMNIGEN2_STORE": str(folder / "store"), "OMNIGEN2_MODEL": str(CHECKPOINT)}
    return os.environ | own | IN_REPLICAS


def log_of(environment: dict[str, str]) -> Path:
    """The log of a server with this environment."""
    return Path(environment["OMNIGEN2_STORE"]).with_name("server.log")


@contextmanager
def listening(environment: dict[str, str], *options: str) -> Iterator[str]:
    """A server process over HTTP; its address."""
    command = [*COMMAND, "--transport", "http", "--port", "0", *options]
    path = log_of(environment)
    with path.open("w") as log, subprocess.Popen(command, env=environment, stderr=log) as server:
        try:
            while not (said := re.search(r'"listening".*?"url": "([^"]+)"', path.read_text("utf-8"))):
                assert server.poll() is None, path.read_text("utf-8")
                time.sleep(0.05)
            yield said[1]
        finally:
            server.terminate()


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The folder with the clients; the test is skipped where they cannot be had."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not installed")
    with FileLock(HERE / ".install.lock"):  # other processes of this run want them, too
        return _installed()


def _installed() -> Path:
    folder = HERE / "node_modules"
    installed, wanted = folder / ".installed", (HERE / "package.json").read_text(encoding="utf-8")
    if not installed.is_file() or installed.read_text(encoding="utf-8") != wanted:
        shutil.rmtree(folder, ignore_errors=True)  # half of it may be there, of a run that was stopped
        command = [
            "npm",
            "install",
            "--no-package-lock",
            "--ignore-scripts",
            "--no-audit",
            "--no-fund",
            "--silent",
        ]
        try:
            subprocess.run(command, cwd=HERE, check=True, capture_output=True, timeout=INSTALL_S)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            pytest.skip(f"the clients could not be installed from npm: {error}")
        installed.write_text(wanted, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def modern_node(node_modules: Path) -> str:
    """A node of version 22 or later: the one of this machine, or else the one from npm."""
    for program in filter(None, (shutil.which("node"), *node_modules.glob("node-*/bin/node"))):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
        if int(said.removeprefix("v").partition(".")[0]) >= 22:
            return str(program)
    pytest.skip("there is no node 22, and npm has none for this machine")
