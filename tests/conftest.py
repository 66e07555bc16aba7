"""What holds for every test: those marked `gpu` are skipped where there is no CUDA device.

Every process that a test starts computes in one thread: the models are small, and on a busy machine threads
that wait for each other take a hundred times as long.
"""

import logging
import os
from collections.abc import Iterator

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests cleanly; torch is asked only if there is one."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def log_handlers() -> Iterator[None]:
    """Take back the log handler that a test configured: it writes to a stream that ends with the test."""
    root = logging.getLogger()
    before = root.handlers[:]
    yield
    root.handlers[:] = before
