"""One machine at a time writes to a bucket; another one takes over when the first is lost."""

import time
from pathlib import Path

import fsspec
import pytest

from storage import lease
from storage.digest import Digest
from storage.errors import StoreBusy
from storage.lease import Lease
from storage.objects import ObjectBlobs


def on_machine(folder: Path, url: str) -> Lease:
    files, root = fsspec.url_to_fs(url)
    return Lease(files, root, folder)


def test_a_second_machine_is_refused_until_the_first_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LEASE_S", 0.5)
    url = "memory://leased-bucket"
    first, second = (on_machine(tmp_path / name, url) for name in ("one", "two"))
    first.renew()
    on_machine(tmp_path / "one", url).renew()  # another process of the same machine
    with pytest.raises(StoreBusy, match="Another server"):
        second.hold()
    time.sleep(0.6)  # the first is not heard of any more
    second.renew()
    with pytest.raises(StoreBusy):
        first.check()
    with pytest.raises(StoreBusy):
        ObjectBlobs(f"{url}/blobs", lease=first).put(b"late")
    blob = ObjectBlobs(f"{url}/blobs", lease=second).put(b"in time")
    assert blob.digest == Digest.of(b"in time")
