"""Checkpoints on disk: where a model's files lie, and the digest that identifies them.

A model is asked for as `nano` (part of this package), a folder, or a repository id, whose files lie in
`models_folder()/OWNER/NAME` once `omnigen2.checkpoints.download` has fetched them. Single files of ComfyUI's
form are asked for by their path; a folder is made of them when they are loaded. Needs no torch.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from filelock import FileLock, Timeout
from platformdirs import user_data_path

from omnigen2.checkpoints.card import ModelCard, read_card
from omnigen2.checkpoints.hashes import known_hash, remember, remembered_hash
from omnigen2.checkpoints.single_files import is_single, recognise

NANO = "nano"
PARTS = ("transformer", "vae", "mllm", "processor")
"""The folders of a checkpoint that hold what is loaded."""
SUFFIXES = (".safetensors", ".json", ".txt", ".jinja")
ORIGIN_FILE = ".origin.json"
"""Records where a folder comes from: repository, commit and SHA-256 of each file, or the files imported."""

H = TypeVar("H", str, str | None)

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class LocalModel:
    """A model on this machine. `revision` is the commit it was downloaded from, None if that is unknown."""

    id: str
    folder: Path
    bytes: int
    revision: str | None = None


@dataclass(frozen=True)
class FileState:
    """What tells that a file is as it was: inode, size in bytes, times in nanoseconds; -1 if there is none.

    `changed_ns` is None for a file that was linked, which changes that time: its content is known by the
    digest of the model.
    """

    path: str
    inode: int = -1
    bytes: int = -1
    modified_ns: int = -1
    changed_ns: int | None = -1

    @classmethod
    def of(cls, path: str, *, linked: bool = False) -> "FileState":
        """The state of a file now."""
        try:
            found = os.stat(path)
        except OSError:
            return cls(path)
        changed = None if linked else found.st_ctime_ns
        return cls(path, found.st_ino, found.st_size, found.st_mtime_ns, changed)

    @property
    def holds(self) -> bool:
        """Whether the file is as it was."""
        return self == FileState.of(self.path, linked=self.changed_ns is None)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: its folder, its card, and the digest of its files once that is known."""

    folder: Path
    card: ModelCard
    """As `card.json` has it, or that of the published model."""
    digest: str | None = None
    """`weights_digest` of the folder; None where the files were not hashed yet."""

    @property
    def identity(self) -> ModelCard:
        """The card with the digest of the files."""
        return self.card.model_copy(update={"digest": self.digest})

    def recognized(self) -> "Checkpoint":
        """The same with its digest, which stays None if a large file would have to be read for it."""
        return replace(self, digest=known_digest(self.folder))

    def verified(self) -> "Checkpoint":
        """The same with its digest; every file that has changed since it was last hashed is read.

        Raises:
            FileNotFoundError: the folder holds no weights.
            ValueError: the card publishes another digest.
        """
        found = weights_digest(self.folder)
        if self.card.digest not in (None, found):
            raise ValueError(
                f"weights in {self.folder} have digest {found}, its card.json says {self.card.digest}: "
                "they were changed or damaged; fetch them again"
            )
        return replace(self, digest=found)


def models_folder() -> Path:
    """The folder of downloaded models: `OMNIGEN2_MODELS`, or one in the user's data folder."""
    if asked := os.environ.get("OMNIGEN2_MODELS"):
        return Path(asked).expanduser()
    return user_data_path("omnigen2-mcp") / "models"


def resolve(source: str) -> Path:
    """The folder of the model called `source`: `nano`, a folder, or the id of a pulled repository.

    Raises:
        FileNotFoundError: it is not on this machine; the message says how to get it.
        ValueError: it is a single file, or a folder of such files, that is not imported yet.
    """
    if source == NANO:
        if not _has_parts(_nano_folder()):
            raise FileNotFoundError(
                f"model: the weights of nano are missing from {_nano_folder()}; "
                "install the package anew, or name another model"
            )
        return _nano_folder()
    folder = Path(source).expanduser()
    if is_single(folder):
        return _imported(folder)
    if folder.is_dir():
        return folder
    if not REPO_ID.fullmatch(source):
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


def imported_folder(source: Path) -> Path:
    """Where the model lies that is made of a single file, or of those in a folder, when it is loaded."""
    path = source.expanduser().resolve()
    named = named_after(path)
    return named.with_name(f"{named.name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}")


def named_after(file: Path) -> Path:
    """The folder of a model that is called after a file, and can be named without a path."""
    name = re.sub(r"[^\w.-]+", "-", file.stem, flags=re.ASCII).lstrip("-._")
    return models_folder() / "imported" / (name or "omnigen2")


def awaits_import(source: str) -> bool:
    """Whether `source` is a single file, or a folder of them, and no model was made of them as they are now.

    Raises:
        ValueError: it is a file that holds no part of OmniGen2; the message says what it is.
    """
    path = Path(source).expanduser()
    if source == NANO or not is_single(path):
        return False
    taken = read_origin(imported_folder(path)).get("imported")
    if taken and all(FileState(**own).holds for own in taken.values()):
        return False
    if path.is_file():
        recognise(path)
    return True


def find(source: str) -> Checkpoint:
    """The checkpoint called `source`, as for `resolve`; its weights are not read.

    Raises:
        FileNotFoundError: it is not on this machine; the message says how to get it.
        ValueError: its card cannot be read, or as `resolve`.
    """
    folder = resolve(source)
    return Checkpoint(folder, read_card(folder, source))


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
    """The content of a folder's `ORIGIN_FILE`; empty if there is none, or it is damaged."""
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
    """Keep the SHA-256 of files, by relative name, that were computed elsewhere."""
    for name, digest in hashes.items():
        with (folder / name).open("rb", buffering=0) as file:
            remember(file, digest, _memory())


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """A lock between processes: two that write the same model would damage both.

    Raises:
        OSError: another process has it.
    """
    try:
        with FileLock(folder.with_name(f".{folder.name}.lock"), blocking=False):
            yield
    except Timeout:
        raise OSError(f"another process is writing {folder}; wait until it is done") from None


def put_in_place(folder: Path, staging: Path) -> None:
    """Put `staging` in the place of `folder`, and remove what earlier attempts left behind."""
    if folder.exists():
        folder.rename(folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:12]}.partial"))
    staging.rename(folder)
    for left in folder.parent.glob(f".{folder.name}-*.partial"):
        shutil.rmtree(left)


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


def _imported(source: Path) -> Path:
    if awaits_import(str(source)):
        raise ValueError(
            f"model: {source} is imported when it is loaded, and was not yet, or its files have changed"
        )
    return imported_folder(source)


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
