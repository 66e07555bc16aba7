"""The images of a result as ordinary files, with their history inside."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

from storage import StoreView
from storage.safe_files import write_file
from storage.transfer import with_history
from tools.base import Result, ToolError

SUFFIX = ".png"
SUFFIXES = {"image/jpeg": ".jpg", "image/webp": ".webp"}
"""Of pictures that are only looked at, by their type; the others have `SUFFIX`."""


ADVICE = "Choose another file or folder; no file is replaced."


def save(store: StoreView, result: Result, output: Path) -> list[Path]:
    """Write the images of `result` to the file or into the folder `output`; the paths, in order.

    Several images for one FILE.png become FILE-1.png, FILE-2.png, ... A result that only shows pictures has
    those written. In a folder, a file of the same name is replaced: it is of the same image.

    Raises:
        ToolError: `invalid_argument`: the result has no image, or `output` exists or cannot be written.
    """
    images = {image[-64:][:16]: image for image in result.named()}
    files = {
        f"{name}{SUFFIX}": with_history(store, store.get(image).id, ancestors=True)
        for name, image in images.items()
    }
    if not files:
        shown = result.pictures()
        files = {f"view-{number}{_suffix(p.mime_type)}": p.data for number, p in enumerate(shown, 1)}
    if not files:
        raise ToolError("invalid_argument", "output: there is no image to write.", "Leave it out.")
    paths = _paths(output, list(files))
    try:
        for path, data in zip(paths, files.values(), strict=True):
            write_file(path, data, replace=_is_folder(output))
    except OSError as error:
        raise _unwritable(output, error) from error
    return paths


def check(output: Path, kind: type[Result]) -> None:
    """Find out whether the images of a result of this `kind` can be written, before they are made.

    Raises:
        ToolError: `invalid_argument`: such a result has no image, or `output` cannot be written.
    """
    suffixes = _suffixes_of(kind)
    if not suffixes:
        raise ToolError("invalid_argument", "output: there is no image to write.", "Leave it out.")
    if not _is_folder(output) and output.suffix.lower() not in suffixes:
        raise _wrong_suffix(output, suffixes)
    if not _is_folder(output) and os.path.lexists(output):
        raise _unwritable(output, FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)))
    check_writable(output, output if _is_folder(output) else output.parent)


def check_writable(output: Path, folder: Path) -> None:
    """Raises ToolError, `invalid_argument`, if `output` cannot be written to `folder`, missing or not."""
    try:
        output.exists()  # fails for a name that is too long
        there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        with TemporaryFile(dir=there):
            pass
    except (OSError, ValueError) as error:
        raise _unwritable(output, error) from error


def _is_folder(output: Path) -> bool:
    return os.path.isdir(output) or not output.suffix


def _suffixes_of(kind: type[Result]) -> tuple[str, ...]:
    """What the files may be called that are written of a result."""
    if kind.pictures is not Result.pictures:
        return (SUFFIX, *SUFFIXES.values())
    named = kind.linked is not Result.linked or kind.named is not Result.named
    return (SUFFIX,) if named else ()


def _unwritable(output: Path, error: Exception) -> ToolError:
    reason = getattr(error, "strerror", None) or str(error)
    return ToolError("invalid_argument", f"output: {output} cannot be written ({reason}).", ADVICE)


def _wrong_suffix(output: Path, suffixes: Sequence[str]) -> ToolError:
    return ToolError(
        "invalid_argument",
        f"output: the image cannot be written as {output.name}.",
        f"Name a file that ends in {' or '.join(suffixes)}, or a folder.",
    )


def _paths(output: Path, names: list[str]) -> list[Path]:
    if _is_folder(output):
        return [output / name for name in names]
    suffix = Path(names[0]).suffix
    if output.suffix.lower() != suffix:
        raise _wrong_suffix(output, [suffix])
    if len(names) == 1:
        return [output]
    return [output.with_stem(f"{output.stem}-{number}") for number in range(1, len(names) + 1)]


def _suffix(mime_type: str) -> str:
    return SUFFIXES.get(mime_type, SUFFIX)
