"""Checkpoints on disk: naming, fetching from a hub on loopback, digests."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from omnigen2.checkpoints import download, hashes, locate
from tests.omnigen2.hub_server import COMMIT, Hub, serve, use_endpoint

REPO = "someone/OmniGen2-small"
WEIGHTS = os.urandom(300_000)
FILES = {
    "README.md": b"# not needed",
    "model_index.json": b'{"transformer": ["transformer_omnigen2", "OmniGen2Transformer2DModel"]}',
    "transformer/config.json": b'{"hidden_size": 8}',
    "transformer/diffusion_pytorch_model.safetensors": WEIGHTS,
    "transformer/transformer_omnigen2.py": b"raise SystemExit('code of a checkpoint was run')",
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": os.urandom(2_000),
    "vae/diffusion_pytorch_model.bin": b"a pickle",
    "mllm/config.json": b"{}",
    "mllm/model.safetensors": os.urandom(3_000),
    "mllm/old.pt": b"a pickle",
    "processor/tokenizer.json": b"{}",
    "processor/merges.txt": b"a b",
    "processor/chat_template.jinja": b"{{ messages }}",
    "assets/teaser.json": b"{}",
    "../outside.json": b"{}",
}
KEPT = {name for name in FILES if name.split("/")[0] in locate.PARTS} - {
    "transformer/transformer_omnigen2.py",
    "vae/diffusion_pytorch_model.bin",
    "mllm/old.pt",
} | {"model_index.json"}


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMNIGEN2_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def remote(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    repository = Hub(REPO, dict(FILES))
    with serve(repository) as endpoint:
        use_endpoint(monkeypatch, endpoint)
        yield repository


def files_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class Interrupted(Exception):
    pass


def test_pull_fetches_the_model_and_neither_code_nor_pickles(remote: Hub, models: Path) -> None:
    seen: list[download.PullProgress] = []
    model = download.pull(REPO, progress=seen.append)
    assert files_in(model.folder) == KEPT | {locate.ORIGIN_FILE}
    assert (model.folder / "transformer/diffusion_pytorch_model.safetensors").read_bytes() == WEIGHTS
    assert locate.resolve(REPO) == model.folder == models / REPO
    assert [progress.done for progress in seen] == sorted(progress.done for progress in seen)
    assert seen[-1].done == seen[-1].total == sum(len(FILES[name]) for name in KEPT)


def test_pull_writes_down_the_commit_and_every_hash(remote: Hub) -> None:
    model = download.pull(REPO, revision="main")
    origin = locate.read_origin(model.folder)
    assert (origin["repository"], origin["revision"], model.revision) == (REPO, COMMIT, COMMIT)
    assert origin["sha256"] == {name: hashlib.sha256(FILES[name]).hexdigest() for name in KEPT}
    assert [(found.id, found.revision) for found in locate.local() if found.id != locate.NANO] == [
        (REPO, COMMIT)
    ]


def test_interrupted_pull_continues_where_it_stopped(
    remote: Hub, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 10_000)
    name = "transformer/diffusion_pytorch_model.safetensors"

    def interrupt(progress: download.PullProgress) -> None:
        if progress.file == name and progress.done > 200_000:
            raise Interrupted

    with pytest.raises(Interrupted):
        download.pull(REPO, progress=interrupt)
    with pytest.raises(FileNotFoundError, match="omnigen2-mcp models pull someone/OmniGen2-small"):
        locate.resolve(REPO)
    (part,) = models.rglob("*.part")
    kept = part.stat().st_size
    assert 150_000 < kept < len(WEIGHTS)

    first = [asked for asked, _ in remote.requests]
    remote.requests.clear()
    download.pull(REPO)
    assert remote.requests[0] == (name, f"bytes={kept}-")
    assert not set(first[:-1]) & {asked for asked, _ in remote.requests}, "a verified file was fetched again"
    assert (models / REPO / name).read_bytes() == WEIGHTS
    assert not list(models.rglob("*.part*"))


@pytest.mark.parametrize("name", ["vae/diffusion_pytorch_model.safetensors", "transformer/config.json"])
def test_damaged_file_is_refused_and_fetched_anew(remote: Hub, models: Path, name: str) -> None:
    remote.damaged = name
    with pytest.raises(ValueError, match=f"{name} arrived damaged: its hash is"):
        download.pull(REPO)
    assert not (models / REPO).exists()
    remote.damaged = None
    download.pull(REPO)
    assert (models / REPO / name).read_bytes() == FILES[name]


def test_pulling_again_fetches_nothing_and_heals_what_was_damaged_on_disk(remote: Hub, models: Path) -> None:
    download.pull(REPO)
    remote.requests.clear()
    download.pull(REPO)
    assert remote.requests == []
    weights = models / REPO / "mllm/model.safetensors"
    weights.write_bytes(bytes(len(FILES["mllm/model.safetensors"])))
    download.pull(REPO)
    assert weights.read_bytes() == FILES["mllm/model.safetensors"]
    assert locate.local()[-1].id == REPO


def test_new_commit_replaces_the_model_as_a_whole(remote: Hub, models: Path) -> None:
    download.pull(REPO)
    remote.commit = "beef" + "0" * 36
    remote.files = {**FILES, "vae/config.json": b'{"latent_channels": 16}'}
    del remote.files["processor/merges.txt"]
    model = download.pull(REPO)
    assert model.revision == remote.commit
    assert files_in(models / REPO) == KEPT - {"processor/merges.txt"} | {locate.ORIGIN_FILE}
    assert not list((models / "someone").glob("*.partial"))


def test_without_network_the_message_says_what_to_copy_where(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve(Hub(REPO, {})) as endpoint:
        pass  # nobody listens on this port any more
    use_endpoint(monkeypatch, endpoint)
    with pytest.raises(ConnectionError) as caught:
        download.pull(REPO)
    for words in (f"hf download {REPO}", "transformer, vae, mllm, processor", str(models / REPO)):
        assert words in str(caught.value)


def test_unknown_repository_and_unknown_revision_are_named(remote: Hub) -> None:
    with pytest.raises(FileNotFoundError, match="nobody/nothing: the hub has no such model"):
        download.pull("nobody/nothing")
    with pytest.raises(FileNotFoundError, match="at revision v9: the hub has no such model"):
        download.pull(REPO, revision="v9")


def test_repository_without_safetensors_is_refused_before_anything_is_fetched(remote: Hub) -> None:
    del remote.files["vae/diffusion_pytorch_model.safetensors"]
    with pytest.raises(ValueError, match=r"vae/\*\.safetensors missing"):
        download.pull(REPO)
    assert remote.requests == []


def test_second_pull_at_the_same_time_is_refused(remote: Hub) -> None:
    refused: list[str] = []

    def pull_meanwhile(_: download.PullProgress) -> None:
        if not refused:
            with pytest.raises(OSError, match="another process is writing") as caught:
                download.pull(REPO)
            refused.append(str(caught.value))

    download.pull(REPO, progress=pull_meanwhile)
    assert len(refused) == 1


def test_full_disk_is_noticed_before_the_first_byte(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(OSError, match=r"set OMNIGEN2_MODELS to a folder on a larger disk"):
        download.pull(REPO)
    assert remote.requests == []


@pytest.mark.parametrize("bad", ["OmniGen2", "a/b/c", "../x/y", "a/..", "", "https://hub/a/b"])
def test_malformed_repository_ids_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="OWNER/NAME"):
        download.pull(bad)


def test_resolve_takes_a_folder_and_explains_what_it_does_not_find(tmp_path: Path) -> None:
    assert locate.resolve(str(tmp_path)) == tmp_path
    with pytest.raises(FileNotFoundError, match="omnigen2-mcp models pull OmniGen2/OmniGen2"):
        locate.resolve("OmniGen2/OmniGen2")
    with pytest.raises(FileNotFoundError, match="omnigen2-mcp models list"):
        locate.resolve("./nowhere")


def checkpoint(folder: Path) -> Path:
    for name in KEPT:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(FILES[name])
    return folder


def test_weights_digest_is_what_sha256sum_would_give(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    names = sorted(name for name in KEPT if "/" in name)
    lines = "".join(f"{hashlib.sha256(FILES[name]).hexdigest()}  {name}\n" for name in names)
    assert locate.weights_digest(folder) == "sha256:" + hashlib.sha256(lines.encode()).hexdigest()


def test_weights_digest_changes_with_weights_and_configuration_only(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    before = locate.weights_digest(folder)
    (folder / "card.json").write_text("{}")
    (folder / "model_index.json").unlink()
    (folder / "transformer" / "code.py").write_text("")
    assert locate.weights_digest(folder) == before
    (folder / "vae/config.json").write_text('{"scaling_factor": 2}')
    assert locate.weights_digest(folder) != before
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        locate.weights_digest(tmp_path)


def test_a_large_file_is_read_once_until_it_changes(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hashes, "LARGE_BYTES", 100_000)
    monkeypatch.setattr(hashes, "SETTLED_NS", 0)
    folder = checkpoint(tmp_path / "model")
    large = folder / "transformer/diffusion_pytorch_model.safetensors"
    first = locate.weights_digest(folder)
    read: list[int] = []
    real = hashes._hash
    monkeypatch.setattr(hashes, "_hash", lambda file: read.append(file.fileno()) or real(file))
    assert locate.weights_digest(folder) == first and read == []
    monkeypatch.setattr(hashes, "_known", {})  # as after a restart
    assert locate.weights_digest(folder) == first
    assert len(read) == len(locate.loaded_files(folder)) - 1, "the large one is remembered between runs"
    was = large.stat()
    large.write_bytes(WEIGHTS[::-1])
    os.utime(large, ns=(was.st_atime_ns, was.st_mtime_ns))  # as a copy that keeps times
    assert locate.weights_digest(folder) != first


@pytest.mark.parametrize("damage", ["", "[", "[]", "3", '{"a": {}}', "{" * 200_000, "[" * 200_000, "null"])
def test_a_damaged_memory_of_hashes_is_begun_anew(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(hashes, "LARGE_BYTES", 100_000)
    monkeypatch.setattr(hashes, "SETTLED_NS", 0)
    monkeypatch.setattr(hashes, "_known", {})
    models.mkdir()
    (models / ".hashes.json").write_text(damage)
    locate.weights_digest(checkpoint(tmp_path / "model"))
    (kept,) = json.loads((models / ".hashes.json").read_text()).values()
    assert kept == hashlib.sha256(WEIGHTS).hexdigest()


def test_hub_imports_neither_torch_nor_the_hub_library() -> None:
    slow = "('torch', 'huggingface_hub')"
    program = f"import sys, omnigen2.checkpoints.locate; sys.exit(any(m in sys.modules for m in {slow}))"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
