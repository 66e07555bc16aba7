"""A store in a bucket of this machine: runs where `moto[server]` and `s3fs` are installed."""

import uuid
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from storage.errors import StoreError
from storage.objects import ObjectBlobs, open_store
from tests.suites.blobs import BlobStoreSuite, Factory

moto = pytest.importorskip("moto.server", reason="needs moto[server] and s3fs")
s3fs = pytest.importorskip("s3fs", reason="needs moto[server] and s3fs")
KEYS = {
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_SECRET_ACCESS_KEY": "x",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_MAX_ATTEMPTS": "1",
}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """The URL of an empty bucket."""
    server: Any = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    name = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as environment:
        for key, value in (KEYS | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"}).items():
            environment.setenv(key, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(name)
        yield f"s3://{name}"
        server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(autouse=True)
def _own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.objects.default_store_path", lambda: tmp_path / "data" / "store")


class TestS3(BlobStoreSuite):
    @pytest.fixture
    def factory(self, bucket: str) -> Factory:
        url = f"{bucket}/{uuid.uuid4().hex}"
        return lambda: ObjectBlobs(url)


def test_a_whole_store_lives_in_a_bucket(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    url = f"{bucket}/whole"
    with open_store(url) as store:
        first = store.put(Image.new("RGB", (4, 4)), label="first")
        second = store.put(Image.effect_noise((1500, 1500), 50))
        record = store.record(tool="edit_image", parameters={}, inputs=[first.id], outputs=[second.id])
        before = store.list(), store.lineage(second.id)
        store.rebuild_index()
        assert (store.list(), store.lineage(second.id)) == before
    monkeypatch.setattr("storage.objects.default_store_path", lambda: tmp_path / "other" / "store")
    with open_store(url) as other:  # as from another machine
        assert other.list() == before[0] and other.get_record(record).outputs == (second.id,)
        assert other.open(second.id).size == (1500, 1500) and other.verify().clean
        assert other.collect(grace=timedelta(0), keep_accessed=timedelta(0)).images == (second.id,)


def test_a_bucket_that_is_not_there_is_named(bucket: str):
    with pytest.raises(StoreError, match=r"no such bucket.*s3://not-there"):
        open_store("s3://not-there/store")


def test_an_address_where_nothing_answers_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreError, match=r"Check the address.*127.0.0.1:9"):
        open_store(f"{bucket}/store")
