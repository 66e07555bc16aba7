"""What holds for every test: GPU tests are skipped where there is no CUDA device, slow files are marked.

Every process that a test starts computes in one thread: the models are small, and on a busy machine threads
that wait for each other take a hundred times as long.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch

TESTS = Path(__file__).parent
SLOW = {
    "attacks/": "fuzzing with thousands of inputs",
    "cli/test_bench.py": "measures a model",
    "cli/test_eval.py": "measures a model",
    "cli/test_release.py": "builds and installs a wheel",
    "cli/test_terminal.py": "every command with every encoding",
    "clients/": "servers as processes, and clients in other languages",
    "omnigen2/test_compiled.py": "traces graphs",
    "examples/test_examples.py": "every example as a process of its own",
    "examples/test_plugin.py": "processes with plugins",
    "omnigen2/test_auxiliary.py": "trains",
    "omnigen2/test_engine_failures.py": "engines that fail in every way",
    "omnigen2/test_fairness.py": "seconds in which tasks share a device",
    "omnigen2/test_finetune.py": "trains",
    "omnigen2/test_footprint.py": "runs the full size, without values",
    "omnigen2/test_golden_requests.py": "whole requests of the reference, step by step",
    "omnigen2/test_guidance.py": "whole requests at every speed",
    "omnigen2/test_lora.py": "loads a model for each adapter",
    "omnigen2/test_lora_forms.py": "a picture for each form of adapter",
    "omnigen2/test_manager.py": "loads models again and again",
    "omnigen2/test_model.py": "whole requests, and checkpoints that are broken in every way",
    "omnigen2/test_nano.py": "pictures with nano's weights",
    "omnigen2/test_notes.py": "whole requests through library, engine and tools",
    "omnigen2/test_other_shapes.py": "random models of many shapes against a plain implementation",
    "omnigen2/test_out_of_memory.py": "fills and empties models many times",
    "omnigen2/test_plan.py": "runs the full size, without values",
    "omnigen2/test_process_state.py": "loads models in several threads",
    "omnigen2/test_quantize.py": "whole requests in every precision and memory mode",
    "omnigen2/test_residency.py": "whole requests in every memory mode",
    "omnigen2/test_single_files.py": "converts and loads models",
    "omnigen2/test_threads.py": "measures layers",
    "omnigen2/test_training.py": "trains",
    "omnigen2/test_two_models.py": "loads models that do not fit together",
    "omnigen2/test_world.py": "thousands of scenes",
    "server/core/test_adapters.py": "requests in company and alone",
    "server/core/test_allocator.py": "allocates gigabytes",
    "server/core/test_clients.py": "32 clients at once",
    "server/core/test_job_faults.py": "jobs that fail in every way",
    "server/core/test_jobs.py": "jobs that are held, cancelled and waited for",
    "server/core/test_weights.py": "hashes and loads models",
    "server/replicas/test_replicas.py": "a Ray with two replicas",
    "server/surfaces/test_auth_matrix.py": "every route and tool with every credential",
    "server/surfaces/test_cancel.py": "a server for each way to cancel",
    "server/surfaces/test_connections.py": "connections that wait for their timeout",
    "server/surfaces/test_ending.py": "server processes that end",
    "server/surfaces/test_hosts.py": "a server for each host",
    "server/surfaces/test_http.py": "a server for each test",
    "server/surfaces/test_jobs.py": "jobs that are followed step by step",
    "server/surfaces/test_mcp.py": "conversations that make pictures",
    "server/surfaces/test_oauth.py": "a server for each test, and an issuer",
    "server/surfaces/test_operating.py": "a server for each test",
    "server/surfaces/test_stopping.py": "servers that wait for their callers",
    "server/surfaces/test_store_failures.py": "stores that fail in every way",
    "storage/test_crash.py": "processes that are killed",
    "storage/test_decoder.py": "large pictures in worker processes",
    "storage/test_faults.py": "a fault in every operation on files",
    "storage/test_hostile_records.py": "many stores that are damaged and opened",
    "storage/test_ingest.py": "thousands of hostile files",
    "storage/test_lease.py": "leases that run out",
    "storage/test_maintenance.py": "thousands of foreign files",
    "storage/test_permissions.py": "processes under other umasks",
    "storage/test_processes.py": "eight processes on one store",
    "storage/test_read_only.py": "many stores that are damaged and opened",
    "storage/test_references.py": "thousands of generated texts and records",
    "storage/test_s3.py": "an S3 server",
    "tools/test_references.py": "thousands of generated texts",
    "tools/test_saving.py": "files of every kind, written and imported again",
}
"""Files and folders that `make check` leaves out, and what takes the time in them."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--replicas N`: tests of servers, of any kind, with nano in so many replicas (`server/replicas/`)."""
    parser.addoption("--replicas", type=int, default=0, help="run servers with nano in so many replicas")


def is_slow(path: Path) -> bool:
    """Whether a test file is in `SLOW`."""
    return path.relative_to(TESTS).as_posix().startswith(tuple(SLOW))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Slow files are not even imported where they are left out: that alone takes seconds."""
    left_out = config.getoption("markexpr") == "not slow" and collection_path.is_relative_to(TESTS)
    return True if left_out and collection_path.is_file() and is_slow(collection_path) else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark slow files, and skip GPU tests cleanly; torch is asked only if there is one."""
    for item in items:
        if is_slow(item.path):
            item.add_marker(pytest.mark.slow)
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
