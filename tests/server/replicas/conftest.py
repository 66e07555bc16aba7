"""Two replicas of the tiny checkpoint on a Ray of their own, started once: that takes most of the time."""

import importlib.util
from collections.abc import Generator

import pytest

import omnigen2
from omnigen2.engine.engine import Engine
from omnigen2.factory import Checkpoints
from omnigen2.memory.placement import Placement
from server.replicas.backend import RemoteBackend
from server.replicas.cluster import Cluster
from server.replicas.factory import RemoteFactory
from tests.server.core.conftest import CHECKPOINT, anyio_backend

__all__ = ["anyio_backend", "remote"]

PLACEMENT = Placement("cpu", "float32")
REPLICAS = 2


@pytest.fixture(scope="session")
def with_ray() -> None:
    """Skips where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("needs Ray: pip install 'omnigen2-mcp[ray]'")


@pytest.fixture(scope="session")
def remote(with_ray: None) -> Generator[RemoteBackend]:
    """The backend of the tiny model, in replicas."""
    cluster = Cluster(None, REPLICAS)
    backend = RemoteFactory(Checkpoints(), cluster, REPLICAS).load(str(CHECKPOINT), PLACEMENT, lambda: False)
    assert isinstance(backend, RemoteBackend)
    yield backend
    backend.close()
    cluster.ray.shutdown()


@pytest.fixture(scope="session")
def local() -> Generator[Engine]:
    """The same model in an engine of this process."""
    engine = Engine(omnigen2.load(str(CHECKPOINT), device="cpu", dtype="float32"))  # type: ignore[arg-type]
    yield engine
    engine.close()
