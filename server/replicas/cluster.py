"""Ray, started for this server or joined, and the event loop on which everything about replicas happens.

Ray is imported and started at first use only: both take seconds. One thread starts it and lives on with the
loop: the kernel ends Ray's processes when the thread that started them ends, and so with this process.
"""

import asyncio
import ctypes
import math
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Coroutine, Generator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import psutil
from rich.filesize import decimal

from server.log import get_logger
from server.replicas.replica import Replica

T = TypeVar("T")
NAMESPACE = "omnigen2-mcp"
"""Ray's namespace of all replicas."""
OBJECT_STORE_BYTES = 256 * 2**20
"""Shared memory of a Ray that is started here, for pictures on their way; what is more goes to disk."""
LONGEST_FOLDER = 40
"""Characters of a folder for temporary files in which Ray's sockets still have short enough names."""
ANSWER_S = 5.0
"""Seconds in which a replica must say how it is."""
LARGEST_SIGACTION = 1024
"""Bytes that are more than a `struct sigaction` has on any system."""
INSTALL = "ray: it is not installed; install it with: pip install 'omnigen2-mcp[ray]'"
log = get_logger(__name__)


class Cluster:
    """A Ray cluster, as one server uses it. Safe for use by several threads."""

    def __init__(self, address: str | None, size: int) -> None:
        """`address`: of a cluster to join, as `ray start` prints it; None starts Ray on this machine.

        `size`: most replicas of a model.
        """
        self.address = address
        self.size = size
        self.front = secrets.token_hex(4)
        """Name of this server among those that use the cluster."""
        self.loop: asyncio.AbstractEventLoop
        """Where everything about replicas happens, once Ray runs."""
        self._lock = threading.Lock()
        self._started: Future[Any] | None = None

    @property
    def is_own(self) -> bool:
        """Whether it was started for this server, and ends with it."""
        return self.address is None

    @property
    def ray(self) -> Any:
        """The library, once Ray runs.

        Raises:
            ValueError: Ray is not installed, or cannot be started or reached; the message says what to do.
        """
        with self._lock:
            if self._started is None or (self._started.done() and self._started.exception()):
                self._started = Future()
                threading.Thread(target=self._live, args=(self._started,), name="ray", daemon=True).start()
            started = self._started
        return started.result()

    def submit(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def actor(self, name: str, device: str, *given: Any) -> Any:
        """The replica of this name, made with `given` if there is none.

        It has a GPU to itself where the cluster has GPUs, unless `device` is `cpu`. It outlives this server
        unless Ray does not, is started again where there is room when it is lost, and is found by its name.
        """
        ray = self.ray
        gpus = self.gpus() > 0 and device != "cpu"
        return (
            ray.remote(Replica)
            .options(
                name=name,
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                num_gpus=1 if gpus else 0,
                num_cpus=0 if self.is_own or gpus else 1,
                max_restarts=-1,
                max_task_retries=0,  # a task is sent again by the front, to whichever replica is best
                max_concurrency=1000,
                scheduling_strategy="SPREAD",
            )
            .remote(*given)
        )

    def seen(self) -> str:
        """What is in the cluster: machines, GPUs, and each replica with its machine, device and work."""
        ray = self.ray
        nodes = [node for node in ray.nodes() if node["Alive"]]
        named = ray.util.list_named_actors(all_namespaces=True)
        names = sorted(each["name"] for each in named if each["namespace"] == NAMESPACE)
        replicas = "".join(f"; {name}: {self._described(name)}" for name in names)
        return f"{len(nodes)} machines, {self.gpus():g} GPUs, {len(names)} replicas{replicas}"

    def _described(self, name: str) -> str:
        ray = self.ray
        try:
            actor = ray.get_actor(name, namespace=NAMESPACE)
            said = ray.get(actor.state.remote(), timeout=ANSWER_S)
        except Exception as error:
            return f"gives no answer ({type(error).__name__})"
        place = f"{said['model']} on {said['host']}"
        if not said["device"]:
            return f"{place}, loading"
        work = f"{said['tasks']} tasks of {said['tokens']:,} tokens"
        return f"{place}, {said['device']}, {decimal(said['memory_bytes'])}, {work}"

    @staticmethod
    def installed() -> str:
        """The version of Ray. Raises ValueError if it is not installed."""
        return f"Ray {library().__version__}, started with the server"

    def gpus(self) -> float:
        """Number of GPUs in the cluster."""
        return float(self.ray.cluster_resources().get("GPU", 0))

    def free_gpus(self) -> float:
        """Number of GPUs that no replica has."""
        return float(self.ray.available_resources().get("GPU", 0))

    def threads(self) -> int:
        """Threads of the CPU for each replica, if they were spread over the machines: they have the cores to
        themselves. One number for all of them, as the rounding of a large model follows it.
        """
        cores = [_cores()] if self.is_own else [int(own.get("CPU", 1)) for own in self._machines()]
        here = math.ceil(self.size / max(1, len(cores)))
        return max(1, min(cores, default=1) // here)

    def _machines(self) -> list[dict[str, float]]:
        """What each machine that may have a replica has to offer."""
        kind = "GPU" if self.gpus() else "CPU"
        return [own["Resources"] for own in self.ray.nodes() if own["Alive"] and own["Resources"].get(kind)]

    def _live(self, started: "Future[Any]") -> None:
        try:
            with _own_sigterm():
                ray = _start(self.address, self.size)
        except BaseException as error:
            log.warning("Ray is not there", reason=repr(error)[:500])
            started.set_exception(error if isinstance(error, ValueError) else ValueError(_reason(error)))
            return
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        started.set_result(ray)
        self.loop.run_forever()


def _cores() -> int:
    """Threads that a model of this process would have: those of OMP_NUM_THREADS, or the cores."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(psutil.cpu_count(logical=False) or usable, usable)


def library() -> Any:
    """Ray, without starting it. Raises ValueError if it is not installed."""
    # No telemetry; nothing but this machine can connect, unless `ray start` says so.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"  # Ray is never started by a call that comes late
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise ValueError(INSTALL) from error
    # Ray prints events such as the death of a replica to stdout, which may belong to a client.
    worker: Any = import_module("ray._private.worker")
    worker._worker_logs_enabled = False
    return ray


@contextmanager
def _own_sigterm() -> Generator[None]:
    """Keep what this process does on SIGTERM; Ray would have it print a trace, and abort 3 s later.

    Ray's handler is installed below Python, and only the main thread may ask Python to install its own again.
    """
    libc, handler = ctypes.CDLL(None), ctypes.create_string_buffer(LARGEST_SIGACTION)
    libc.sigaction(signal.SIGTERM, None, handler)
    try:
        yield
    finally:
        libc.sigaction(signal.SIGTERM, handler, None)


def _start(address: str | None, size: int) -> Any:
    if address is None:
        return _start_here(size)
    if "://" in address:
        raise ValueError(
            f"ray: {address} is no address of a cluster; give HOST:PORT, as `ray start` prints it"
        )
    ray = library()
    ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="error")
    return ray


@cache
def _token() -> str:
    """One for the process: Ray reads it once, also if it is started again after a failure."""
    return secrets.token_hex(32)


def _start_here(size: int) -> Any:
    temporary = tempfile.gettempdir()
    if len(temporary) > LONGEST_FOLDER:
        temporary = "/tmp"
    folder = Path(tempfile.mkdtemp(prefix="omnigen2-ray-", dir=temporary))
    token = folder / "token"
    with open(os.open(token, os.O_CREAT | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
        file.write(_token())
    os.environ |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        # Says "no cluster of several machines": then everything is bound to 127.0.0.1.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_worker_niceness": "0",  # Ray's 15 would leave a model what all others leave of the cores
    }
    ray = library()
    _start_reaper(folder)
    ray.init(
        num_cpus=size,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        namespace=NAMESPACE,
        _temp_dir=str(folder),
    )
    return ray


def _start_reaper(folder: Path) -> None:
    # The other end stays open until the kernel ends this process. Python would close it while the server is
    # still ending, and the server itself would be killed.
    stdin, _ = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", str(Path(__file__).with_name("reaper.py")), str(folder)],
        stdin=stdin,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    os.close(stdin)
    _reapers.append(process)


_reapers: list["subprocess.Popen[bytes]"] = []


def _reason(error: BaseException) -> str:
    return f"ray: it cannot be started or reached: {error}"
