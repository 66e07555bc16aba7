"""`omnigen2-mcp store`: commands to inspect and maintain the image store."""

import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cyclopts import App
from rich.filesize import decimal

from server.cli.output import AsJson, counting_bar, facts, show, table
from server.cli.stores import Store, open_typed, settings_with
from storage import Ancestor, ImageStore, StoredImage, embedding

app = App(name="store", help="Inspect stored images and their history, and maintain the store.")

SHORT = 12
"""Hex digits of an id in a table: enough to refer to the image."""


@app.command(name="ls")
def list_images(
    *,
    query: str | None = None,
    tool: str | None = None,
    since: datetime | None = None,
    limit: int = 20,
    cursor: str | None = None,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """List images, newest first.

    Parameters
    ----------
    query
        Words that must all occur in the prompt, instruction or label.
    tool
        Only images made by this tool.
    since
        Only images stored at this time or later, in UTC if no time zone is given.
    limit
        Maximum number of images, 1 to 1000.
    cursor
        Continue after an earlier page.
    """
    if since is not None and since.tzinfo is None:
        since = since.replace(tzinfo=UTC)
    with open_typed(store) as images:
        page = images.list(query=query, tool=tool, since=since, limit=limit, cursor=cursor)
        usage = images.usage()
    rows = [
        (
            image.id.hex[:SHORT],
            f"{image.width}x{image.height}",
            decimal(image.bytes),
            _when(image.created),
            _annotations(image),
        )
        for image in page.images
    ]
    total = f"{usage.images:,} images, {decimal(usage.bytes)} in {settings_with(store).store}"
    more = [f"There are more: add --cursor {page.cursor}"] if page.cursor else []
    found = (
        table(("id", "size", "bytes", "stored", "label"), rows) if rows else "No image is stored or matches."
    )
    value = {"images": [_image(image) for image in page.images], "cursor": page.cursor}
    show(value, found, *more, total, as_json=as_json)


@app.command(name="show")
def show_image(ref: str, /, *, store: Store = None, as_json: AsJson = False) -> None:
    """Show an image's metadata and how it was made, back to its first ancestors.

    Parameters
    ----------
    ref
        Its id, a prefix of it with at least 8 hex digits, or its URI.
    """
    with open_typed(store) as images:
        image = images.get(ref)
        lineage = images.lineage(image.id)
    about = {
        "id": image.id,
        "uri": image.id.uri,
        "size": f"{image.width}x{image.height} pixels, {decimal(image.bytes)}",
        "stored": _when(image.created),
        "label": image.label or "-",
        "pinned": "yes" if image.pinned else "no",
    }
    rows = [
        (
            step.image.id.hex[:SHORT],
            step.record.tool if step.record else "outside",
            _parameters(step),
            _inputs(step),
        )
        for step in lineage
    ]
    history = table(("id", "made by", "parameters", "inputs"), rows)
    value = {"image": _image(image), "lineage": [_step(step) for step in lineage]}
    show(value, facts(about), "", history, as_json=as_json)


@app.command
def verify(*, store: Store = None, as_json: AsJson = False) -> None:
    """Read and hash every file. Invalid files are moved to `quarantine/`; nothing is deleted.

    Exits with status 1 if any file was invalid, foreign or missing.
    """
    with open_typed(store) as images, _bar("reading") as report:
        found = images.verify(report)
    value = {
        "clean": found.clean,
        "images": found.images,
        "records": found.records,
        "quarantined": [str(path) for path in found.quarantined],
        "left": list(found.left),
        "missing": [str(digest) for digest in found.missing],
        "dangling": [str(digest) for digest in found.dangling],
        "indexed": found.indexed,
    }
    lines = [f"{found.images:,} images and {found.records:,} records are valid."]
    lines += [f"{found.indexed} were missing in the index and have been added."] if found.indexed else []
    lines += [f"Damaged or foreign, moved to {path}" for path in found.quarantined]
    lines += [f"Damaged or foreign, could not be moved: {path}" for path in found.left]
    lines += [f"Missing: {digest}" for digest in found.missing]
    lines += [f"Refers to a missing image: record {digest}" for digest in found.dangling]
    show(value, *lines, as_json=as_json)
    if not found.clean:
        sys.exit(1)


@app.command
def rebuild_index(*, store: Store = None, as_json: AsJson = False) -> None:
    """Rebuild the index from images and records."""
    with open_typed(store) as images:
        with _bar("indexing") as report:
            aside = images.rebuild_index(report)
        usage = images.usage()
    show(
        {
            "images": usage.images,
            "bytes": usage.bytes,
            "quarantined": [str(path) for path in aside],
        },
        f"The index has been rebuilt: {usage.images:,} images, {decimal(usage.bytes)}.",
        *(f"Unreadable, moved to {path}" for path in aside),
        as_json=as_json,
    )


@app.command(name="gc")
def collect(
    *,
    dry_run: bool = False,
    grace_days: float = 1,
    keep_days: float = 30,
    store: Store = None,
    as_json: AsJson = False,
) -> None:
    """Delete images without label, pin, running job or recent access.

    The ancestors of a kept image are kept too.

    Parameters
    ----------
    dry_run
        Only report what would be deleted.
    grace_days
        Keep images stored within this many days.
    keep_days
        Keep images accessed within this many days.
    """
    grace, keep = timedelta(days=grace_days), timedelta(days=keep_days)
    with open_typed(store) as images:
        found = images.collect(dry_run=dry_run, grace=grace, keep_accessed=keep)
    value = {
        "dry_run": found.dry_run,
        "images": [str(digest) for digest in found.images],
        "records": [str(digest) for digest in found.records],
        "bytes": found.bytes,
        "kept": found.kept,
    }
    verb = "would be" if dry_run else "were"
    show(
        value,
        f"{len(found.images):,} images and {len(found.records):,} records {verb} deleted, "
        f"{decimal(found.bytes)}; {found.kept:,} images are kept.",
        as_json=as_json,
    )


@app.command
def export(ref: str, /, *more: str, to: Path, store: Store = None, as_json: AsJson = False) -> None:
    """Write images as PNG files with their history embedded, and their ancestors to the subfolder `lineage/`.

    Parameters
    ----------
    ref
        An image: id, prefix or URI.
    more
        Further images.
    to
        The folder to write to.
    """
    with open_typed(store) as images, _bar("writing") as report:
        paths = images.export([ref, *more], to, report)
    show([str(path) for path in paths], *(str(path) for path in paths), as_json=as_json)


@app.command(name="import")
def import_folder(folder: Path, /, *, store: Store = None, as_json: AsJson = False) -> None:
    """Store every image file below a folder, with the history embedded in exported files.

    Parameters
    ----------
    folder
        A folder of image files; links in it are not followed.
    """
    with open_typed(store) as images, _bar("reading") as report:
        found = images.import_(folder, report)
    value = {
        "images": [_image(image) for image in found.images],
        "records": [str(digest) for digest in found.records],
        "notes": {str(image.id): image.notes for image in found.images if image.notes},
        "skipped": [{"path": str(skipped.path), "reason": skipped.reason} for skipped in found.skipped],
    }
    notes = [f"{image.id}: {note}" for image in found.images for note in image.notes]
    skipped = [f"Skipped {each.path}: {each.reason}" for each in found.skipped]
    total = f"{len(found.images):,} images and {len(found.records):,} records were imported."
    show(value, *notes, *skipped, total, as_json=as_json)


@app.command
def pin(ref: str, /, *, store: Store = None, as_json: AsJson = False) -> None:
    """Protect an image from `gc`."""
    _change(store, lambda images: images.pin(ref), as_json)


@app.command
def unpin(ref: str, /, *, store: Store = None, as_json: AsJson = False) -> None:
    """Remove the pin of an image."""
    _change(store, lambda images: images.pin(ref, False), as_json)


@app.command
def label(ref: str, text: str | None = None, /, *, store: Store = None, as_json: AsJson = False) -> None:
    """Set the label of an image, which also protects it from `gc`; without a text, remove the label."""
    _change(store, lambda images: images.label(ref, text), as_json)


def _change(store: str | None, change: Callable[[ImageStore], StoredImage], as_json: bool) -> None:
    with open_typed(store) as images:
        image = change(images)
    state = f"label {image.label or '-'}, {'pinned' if image.pinned else 'not pinned'}"
    show(_image(image), f"{image.id}: {state}", as_json=as_json)


@contextmanager
def _bar(what: str) -> Generator[Callable[[int, int], None]]:
    """Show a progress bar; yields the callback that updates it."""
    with counting_bar() as bar:
        line = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(line, completed=done, total=total)


def _image(image: StoredImage) -> dict[str, Any]:
    return {
        "id": str(image.id),
        "uri": image.id.uri,
        "width": image.width,
        "height": image.height,
        "mime_type": image.mime_type,
        "bytes": image.bytes,
        "created": image.created.isoformat(),
        "label": image.label,
        "pinned": image.pinned,
    }


def _step(step: Ancestor) -> dict[str, Any]:
    record = step.record.model_dump(mode="json", exclude_none=True) if step.record else None
    return {"image": _image(step.image), "record_id": str(step.record_id or "") or None, "record": record}


def _parameters(step: Ancestor) -> str:
    return embedding.parameters_text(step.record) if step.record else "-"


def _inputs(step: Ancestor) -> str:
    return " ".join(digest.hex[:SHORT] for digest in step.record.inputs) if step.record else ""


def _annotations(image: StoredImage) -> str:
    return (image.label or "") + (" (pinned)" if image.pinned else "")


def _when(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
