"""The images of a result as ordinary files, with their history inside."""

from pathlib import Path

from storage import ImageStore
from storage.opening import write_file
from storage.transfer import with_history
from tools.base import Result, ToolError

SUFFIX = ".png"


def save(store: ImageStore, result: Result, output: Path) -> list[Path]:
    """Write the images of `result` to the file or into the folder `output`; the paths, in order.

    Several images for one FILE.png become FILE-1.png, FILE-2.png, ... A result that only shows pictures has
    those written.

    Raises:
        ToolError: `invalid_argument`: the result has no image, or `output` cannot be written.
    """
    images = {image[-64:][:16]: image for image in result.linked()}
    files = {f"{name}{SUFFIX}": with_history(store, store.get(image).id) for name, image in images.items()}
    if not files:
        shown = result.pictures()
        files = {f"view-{number}{_suffix(p.mime_type)}": p.data for number, p in enumerate(shown, 1)}
    if not files:
        raise ToolError("invalid_argument", "output: there is no image to write.", "Leave it out.")
    paths = _paths(output, list(files))
    try:
        for path, data in zip(paths, files.values(), strict=True):
            write_file(path, data)
    except OSError as error:
        raise ToolError(
            "invalid_argument", f"output: {output} cannot be written ({error.strerror}).", "Choose another."
        ) from error
    return paths


def _paths(output: Path, names: list[str]) -> list[Path]:
    if output.is_dir() or not output.suffix:
        return [output / name for name in names]
    suffix = Path(names[0]).suffix
    if output.suffix.lower() != suffix:
        advice = f"Name a file that ends in {suffix}, or a folder."
        raise ToolError("invalid_argument", f"output: the image cannot be written as {output.name}.", advice)
    if len(names) == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{number}") for number in range(1, len(names) + 1)]


def _suffix(mime_type: str) -> str:
    return {"image/jpeg": ".jpg", "image/webp": ".webp"}.get(mime_type, SUFFIX)
