"""Download of a checkpoint from the Hugging Face Hub, verified file by file.

- Only safetensors, JSON and text files are downloaded, never code or pickles.
- The files go to a folder beside the final one, which is renamed when all of them are verified: a model that
  can be resolved is complete. What an interrupted download has fetched is kept and continued.
- The library's own downloader starts a file from zero in a new process. A shard has gigabytes, so partial
  files are kept here and continued with the library's HTTP function.

Importing this module takes a second; whoever may not need it imports it late.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import httpx2  # what huggingface_hub itself raises errors of
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import http_get
from huggingface_hub.hf_api import ModelInfo
from huggingface_hub.utils import build_hf_headers, silent_tqdm

from omnigen2.checkpoints.card import CARD_FILE
from omnigen2.checkpoints.hashes import file_hash
from omnigen2.checkpoints.locate import (
    ORIGIN_FILE,
    PARTS,
    REPO_ID,
    SUFFIXES,
    LocalModel,
    folder_bytes,
    models_folder,
    only_one,
    put_in_place,
    read_origin,
    remember_hashes,
)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository. `sha256` is None for small files, which the hub names by `git_id` only."""

    name: str
    size: int
    git_id: str
    sha256: str | None = None


@dataclass(frozen=True)
class PullProgress:
    """State of a download: the current file, and bytes present of all bytes of the model."""

    file: str
    done: int
    total: int


OnPull = Callable[[PullProgress], None]


def pull(repo_id: str, revision: str | None = None, progress: OnPull = lambda _: None) -> LocalModel:
    """Download a repository, or continue an interrupted download; a complete model is checked.

    `revision` is a branch, tag or commit (the main branch if absent); its commit is recorded with the model,
    and every file comes from that commit. Each file's size and hash are compared with the hub's.

    Raises:
        ConnectionError: the hub cannot be reached; the message says what to copy by hand, and where.
        FileNotFoundError: there is no such repository or revision, or this user has no access to it.
        ValueError: the id is malformed, the repository is not an OmniGen2 checkpoint, or a file is damaged.
        OSError: the disk is full or cannot be written.
    """
    if not REPO_ID.fullmatch(repo_id):
        raise ValueError(f"repo_id: {repo_id!r} given; it must be OWNER/NAME, for example OmniGen2/OmniGen2")
    folder = models_folder() / repo_id
    with _hub_errors(repo_id, revision, folder):
        api = HfApi()
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
        files = wanted_files(repo_id, info)
        assert info.sha is not None
        folder.parent.mkdir(parents=True, exist_ok=True)
        with only_one(folder):
            if read_origin(folder).get("revision") != info.sha or not _intact(folder, files):
                staging = folder.with_name(f".{folder.name}-{info.sha[:12]}.partial")
                _fetch_all(api, repo_id, info.sha, files, staging, progress)
                _write_origin(staging, repo_id, info.sha, files)
                put_in_place(folder, staging)
            remember_hashes(folder, {file.name: file.sha256 for file in files if file.sha256})
    return LocalModel(repo_id, folder, folder_bytes(folder), info.sha)


def fetch_part(repo_id: str, part: str) -> Path:
    """The folder of one part of a repository's main branch, downloaded and verified unless it is there.

    Raises: as `pull`.
    """
    folder = models_folder() / f".{part}" / repo_id
    if not folder.is_dir():
        with _hub_errors(repo_id, None, folder):
            api = HfApi()
            info = api.model_info(repo_id, files_metadata=True)
            files = [file for file in wanted_files(repo_id, info) if file.name.startswith(f"{part}/")]
            assert info.sha is not None
            folder.parent.mkdir(parents=True, exist_ok=True)
            with only_one(folder):
                staging = folder.with_name(f".{folder.name}-{info.sha[:12]}.partial")
                _fetch_all(api, repo_id, info.sha, files, staging, lambda _: None)
                put_in_place(folder, staging)
    return folder / part


def wanted_files(repo_id: str, info: ModelInfo) -> list[RemoteFile]:
    """The files of a repository that make up the model: never code, never pickles, never outside the folder.

    Raises:
        ValueError: a part of the published layout is missing, or its weights are not safetensors.
    """
    files = []
    for sibling in info.siblings or ():
        name = PurePosixPath(sibling.rfilename)
        if name.suffix in SUFFIXES and ".." not in name.parts and _is_part(name):
            assert sibling.size is not None and sibling.blob_id is not None  # asked for: files_metadata
            sha256 = sibling.lfs.sha256 if sibling.lfs else None
            files.append(RemoteFile(str(name), sibling.size, sibling.blob_id, sha256))
    present = {PurePosixPath(file.name).parts[0] for file in files}
    missing = [part for part in PARTS if part not in present]
    with_weights = {PurePosixPath(file.name).parts[0] for file in files if file.name.endswith(".safetensors")}
    missing += [f"{part}/*.safetensors" for part in PARTS[:3] if part in present - with_weights]
    if missing:
        raise ValueError(
            f"{repo_id} is not a checkpoint in the OmniGen2 layout: {', '.join(missing)} missing"
        )
    return sorted(files, key=lambda file: file.name)


def _fetch_all(
    api: HfApi, repo_id: str, revision: str, files: list[RemoteFile], staging: Path, progress: OnPull
) -> None:
    total = sum(file.size for file in files)
    staging.mkdir(parents=True, exist_ok=True)
    _check_space(staging, total - folder_bytes(staging))
    done = 0
    for file in files:

        def report(size: int, name: str = file.name, before: int = done) -> None:
            progress(PullProgress(name, before + size, total))

        if not (staging / file.name).is_file():
            url = hf_hub_url(repo_id, file.name, revision=revision, endpoint=api.endpoint)
            _fetch_file(url, build_hf_headers(token=api.token), file, staging / file.name, report)
        done += file.size
        report(file.size)


def _fetch_file(
    url: str, headers: dict[str, str], file: RemoteFile, target: Path, report: Callable[[int], None]
) -> None:
    """Fetch one file, continuing what an earlier attempt left, and put it in place once it is verified."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    if part.is_file() and part.stat().st_size > file.size:
        part.unlink()
    with part.open("ab") as output:
        http_get(
            url,
            output,
            resume_size=output.tell(),
            headers=headers,
            expected_size=file.size,
            displayed_filename=file.name,
            tqdm_class=partial(_Bar, report),  # pyright: ignore[reportArgumentType]
        )
    if problem := _damage(part, file):
        part.unlink()
        raise ValueError(f"{file.name} arrived damaged: {problem}; pull again to fetch it anew")
    part.rename(target)


class _Bar(silent_tqdm):
    """Adapts the library's progress bar to a callback with the bytes of a file that are present."""

    def __init__(self, report: Callable[[int], None], initial: int = 0, **_: Any):
        self._report = report
        self._done = initial

    def update(self, n: float = 1) -> None:
        self._done += int(n)
        self._report(self._done)


@contextmanager
def _hub_errors(repo_id: str, revision: str | None, folder: Path) -> Iterator[None]:
    """Translates the library's exceptions into errors that say what to do."""
    try:
        yield
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        named = repo_id if revision is None else f"{repo_id} at revision {revision}"
        raise FileNotFoundError(
            f"{named}: the hub has no such model, or it is closed to you "
            "(accept its terms on the hub and set HF_TOKEN)"
        ) from error
    except (httpx2.TransportError, OfflineModeIsEnabled) as error:
        raise ConnectionError(
            f"the hub cannot be reached ({error or type(error).__name__}). What was fetched is kept; pull "
            f"again to continue. Without network: fetch {repo_id} elsewhere (hf download {repo_id}) and copy "
            f"its folders {', '.join(PARTS)} to {folder}"
        ) from error


def _damage(path: Path, file: RemoteFile) -> str | None:
    """How a downloaded file differs from the hub's metadata; None if it does not."""
    size = path.stat().st_size
    if size != file.size:
        return f"{size} bytes instead of {file.size}"
    if file.sha256:
        found, expected = file_hash(path), file.sha256
    else:  # the way git names content
        found, expected = file_hash(path, b"blob %d\0" % size, "sha1"), file.git_id
    return None if found == expected else f"its hash is {found} instead of {expected}"


def _intact(folder: Path, files: list[RemoteFile]) -> bool:
    return all((folder / file.name).is_file() and not _damage(folder / file.name, file) for file in files)


def _write_origin(folder: Path, repo_id: str, revision: str, files: list[RemoteFile]) -> None:
    hashes = {file.name: file.sha256 or file_hash(folder / file.name) for file in files}
    origin = {"repository": repo_id, "revision": revision, "sha256": hashes}
    (folder / ORIGIN_FILE).write_text(json.dumps(origin, indent=1) + "\n", encoding="utf-8")


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{needed / 1e9:.1f} GB are needed in {folder}, {free / 1e9:.1f} GB are free; "
            "make room, or set OMNIGEN2_MODELS to a folder on a larger disk"
        )


def _is_part(name: PurePosixPath) -> bool:
    return name.parts[0] in (*PARTS, "scheduler") or str(name) in ("model_index.json", CARD_FILE)
