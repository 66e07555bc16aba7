"""`omnigen2-mcp doctor`: what will run where and why, and what to do about what is missing.

Each check gives findings and changes nothing. A problem makes the command fail, so that scripts can ask too.
"""

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from cyclopts import App
from rich.filesize import decimal

from omnigen2.adapters.folder import AdapterFolder
from omnigen2.checkpoints import locate
from omnigen2.factory import Checkpoints
from omnigen2.memory.placement import Placement
from server.cli.output import AsJson, memory_words, show, table
from server.cli.placing import Placing
from server.plugins import Plugins
from server.settings import Settings

app = App(name="doctor", help="Say what will run where and why, and what is missing.")

State = Literal["ok", "note", "problem"]
PULL = "omnigen2-mcp models pull OmniGen2/OmniGen2"
LITTLE_SPACE = 2 * 10**9
"""Bytes free for the store below which doctor warns."""


@dataclass(frozen=True)
class Finding:
    """One finding; `advice` says what to do if something should be done."""

    about: str
    state: State
    says: str
    advice: str = ""


@app.default
def doctor(
    *,
    model: str | None = None,
    placing: Placing | None = None,
    store: str | None = None,
    replicas: int | None = None,
    ray: str | None = None,
    config: Path | None = None,
    as_json: AsJson = False,
) -> None:
    """Check the installation, the model, the device, the memory, the store and the plugins; change nothing.

    Ends with status 1 if something would keep the server from working. What is left out is as `serve` has it.

    Parameters
    ----------
    model
        `nano`, a folder, or a repository id.
    store
        Where images are kept.
    replicas
        Processes in which a model is loaded.
    ray
        A Ray cluster in which the replicas run.
    config
        A TOML file with settings.
    """
    typed: dict[str, Any] = {
        "model": model,
        "store": store,
        "replicas": replicas,
        "ray": ray,
        "config": config,
    }
    typed |= (placing or Placing()).given
    settings = Settings(**{name: value for name, value in typed.items() if value is not None})
    findings = list(examine(settings))
    _show(findings, as_json)
    if any(finding.state == "problem" for finding in findings):
        sys.exit(1)


def _show(findings: list[Finding], as_json: bool) -> None:
    rows = [
        (
            finding.state,
            finding.about,
            f"{finding.says}; {finding.advice}" if finding.advice else finding.says,
        )
        for finding in findings
    ]
    show([asdict(finding) for finding in findings], table(("", "", ""), rows), as_json=as_json)


def examine(settings: Settings) -> Iterator[Finding]:
    """Every check, for a server with these settings."""
    plugins = Plugins()
    backends, stores = plugins.backends(), plugins.stores()
    for offered in (plugins.tools, plugins.prompts, plugins.resources, plugins.commands):
        offered()  # a broken plugin fails here
    yield from check_installation()
    own = [factory for factory in backends.values() if not isinstance(factory, Checkpoints)]
    if brought := [factory for factory in own if settings.model in factory.models()]:
        yield Finding("model", "ok", f"{brought[0].card(settings.model).title}, brought by a plugin")
    else:
        yield from check_model(settings.model, settings.placement)
    yield from check_replicas(settings)
    yield from check_models()
    yield from check_adapters(AdapterFolder(settings.lora_dir))
    scheme, separator, place = settings.store.partition("://")
    if not separator or scheme == "file":
        yield from check_store(Path(place if separator else settings.store).expanduser())
    elif scheme in stores:
        yield Finding("store", "ok", settings.store)
    else:
        yield Finding(
            "store", "problem", f"nothing keeps images in {scheme}://", f"known: {', '.join(stores)}"
        )
    yield from check_plugins(plugins.names(), plugins.failed)


def check_installation() -> Iterator[Finding]:
    """Versions of what is installed."""
    yield Finding(
        "installation",
        "ok",
        f"omnigen2-mcp {version('omnigen2-mcp')}, Python {platform.python_version()}, "
        f"torch {version('torch')}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores",
    )


def check_model(source: str, placement: Placement) -> Iterator[Finding]:
    """Whether the model is here, and where, how and why there it would run."""
    try:
        if locate.awaits_import(source):
            yield Finding("model", "ok", f"{source} is made a model of when it is first loaded")
            return
        checkpoint = locate.find(source)
    except (FileNotFoundError, ValueError) as error:
        yield Finding("model", "problem", str(error), f"fetch one with `{PULL}`, or ask for nano")
        return
    card = checkpoint.card
    yield Finding("model", "ok", f"{card.title} ({source}) in {checkpoint.folder}")
    if card.digest and (found := locate.weights_digest(checkpoint.folder)) != card.digest:
        yield Finding(
            "weights", "problem", f"their digest is {found}, the card says {card.digest}", "install them anew"
        )
    yield from check_device(checkpoint, placement)


def check_device(checkpoint: locate.Checkpoint, placement: Placement) -> Iterator[Finding]:
    """Where a checkpoint would run, and whether it fits there."""
    from omnigen2.checkpoints.preflight import preflight

    try:
        seen = preflight(checkpoint, placement)
    except ValueError as error:
        damaged = str(error).startswith("weights")
        advice = "install the model anew" if damaged else "set the device to auto"
        yield Finding("weights" if damaged else "device", "problem", str(error), advice)
        return
    yield Finding("device", "ok", f"{seen.device} ({seen.device_name}) in {seen.dtype}: {seen.reason}")
    yield Finding(
        "memory",
        "ok" if seen.memory.fits else "problem",
        f"{memory_words(seen.memory)}; quantize {placement.quantize}",
        "" if seen.memory.fits else "free memory, quantize (int8, nf4), choose another device, or use nano",
    )


def check_replicas(settings: Settings) -> Iterator[Finding]:
    """Whether replicas could be started; those there are, in a cluster that is there."""
    if settings.replica_range is None:
        return
    from server.replicas.cluster import Cluster

    least, most = settings.replica_range
    try:
        seen = Cluster(settings.ray, most).seen() if settings.ray else Cluster.installed()
    except ValueError as error:
        yield Finding("replicas", "problem", str(error), "install or start Ray, or serve without replicas")
        return
    yield Finding("replicas", "ok", f"{least} to {most} of a model; {seen}")


def check_models() -> Iterator[Finding]:
    """Which other models are here."""
    names = [model.id for model in locate.local()]
    if any(name != locate.NANO for name in names):
        yield Finding("models", "ok", f"here: {', '.join(names)}")
    else:
        here = "only nano is here" if names else "none is here"
        yield Finding("models", "note", here, f"fetch the full model with `{PULL}`")


def check_adapters(adapters: AdapterFolder) -> Iterator[Finding]:
    """Which adapters are offered by name, and which files of their folder are not."""
    if adapters.folder is None:
        return
    names = adapters.names()
    offered = f"{len(names)} in {adapters.folder}{': ' if names else ''}{', '.join(names)}"
    yield Finding("adapters", "ok" if names else "note", offered, "" if names else "put LoRA files there")
    for name, adapter in adapters.all().items():
        if adapter.problem:
            yield Finding("adapter", "note", f"{name}: {adapter.problem}")


def check_store(folder: Path) -> Iterator[Finding]:
    """Whether the store can be written, and how much room it has."""
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        yield Finding(
            "store", "problem", f"{folder} cannot be written", "choose another folder with OMNIGEN2_STORE"
        )
        return
    free = shutil.disk_usage(existing).free
    state = "a new store" if existing != folder else f"holds {decimal(locate.folder_bytes(folder))}"
    little = free < LITTLE_SPACE
    yield Finding(
        "store",
        "note" if little else "ok",
        f"{folder}: {state}, {decimal(free)} free on its disk",
        "make room with `omnigen2-mcp store gc`" if little else "",
    )


def check_plugins(loaded: list[str], failed: Mapping[str, str]) -> Iterator[Finding]:
    """Which plugins there are, and which could not be loaded."""
    yield Finding("plugins", "ok", ", ".join(loaded) or "none")
    for name, reason in failed.items():
        yield Finding("plugin " + name, "problem", reason, f"update or uninstall {name}")
