"""Find a checkpoint on disk by its name, and say what its weights are.

Knows file names and hashes; knows neither torch nor what the tensors mean. A model is asked for as `nano`
(part of this package), a folder, or a repository id, whose files then lie in `models_folder()/OWNER/NAME`.
Nothing is fetched unless `pull` is called; how it fetches is in `omnigen2.checkpoints.download`.
"""

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from omnigen2.checkpoints.hashes import known_hash, remember, remembered_hash

NANO = "nano"
PARTS = ("transformer", "vae", "mllm", "processor")
"""The folders of a checkpoint that hold what is loaded."""
SUFFIXES = (".safetensors", ".json", ".txt", ".jinja")
ORIGIN_FILE = ".origin.json"
"""Where a pull writes down which repository and commit the files are, with the SHA-256 of each."""

H = TypeVar("H", str, str | None)

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine. `revision` is the commit that was pulled, None where nobody wrote it down."""

    id: str
    folder: Path
    bytes: int
    revision: str | None = None


@dataclass(frozen=True)
class PullProgress:
    """How far a pull is: the file at hand, and bytes on disk of all bytes of the model."""

    file: str
    done: int
    total: int


def models_folder() -> Path:
    """Where pulled models lie: `OMNIGEN2_MODELS`, or the user's data folder."""
    if asked := os.environ.get("OMNIGEN2_MODELS"):
        return Path(asked).expanduser()
    if sys.platform == "darwin":
        data = Path.home() / "Library" / "Application Support"
    elif sys.platform == "win32":
        data = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return data / "omnigen2-mcp" / "models"


def resolve(source: str) -> Path:
    """The folder of the model called `source`: `nano`, a folder, or the id of a pulled repository.

    Raises:
        FileNotFoundError: it is not on this machine; the message says how to get it.
    """
    if source == NANO:
        if not _has_parts(_nano_folder()):
            raise FileNotFoundError(
                f"model: the weights of nano are missing from {_nano_folder()}; "
                "install the package anew, or name another model"
            )
        return _nano_folder()
    if (folder := Path(source).expanduser()).is_dir():
        return folder
    if not _REPO_ID.fullmatch(source):
        raise FileNotFoundError(
            f"model: {source!r} is neither {NANO!r}, nor a folder here, nor a repository id like "
            "OmniGen2/OmniGen2; `omnigen2-mcp models list` shows what there is"
        )
    folder = models_folder() / source
    if not folder.is_dir():
        raise FileNotFoundError(
            f"model: {source} is not on this machine (looked in {folder}); "
            f"fetch it with: omnigen2-mcp models pull {source}"
        )
    return folder


def names() -> list[str]:
    """Every model on this machine that can be named without a path: nano first, then by name."""
    return list(_folders())


def local() -> list[LocalModel]:
    """The models of `names`, and how large they are."""
    return [
        LocalModel(name, folder, folder_bytes(folder), read_origin(folder).get("revision"))
        for name, folder in _folders().items()
    ]


def read_origin(folder: Path) -> dict[str, Any]:
    """What `pull` wrote down about the files of a folder; empty where it did not fetch them, or damaged."""
    try:
        origin = json.loads((folder / ORIGIN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return origin if isinstance(origin, dict) else {}


def known_digest(folder: Path) -> str | None:
    """As `weights_digest`, but None if a large file would have to be read."""
    hashes = {name: _hash(path, known_hash) for name, path in loaded_files(folder)}
    known = {name: digest for name, digest in hashes.items() if digest is not None}
    return _digest(folder, known) if len(known) == len(hashes) else None


def weights_digest(folder: Path) -> str:
    """`sha256:<hex>` of what is loaded from `folder`: weights, configurations and tokenizer.

    It is the SHA-256 of the lines `<SHA-256 of the file>  <relative name>`, sorted by name, as `sha256sum`
    prints them, over the files in `PARTS`. A file is read once for as long as it stays the same
    (`omnigen2.checkpoints.hashes`).

    Raises:
        FileNotFoundError: the folder holds no such file.
    """
    return _digest(folder, {name: _hash(path, remembered_hash) for name, path in loaded_files(folder)})


def remember_hashes(folder: Path, hashes: Mapping[str, str]) -> None:
    """Keep the SHA-256 of files, by relative name, that were just compared with what the hub says."""
    for name, digest in hashes.items():
        with (folder / name).open("rb", buffering=0) as file:
            remember(file, digest, _memory())


def pull(
    repo_id: str, revision: str | None = None, progress: Callable[[PullProgress], None] = lambda _: None
) -> LocalModel:
    """Fetch a repository from the hub, or continue to; a model that is already there whole is checked.

    `revision` is a branch, tag or commit (the main branch if absent); its commit is written down with the
    model, and every file comes from that commit. Each file's size and hash are compared with the hub's.

    Raises:
        ConnectionError: the hub cannot be reached; the message says what to copy by hand, and where.
        FileNotFoundError: there is no such repository or revision, or it is closed to this user.
        ValueError: the id is malformed, the repository is no OmniGen2 checkpoint, or a file is damaged.
        OSError: the disk is full or cannot be written.
    """
    if not _REPO_ID.fullmatch(repo_id):
        raise ValueError(f"repo_id: {repo_id!r} given; it must be OWNER/NAME, for example OmniGen2/OmniGen2")
    from omnigen2.checkpoints.download import fetch  # the hub's library is slow to import

    folder = models_folder() / repo_id
    commit = fetch(repo_id, revision, folder, progress)
    return LocalModel(repo_id, folder, folder_bytes(folder), commit)


def loaded_files(folder: Path) -> list[tuple[str, Path]]:
    """Relative name and path of every file that makes the model what it is, sorted by name."""
    paths = (path for part in PARTS for path in (folder / part).rglob("*"))
    found = [path for path in paths if path.suffix in SUFFIXES and path.is_file()]
    return sorted((path.relative_to(folder).as_posix(), path) for path in found)


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder and below it."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _nano_folder() -> Path:
    return Path(__file__).parents[1] / "nano" / "weights"


def _has_parts(folder: Path) -> bool:
    return all((folder / part).is_dir() for part in PARTS)


def _memory() -> Path:
    """Where the hashes of large files are remembered."""
    return models_folder() / ".hashes.json"


def _hash(path: Path, hashed: Callable[[BinaryIO, Path], H]) -> H:
    with path.open("rb", buffering=0) as file:
        return hashed(file, _memory())


def _digest(folder: Path, hashes: Mapping[str, str]) -> str:
    """From the SHA-256 of each file, by relative name, sorted."""
    if not hashes:
        raise FileNotFoundError(f"model: {folder} holds no weights; a checkpoint holds {', '.join(PARTS)}")
    lines = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _folders() -> dict[str, Path]:
    """The folder of each model that has a name."""
    pulled = sorted(models_folder().glob("[!.]*/[!.]*"))
    folders = {NANO: _nano_folder()} | {f"{own.parent.name}/{own.name}": own for own in pulled}
    return {name: folder for name, folder in folders.items() if _has_parts(folder)}
