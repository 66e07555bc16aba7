"""Apps to test: the real engine over the tiny checkpoint, held at a step where a test wants it."""

import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

import omnigen2
from omnigen2.engine.engine import Engine
from omnigen2.factory import BackendFactory, OneModel
from omnigen2.memory.placement import Placement
from omnigen2.model import OmniGen2
from omnigen2.task import Backend, Progress, Task, Ticket
from server.app import App, build_app
from server.caller import Caller
from server.hookspecs import hookimpl
from server.plugins import core_plugins
from server.settings import Settings

CHECKPOINT = Path(__file__).parents[2] / "data" / "golden" / "pipeline" / "checkpoint"
ANN = Caller("ann", "ann")
BOB = Caller("bob", "bob")
SMALL: dict[str, Any] = {"width": 32, "height": 32, "steps": 2}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def omnigen(pytestconfig: pytest.Config) -> OmniGen2:
    model = "nano" if pytestconfig.getoption("--replicas") else str(CHECKPOINT)
    return omnigen2.load(model, device="cpu", dtype="float32")


class HeldEngine(Engine):
    """The engine, whose thread can be held after a step."""

    hold_at: int | None = None

    def __init__(self, *args: Any, **more: Any) -> None:
        self.reached, self.released = threading.Event(), threading.Event()
        self.started: list[Task] = []
        self.steps: list[int] = []
        self.submitted = 0
        super().__init__(*args, **more)

    def submit(self, task: Task, on_progress: Callable[[Progress], None] = lambda _: None) -> Ticket:
        def held(progress: Progress) -> None:
            if progress.stage == "encode":
                self.started.append(task)
            self.steps.append(progress.step)
            on_progress(progress)
            if progress.step == self.hold_at:
                self.hold_at = None
                self.reached.set()
                assert self.released.wait(60)

        self.submitted += 1
        return super().submit(task, held)

    async def is_held(self) -> None:
        """Wait until the engine stands still."""
        assert await to_thread.run_sync(self.reached.wait, 60)


class Tiny:
    """A plugin with the tiny model, loaded as a test says."""

    def __init__(self, load: Callable[[], Backend], omnigen: OmniGen2) -> None:
        self.load, self.card = load, omnigen.card.model_copy(update={"id": "tiny"})

    @hookimpl
    def register_backends(self, register: Callable[[str, BackendFactory], None]) -> None:
        register("tiny", OneModel("tiny", self.card, lambda device, dtype: self.load()))


@pytest.fixture(scope="session")
def replicas(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Generator[Callable[[], Any]]:
    """Makes what stands for `HeldEngine` where the tests run on replicas."""
    from server.replicas.cluster import Cluster
    from server.replicas.factory import RemoteFactory
    from tests.server.replicas.held import HeldReplicas, Holding

    count, folder = pytestconfig.getoption("--replicas"), tmp_path_factory.mktemp("held")
    cluster = Cluster(None, count)
    remote: Any = RemoteFactory(Holding(folder), cluster, count).load(
        "nano", Placement("cpu", "float32"), lambda: False
    )
    yield lambda: HeldReplicas(remote, folder)
    remote.close()
    cluster.ray.shutdown()


@pytest.fixture
def engine(omnigen: OmniGen2, request: pytest.FixtureRequest) -> HeldEngine:
    if request.config.getoption("--replicas"):
        return request.getfixturevalue("replicas")()
    return HeldEngine(omnigen)


@pytest.fixture
def make_app(omnigen: OmniGen2, tmp_path: Path) -> Callable[..., App]:
    def make(load: Callable[[], Backend], plugins: Sequence[object] = (), **settings: Any) -> App:
        chosen = Settings(**{"store": str(tmp_path / "store"), "model": "tiny"} | settings)
        return build_app(chosen, [*core_plugins(), Tiny(load, omnigen), *plugins])

    return make


@pytest.fixture
def app(make_app: Callable[..., App], engine: HeldEngine) -> App:
    return make_app(lambda: engine)


async def call(app: App, tool: str, caller: Caller = ANN, **arguments: Any) -> Any:
    """Call a tool by its name; it must answer within a minute."""
    with anyio.fail_after(60):
        return await app.call(app.tools[tool], arguments, caller)


async def settled() -> None:
    """Wait until every task of the loop waits for something."""
    await anyio.wait_all_tasks_blocked()
