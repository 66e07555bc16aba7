"""A studio with a real model: the tiny checkpoint with random weights that the golden tests use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import omnigen2
from omnigen2.engine.engine import Engine
from storage import ImageStore
from tests.omnigen2.golden import PIPELINE
from tests.tools.studio import Studio


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    engine = Engine(omnigen2.load(str(PIPELINE / "checkpoint"), device="cpu", dtype="float32"))
    yield engine
    engine.close()


@pytest.fixture
def studio(engine: Engine, tmp_path: Path) -> Iterator[Studio]:
    folder = tmp_path / "pictures"
    folder.mkdir()
    with ImageStore(tmp_path / "store") as store:
        yield Studio(store, engine, folder)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
