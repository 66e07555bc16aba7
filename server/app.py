"""The composition root: settings become plugins, store, models and queue. Only this file knows them all."""

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from omnigen2.card import ModelCard
from omnigen2.manager import Manager
from server.caller import Caller
from server.hookspecs import AnyTool
from server.plugins import Plugins
from server.settings import Settings
from storage import ImageStore
from tools.base import Result


class App:
    """All that a surface needs: tools to offer, and a way to call them."""

    def __init__(self, settings: Settings, plugins: Plugins, store: ImageStore, manager: Manager) -> None:
        self.settings = settings
        self.plugins = plugins
        self.tools: dict[str, AnyTool] = plugins.tools()
        self.store = store
        self.manager = manager

    async def __aenter__(self) -> Self:
        """Start the queue, and loading the model in the background."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let running jobs finish for a while, hand the others back, unload the models."""

    async def call(self, tool: AnyTool, arguments: Mapping[str, object], caller: Caller) -> Result:
        """Validate `arguments`, run the tool, and give its result. Cancelling the call cancels its job.

        Raises:
            ToolError: whatever went wrong; what nobody foresaw is logged and has the code `internal`.
        """
        raise NotImplementedError

    def card(self, model: str | None = None) -> ModelCard:
        """The card of a model, None being the default one. Loads nothing.

        Raises:
            ToolError: `invalid_argument`, with the models there are.
        """
        return self.manager.card(model)

    def warm_up(self) -> None:
        """Begin loading the default model. For surfaces, once their first answer is out."""


def build_app(settings: Settings, plugins: Sequence[object] | None = None) -> App:
    """An app as `settings` have it; it works while it is entered. `plugins` as for `Plugins`.

    Raises:
        NameTaken: two plugins register the same name.
        ValueError: the store's URL has a scheme that no plugin brings.
        StoreError: the store cannot be opened.
    """
    loaded = Plugins(plugins)
    manager = Manager(
        settings.model,
        device=settings.device,
        dtype=settings.dtype,
        factories=loaded.backends(),
        idle_unload_s=settings.idle_unload,
    )
    return App(settings, loaded, open_store(settings, loaded), manager)


def open_store(settings: Settings, plugins: Plugins) -> ImageStore:
    """The image store of the settings. Raises what `build_app` does."""
    scheme, _, place = settings.store.rpartition("://")
    return plugins.stores()[scheme or "file"](place, settings.quota)
