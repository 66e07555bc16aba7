"""Tasks as they travel, between a front and a replica that sees none of its files; Ray is a stand-in."""

import asyncio
import os
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from omnigen2.adapters.file import Adapter, WeightedAdapter
from omnigen2.task import ImageTask
from server.replicas import sending
from server.replicas.sending import Missing, Receiver, Sender
from tests.server.replicas.tasks import image_task

pytestmark = pytest.mark.anyio


class Ref:
    """What Ray keeps, somewhere else."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __await__(self) -> Generator[Any, None, bytes]:
        async def come() -> bytes:
            await asyncio.sleep(0)
            return self.data

        return come().__await__()


@pytest.fixture
def sender() -> Sender:
    return Sender(SimpleNamespace(put=Ref))


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageTask:
    """A task with an adapter of the front."""
    (tmp_path / "there").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "there"))
    sending._folder_for_copies.cache_clear()
    file = tmp_path / "sketch.safetensors"
    file.write_bytes(b"an adapter")
    return replace(image_task(), adapters=(WeightedAdapter(Adapter.of(file), 0.5),))


async def test_an_adapter_travels_once_and_then_by_its_digest(
    sender: Sender, task: ImageTask, tmp_path: Path
) -> None:
    sent = sender.pack(task, set())
    (tmp_path / "sketch.safetensors").unlink()  # the replica is on another machine
    receiver = Receiver()
    two = await asyncio.gather(receiver.unpack(sent), receiver.unpack(sent))
    again = await receiver.unpack(sender.pack(task, {task.adapters[0].adapter.digest}))
    assert receiver.fetched == 1
    for own in (*two, again):
        assert isinstance(own, ImageTask)
        [there] = own.adapters
        assert there.adapter.path.parent.parent.parent == tmp_path / "there"
        assert (there.weight, there.adapter) == (0.5, task.adapters[0].adapter)
        assert there.adapter.path.name == "sketch.safetensors" and there.adapter.read() == b"an adapter"


async def test_a_damaged_adapter_is_sent_again(sender: Sender, task: ImageTask, tmp_path: Path) -> None:
    sent = sender.pack(task, set())
    (tmp_path / "sketch.safetensors").unlink()
    receiver, [blob] = Receiver(), sent.adapters
    with pytest.raises(Missing, match="damaged"):
        await receiver.unpack(replace(sent, adapters=(replace(blob, ref=Ref(b"another")),)))
    assert (await receiver.unpack(sent)).adapters[0].adapter.read() == b"an adapter"  # type: ignore[union-attr]


async def test_a_replica_that_was_started_anew_asks_for_the_adapter(
    sender: Sender, task: ImageTask, tmp_path: Path
) -> None:
    sent = sender.pack(task, {task.adapters[0].adapter.digest})
    (tmp_path / "sketch.safetensors").unlink()
    with pytest.raises(Missing):
        await Receiver().unpack(sent)


async def test_copies_of_replicas_that_were_killed_are_removed(
    sender: Sender, task: ImageTask, tmp_path: Path
) -> None:
    start = f"{sending.COPIES}{os.uname().nodename}-"
    dead, alive = tmp_path / "there" / f"{start}99999999-x", tmp_path / "there" / f"{start}{os.getpid()}-x"
    dead.mkdir()
    alive.mkdir()
    sent = sender.pack(task, set())
    (tmp_path / "sketch.safetensors").unlink()
    await Receiver().unpack(sent)
    assert not dead.exists() and alive.exists()


async def test_pictures_are_remembered_up_to_a_number_of_pixels(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "REMEMBERED_PIXELS", 200)
    receiver = Receiver()
    small, other, large = (Image.new("RGB", (10, side), "red") for side in (8, 9, 30))
    for picture, fetched in ((small, 1), (other, 2), (small, 2), (large, 3), (large, 4), (small, 5)):
        task = await receiver.unpack(sender.pack(image_task(images=(picture,)), set()))
        assert task.images[0].tobytes() == picture.tobytes()  # type: ignore[union-attr]
        assert receiver.fetched == fetched
