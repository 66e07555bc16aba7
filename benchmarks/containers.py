"""Build the images of the Dockerfile, run each as its CMD says, and check it by its HEALTHCHECK and a call.

    python -m benchmarks.containers [cpu] [cuda] [--extras '[ray]'] [--volume FOLDER:FOLDER:ro ...]

Needs root, and Debian's packages `buildah` and `debootstrap`. No registry of images is asked: the base is a
minimal Debian with its own Python, made by debootstrap. pip is set up in it as it is here; `--volume` shows
the build a folder that these settings name. Isolation is chroot, which needs no rights beyond root.
"""

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

PROJECT = Path(__file__).parents[1]
DEBIAN = "bookworm"
PACKAGES = "python3,python3-venv,ca-certificates"
BASE = "localhost/base"
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
URL = "http://127.0.0.1:8765"
OWNER = 1000
"""User and group that the image runs as."""
START_S = 120
END_S = 10
"""Seconds after SIGTERM: what `docker stop` waits."""


@dataclass(frozen=True)
class Buildah:
    """Buildah with images and containers of its own, in a folder that can be deleted."""

    folder: Path
    volumes: tuple[str, ...]

    def command(self, verb: str, *arguments: object) -> list[str]:
        """The command line of one of its verbs."""
        places = ["--root", self.folder / "images", "--runroot", self.folder / "run"]
        isolated = ["--isolation", "chroot"] if verb in ("build", "run") else []
        return [str(word) for word in ("buildah", *places, verb, *isolated, *arguments)]

    def ask(self, verb: str, *arguments: object) -> str:
        """What it prints.

        Raises:
            CalledProcessError: it failed; what it says stands on stderr.
        """
        command = self.command(verb, *arguments)
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    def build(self, tag: str, *arguments: object) -> None:
        """Build an image; its output is kept in a file beside the images.

        Raises:
            SystemExit: a step failed.
        """
        log = self.folder / f"{tag.partition('/')[2]}.log"
        shown = [f"--volume={volume}" for volume in self.volumes]
        command = self.command("build", "--layers", "--format", "docker", *shown, "--tag", tag, *arguments)
        with log.open("w") as file:
            code = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
        if code:
            sys.exit("\n".join(log.read_text("utf-8").splitlines()[-20:]) + f"\n{tag}: see {log}")


def make_base(buildah: Buildah) -> None:
    """A minimal Debian with Python, in which pip is set up as it is here."""
    root = buildah.folder / "base"
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", DEBIAN, str(root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.copy(f"/{CERTIFICATES}", root / CERTIFICATES)
    (root / "etc/pip.conf").write_text(pip_settings())
    recipe = buildah.folder / "Dockerfile.base"
    recipe.write_text("FROM scratch\nCOPY . /\n")
    buildah.build(BASE, "--file", recipe, root)


def pip_settings() -> str:
    """A pip.conf with the settings of this environment that say where packages are."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    )
    lines: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in ("index-url", "extra-index-url", "find-links", "trusted-host", "default-timeout"):
            lines[key] = "\n  ".join(value.strip("'").split())
    return "\n".join(["[global]", f"cert = /{CERTIFICATES}", *(f"{key} = {lines[key]}" for key in lines), ""])


# -- one image ----------------------------------------------------------------------------------------


class Container:
    """A container of an image: its server as ENTRYPOINT and CMD say, with volumes that last."""

    def __init__(self, buildah: Buildah, image: str, folder: Path, token: str) -> None:
        self._buildah = buildah
        self._name = buildah.ask("from", image)
        described = json.loads(buildah.ask("inspect", "--type", "image", image))
        self.config: dict[str, Any] = described["Docker"]["config"]
        self._folder = folder
        volumes = {"tokens": "/run/secrets/tokens"} | {Path(at).name: at for at in self.config["Volumes"]}
        self._mounts = [f"--volume={folder / name}:{at}" for name, at in volumes.items()]
        for at in self.config["Volumes"]:
            (folder / Path(at).name).mkdir()
            os.chown(folder / Path(at).name, OWNER, OWNER)
        (folder / "tokens").write_text(f"ann:{token}\n")

    def run(self, words: list[str]) -> list[str]:
        """The command line that runs words in it, as the user of the image."""
        return self._buildah.command("run", *self._mounts, self._name, "--", *words)

    def healthy(self) -> bool:
        """What HEALTHCHECK says."""
        kind, *words = self.config["Healthcheck"]["Test"]
        assert kind == "CMD", kind
        return subprocess.run(self.run(words), capture_output=True, check=False).returncode == 0

    @contextmanager
    def serving(self) -> Iterator[psutil.Process]:
        """Its server, once it is healthy; at the end it must leave in time after SIGTERM."""
        with (self._folder / "log").open("w") as log:
            outer = subprocess.Popen(
                self.run(self.config["Entrypoint"] + self.config["Cmd"]), stdout=log, stderr=log
            )
        begun = time.monotonic()
        while not self.healthy():
            if outer.poll() is not None or time.monotonic() - begun > START_S:
                sys.exit((self._folder / "log").read_text("utf-8"))
            time.sleep(0.5)
        print(f"  healthy after {time.monotonic() - begun:.1f} s", flush=True)
        inside = [one for one in psutil.Process(outer.pid).children(recursive=True) if is_server(one)]
        server = inside[-1]
        try:
            yield server
        finally:
            begun = time.monotonic()
            server.send_signal(signal.SIGTERM)
            outer.wait(END_S)
            print(f"  ended {time.monotonic() - begun:.1f} s after SIGTERM", flush=True)


def is_server(process: psutil.Process) -> bool:
    """Whether a process inside is the server, rather than what isolates it."""
    return any(word.endswith("/omnigen2-mcp") for word in process.cmdline()[:2])


def check(container: Container, token: str) -> None:
    """One call, who runs it, what it writes; the same again after a restart.

    Raises:
        AssertionError: something is not as it should be.
    """
    asked = {"prompt": "a red circle", "seed": 1}
    with httpx.Client(base_url=URL, headers={"Authorization": f"Bearer {token}"}, timeout=START_S) as client:
        with container.serving() as server:
            assert set(server.uids()) == {OWNER}, server.uids()
            while not client.get("/readyz").json()["ready"]:  # the model is being loaded
                time.sleep(0.2)
            assert httpx.get(f"{URL}/v1/models").status_code == 401
            made = client.post("/v1/tools/generate_image", json=asked).raise_for_status().json()
            picture = client.get(f"/images/{made['images'][0]['id'].rpartition('/')[2]}").raise_for_status()
            print(f"  generated {len(picture.content):,} bytes as user {OWNER}", flush=True)
        with container.serving():
            again = client.post("/v1/tools/generate_image", json=asked).raise_for_status().json()
        assert again["images"][0]["id"] == made["images"][0]["id"]
        assert again["cached"]
        print("  after a restart the same request is answered from the volume")


def measure(buildah: Buildah, target: str, extras: str) -> None:
    """Build one target, run it, and check what it does."""
    tag, begun = f"localhost/studio-{target}", time.monotonic()
    buildah.build(
        tag, "--target", target, "--build-arg", f"BASE={BASE}", "--build-arg", f"EXTRAS={extras}", PROJECT
    )
    size = buildah.ask("images", "--format", "{{.Size}}", tag)
    print(f"{target}: built in {time.monotonic() - begun:.0f} s, {size}", flush=True)
    token = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(dir=buildah.folder) as folder:
        Path(folder).chmod(0o755)
        check(Container(buildah, tag, Path(folder), token), token)


def main() -> None:
    """Build and check the targets that are named."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.containers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", nargs="*", help="of the Dockerfile: cpu (default), cuda")
    parser.add_argument("--extras", default="", help="EXTRAS of the Dockerfile, such as [ray]")
    parser.add_argument("--volume", action="append", default=[], help="a folder that pip needs: FROM:TO:ro")
    parser.add_argument(
        "--folder", type=Path, help="where to work, and to leave what was built for next time"
    )
    asked = parser.parse_args()
    if missing := [name for name in ("buildah", "debootstrap") if shutil.which(name) is None]:
        parser.error(f"install {' and '.join(missing)} first")
    with tempfile.TemporaryDirectory() as temporary:
        folder = (asked.folder or Path(temporary)).absolute()
        folder.mkdir(exist_ok=True)
        buildah = Buildah(folder, tuple(asked.volume))
        if not (folder / "base").exists():
            make_base(buildah)
        try:
            for target in asked.target or ["cpu"]:
                measure(buildah, target, asked.extras)
        finally:
            buildah.ask("rm", "--all")
            if asked.folder is None:
                buildah.ask("rmi", "--all", "--force")


if __name__ == "__main__":
    main()
