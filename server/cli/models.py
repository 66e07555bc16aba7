"""`omnigen2-mcp models`: which models are here, what each one is, and fetching another."""

import json
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

from cyclopts import App
from rich.filesize import decimal

from omnigen2.adapters.file import Adapter
from omnigen2.adapters.folder import AdapterFolder, Listed
from omnigen2.checkpoints import locate
from omnigen2.checkpoints.card import ModelCard
from omnigen2.checkpoints.headers import read_headers
from server.cli.output import AsJson, download_bar, facts, memory_words, show, table
from server.settings import Settings

app = App(name="models", help="List, inspect and fetch models.")

NO_LORA_DIR = "No adapter is offered by name: set OMNIGEN2_LORA_DIR, or --lora-dir of serve, to their folder."
PULL_HINT = "Fetch the full model (16 GB) with: omnigen2-mcp models pull OmniGen2/OmniGen2"


@app.command(name="list")
def list_models(*, as_json: AsJson = False) -> None:
    """List the models on this machine."""
    found = locate.local()
    rows = [(model.id, decimal(model.bytes), (model.revision or "-")[:12], model.folder) for model in found]
    lines = [table(("model", "size", "commit", "folder"), rows)] if rows else ["No model is here."]
    hint = [] if any(model.id != locate.NANO for model in found) else [PULL_HINT]
    show([_described(model) for model in found], *lines, *hint, as_json=as_json)


@app.command(name="loras")
def list_adapters(*, as_json: AsJson = False) -> None:
    """List the LoRA adapters that can be used by name, and what their files say of themselves."""
    adapters = AdapterFolder(Settings().lora_dir)
    found = adapters.all()
    rows = [(name, decimal(own.bytes), own.problem or own.about) for name, own in found.items()]
    where = f"The folder {adapters.folder} is empty." if adapters.folder else NO_LORA_DIR
    value = [
        {"name": name, **asdict(own), "path": str(own.path), "digest": _digest(own)}
        for name, own in found.items()
    ]
    show(value, table(("name", "size", "about"), rows) if rows else where, as_json=as_json)


@app.command(name="show")
def show_model(model: str, /, *, as_json: AsJson = False) -> None:
    """Show what a model is: its card, its files and their digest, and how its weights would be kept here.

    Parameters
    ----------
    model
        `nano`, a folder, or a repository id like `OmniGen2/OmniGen2`.
    """
    checkpoint = locate.find(model)
    folder, card, digest = checkpoint.folder, checkpoint.card, locate.weights_digest(checkpoint.folder)
    parts = [_part(folder / part) for part in locate.PARTS if (folder / part).is_dir()]
    origin = locate.read_origin(folder)
    memory, words = _memory(checkpoint)
    value = {"folder": str(folder), "digest": digest, "commit": origin.get("revision"), "parts": parts}
    value["memory"] = memory
    about = facts(
        {
            "model": f"{card.title} ({card.id})",
            "about": card.about,
            "folder": folder,
            "commit": origin.get("revision") or "not pulled from the hub",
            "digest": digest,
            "memory": words,
        }
    )
    sizes = table(
        ("part", "size", "parameters", "stored as"),
        [
            (part["name"], decimal(part["bytes"]), f"{part['parameters']:,}", ", ".join(part["dtypes"]))
            for part in parts
        ],
    )
    value["card"] = card.model_dump(mode="json")
    show(value, about, "", sizes, "", _defaults(card), as_json=as_json)


@app.command
def pull(repo_id: str, /, *, revision: str | None = None, as_json: AsJson = False) -> None:
    """Fetch a model from the Hugging Face Hub, or continue a fetch that was interrupted.

    Only safetensors, JSON and text are fetched, never code. Size and hash of every file are checked, and the
    commit is written down with the model. Pulling a model that is already here checks it.

    Parameters
    ----------
    repo_id
        For example `OmniGen2/OmniGen2`.
    revision
        A branch, tag or commit; the main branch if absent.
    """
    from omnigen2.checkpoints.download import PullProgress  # the hub's library is slow to import
    from omnigen2.checkpoints.download import pull as download

    with download_bar() as bar:
        line = bar.add_task("asking the hub", total=None)

        def report(progress: PullProgress) -> None:
            bar.update(
                line, description=progress.file, completed=progress.done, total=progress.total, refresh=True
            )

        model = download(repo_id, revision, report)
    show(
        _described(model),
        f"{model.id} is here: {decimal(model.bytes)} in {model.folder}, commit {model.revision}",
        f"Use it with: omnigen2-mcp serve --model {model.id}",
        as_json=as_json,
    )


@app.command(name="import")
def import_files(*sources: Path, output: Path | None = None, as_json: AsJson = False) -> None:
    """Make a model of the published layout from single files, such as those of ComfyUI.

    Transformer, text encoder and autoencoder are recognised by what they hold. Those that are not named are
    looked for beside those that are, and in ComfyUI's folders; so is `processor/`, which no file holds.
    A `config.json` in `transformer/`, `vae/` or `mllm/` there counts instead of the published one.

    Parameters
    ----------
    sources
        Files, or a folder where they lie, such as ComfyUI's `models`.
    output
        The folder to make. If absent, the model is called `imported/NAME`, after the transformer's file.
    """
    from omnigen2.checkpoints.convert import convert  # imports torch

    if not sources:
        raise ValueError("sources: name a file or a folder")
    with download_bar() as bar:
        line = bar.add_task("reading headers", total=None)

        def report(part: str, done: int, total: int) -> None:
            bar.update(line, description=part, completed=done, total=total, refresh=True)

        made = convert(list(sources), output, report)
    named = "/".join(made.folder.parts[-2:]) if output is None else str(made.folder)
    show(
        {"model": named, **asdict(made)},
        facts({part: f"from {source}" for part, source in made.taken.items()}),
        f"Use it with: omnigen2-mcp serve --model {named}",
        as_json=as_json,
    )


def _memory(checkpoint: locate.Checkpoint) -> tuple[dict[str, Any] | None, str]:
    """The memory mode that `serve` would load it in, as JSON and in words; None, and why there is none."""
    from omnigen2.checkpoints.preflight import preflight  # imports torch

    try:
        choice = preflight(checkpoint, Settings().placement).memory
    except ValueError as error:
        return None, str(error)
    return asdict(choice), memory_words(choice)


def _digest(adapter: Listed) -> str | None:
    return None if adapter.problem else Adapter.of(adapter.path).digest


def _described(model: locate.LocalModel) -> dict[str, Any]:
    return {
        "id": model.id,
        "folder": str(model.folder),
        "bytes": model.bytes,
        "commit": model.revision,
    }


def _part(folder: Path) -> dict[str, Any]:
    """Bytes, number of parameters and stored types of one part of a checkpoint, from the files' headers."""
    tensors = read_headers(folder).values()
    return {
        "name": folder.name,
        "bytes": locate.folder_bytes(folder),
        "parameters": sum(tensor.values for tensor in tensors),
        "dtypes": sorted({tensor.dtype for tensor in tensors}),
    }


def _defaults(card: ModelCard) -> Any:
    """What the model decides when a request leaves a field open, one column per ability.

    A long text is cut, with an ellipsis; `--json` prints all of it.
    """
    abilities = {name: group.model_dump(mode="json") for name, group in card.defaults}
    fields = dict.fromkeys(field for group in abilities.values() for field in group)
    rows = [
        [field, *(_cell(group.get(field)) for group in abilities.values())]
        for field in fields
        if any(group.get(field) is not None for group in abilities.values())
    ]
    made = table(("default", *abilities), rows)
    made.columns[0].no_wrap = True
    return made


def _cell(value: object) -> str:
    return "" if value is None else shorten(json.dumps(value, ensure_ascii=False), 40, placeholder=" …")
