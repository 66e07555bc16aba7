"""Replicas in the place of a model's own factory: the seam through which the server gets them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from time import sleep

from omnigen2.checkpoints.card import ModelCard
from omnigen2.factory import BackendFactory
from omnigen2.memory.placement import Placement
from omnigen2.task import Backend, OutOfMemory
from server.replicas.backend import RemoteBackend
from server.replicas.cluster import Cluster
from server.replicas.keeping import Keeper
from server.settings import Settings

RELEASE_S = 1.0
"""Seconds after which Ray knows that a GPU is free again."""


class RemoteFactory:
    """Loads the models of another factory in replicas; a `BackendFactory`."""

    def __init__(self, factory: BackendFactory, cluster: Cluster, least: int) -> None:
        self._factory = factory
        self._cluster = cluster
        self._least = least
        self.quantizes = getattr(factory, "quantizes", False)

    def models(self) -> Sequence[str]:
        return self._factory.models()

    def card(self, model: str) -> ModelCard:
        return self._factory.card(model)

    def identify(self, model: str) -> ModelCard | None:
        return getattr(self._factory, "identify", self._factory.card)(model)

    def load(self, model: str, placement: Placement, evict: Callable[[], bool]) -> Backend:
        """Start the replicas of a model, or find them; returns once one is ready.

        Raises:
            ValueError: Ray is not there, or the replicas do not fit this server.
            FileNotFoundError, OutOfMemory: as the model's own factory; there is no GPU for a replica.
        """
        cluster = self._cluster
        if cluster.gpus() and placement.device.startswith("cuda"):
            placement = replace(placement, device="cuda")  # a replica sees one GPU only
        if placement.device != "cpu":
            self._make_room(evict)

        async def started() -> Keeper:
            keeper = Keeper(cluster, self._factory, model, placement, self._least, cluster.size)
            try:
                await keeper.start()
            except BaseException:
                await keeper.stop(end=cluster.is_own)
                raise
            return keeper

        return RemoteBackend(cluster, cluster.submit(started()).result())

    def _make_room(self, evict: Callable[[], bool]) -> None:
        """Unload idle models until a GPU is free, where Ray runs on this machine alone."""
        cluster = self._cluster
        if not (cluster.is_own and cluster.gpus()):
            return
        while cluster.free_gpus() < 1:
            if not evict():
                raise OutOfMemory("every GPU has a replica of another model that is in use")
            sleep(RELEASE_S)


def with_replicas(settings: Settings, factories: Mapping[str, BackendFactory]) -> list[BackendFactory]:
    """The factories, with their models in as many replicas as the settings say."""
    least, most = settings.replica_range or (1, 1)
    cluster = Cluster(settings.ray, most)
    return [RemoteFactory(factory, cluster, least) for factory in factories.values()]
