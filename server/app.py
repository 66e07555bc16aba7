"""The composition root: settings become plugins, store, models and queue. Only this file knows them all."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from typing import TYPE_CHECKING, Self, TypeVar

import anyio
from anyio import to_thread

from omnigen2.adapters.folder import AdapterFolder
from omnigen2.checkpoints.card import ModelCard
from omnigen2.factory import BackendFactory
from omnigen2.manager import Manager
from server.arguments import read_arguments
from server.caller import READ, WRITE, Caller, insufficient
from server.context import CallContext, Shown
from server.counts import Counts
from server.dispatcher import Dispatcher, not_loaded, stopping
from server.errors import answering, without_folders
from server.hookspecs import AnyTool
from server.idempotency import Idempotency, read_key
from server.journal import Journal, Keyed
from server.plugins import Plugins
from server.quotas import Quotas
from server.references import References
from server.renditions import Renditions
from server.settings import Settings
from storage import ImageStore, StoreView
from tools.base import Request, Result, ToolError

if TYPE_CHECKING:
    from server.fetch import Fetcher

WARM_UP_S = 3.0
"""Seconds after the start at which the default model is loaded, if nothing asked for it sooner."""

T = TypeVar("T")
NewImages = Mapping[str, Shown]
"""The images that a call made, or an equal one before, by id."""


class App:
    """What a surface needs: the tools, and a way to call them."""

    def __init__(self, settings: Settings, plugins: Plugins, store: ImageStore, manager: Manager) -> None:
        self.settings = settings
        self.plugins = plugins
        self.tools: dict[str, AnyTool] = plugins.tools()
        self.store = store
        self.manager = manager
        self.adapters = AdapterFolder(settings.lora_dir)
        self.references = References(_fetcher(store) if settings.allow_fetch else None)
        self.counts = Counts()
        self.renditions = Renditions()
        self.dispatcher = Dispatcher(
            manager, store, settings.queue_size, self.counts, Quotas(settings, self.store_of)
        )
        self._idempotency = Idempotency()
        self._model_wanted = anyio.Event()
        self._calls: set[anyio.CancelScope] = set()
        self._stopped = False
        self._life = self._live()

    async def __aenter__(self) -> Self:
        """Start the queue, and soon the loading of the model."""
        await self._life.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give running jobs time to finish, interrupt the others, unload the models."""
        await self._life.__aexit__(None, None, None)  # the queue does not handle errors of the block

    @asynccontextmanager
    async def _live(self) -> AsyncGenerator[None]:
        # In a store that may only be read, no job outlives its server.
        folder = None if self.store.read_only else self.store.path
        journal = await to_thread.run_sync(Journal, folder)
        try:
            async with self.dispatcher.running(journal), anyio.create_task_group() as background:
                background.start_soon(self._load_soon)
                yield
                background.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(self.manager.close)
                await to_thread.run_sync(journal.close)
                await to_thread.run_sync(self.store.close)

    async def call(self, tool: AnyTool, arguments: Mapping[str, object], caller: Caller) -> Result:
        """Validate `arguments`, run the tool, and give its result. Cancelling the call cancels its job.

        Raises:
            ToolError: whatever went wrong; an unforeseen error is logged and has the code `internal`.
        """
        with answering(tool.name, caller.client, self.counts):
            return await self._run(tool, arguments, CallContext(self, caller))

    async def answer(
        self,
        tool: AnyTool,
        arguments: Mapping[str, object],
        caller: Caller,
        render: Callable[[Result, NewImages], T],
        *,
        looks_up: bool = True,
    ) -> T:
        """What `render` makes of the result of a call and of the new images in it. Raises what `call` does.

        If it looks up the other images that the result names, it does so on a worker thread.
        """
        with answering(tool.name, caller.client, self.counts):
            context = CallContext(self, caller)
            result = await self._run(tool, arguments, context)
            if not looks_up or {*result.linked(), *result.previewed()} <= context.shown.keys():
                return render(result, context.shown)
            return await to_thread.run_sync(render, result, context.shown)

    async def _run(self, tool: AnyTool, arguments: Mapping[str, object], context: CallContext) -> Result:
        if self._stopped:
            raise stopping()
        needed = READ if tool.read_only else WRITE
        if needed not in context.scopes:
            raise insufficient(needed)
        with anyio.CancelScope() as scope:
            self._calls.add(scope)
            try:
                request, notes = read_arguments(tool.request, arguments)
                result = await self._made(tool, request, context)
                return result.model_copy(update={"notes": (*notes, *result.notes)}) if notes else result
            finally:
                self._calls.discard(scope)
        raise stopping()  # only `stop` cancels the scope

    async def _made(self, tool: AnyTool, request: Request, context: CallContext) -> Result:
        """The result of a tool; of one that changes something, once for each idempotency key."""
        text = context.idempotency_key
        if text is None or tool.read_only:
            return await tool.run(request, context)
        context.key = key = await to_thread.run_sync(read_key, context.principal, text, tool.name, request)

        async def join(before: Keyed) -> Result | None:
            if before.job is not None:
                return await context.join(before.job)
            with suppress(ToolError):  # it cannot be read any more: the call is made again
                return await to_thread.run_sync(
                    context.journaled_result, tool, before.result or "", "this key"
                )
            return None

        return await self._idempotency.once(
            key, self.dispatcher.journal, lambda: tool.run(request, context), join
        )

    async def stop(self) -> None:
        """End all jobs, as `Dispatcher.stop` does, and then cancel all other calls."""
        await self.dispatcher.stop()
        self._stopped = True
        for scope in self._calls:
            scope.cancel()

    def store_of(self, principal: str) -> StoreView:
        """The store as a principal may see it, storing on behalf of it. Whatever answers a call uses this."""
        settings = self.settings
        return self.store.for_principal(
            principal, own=settings.sharing == "own", max_bytes=settings.max_stored_bytes
        )

    def card(self, model: str | None = None) -> ModelCard:
        """The card of a model, None being the default one. Loads nothing.

        Only what the host installed can be named: a client cannot point the server at a folder.

        Raises:
            ToolError: `invalid_argument`, with the models there are.
        """
        model = self.other(model)
        if model is None:
            return self._default_card
        if model not in self.manager.models():
            names = ", ".join(self.models())
            raise ToolError(
                "invalid_argument", f"model: there is no {model[:100]!r} here.", f"There are: {names}."
            )
        return self.manager.card(model)

    def models(self) -> list[str]:
        """The names of the models that a request may name, the default one first. Raises what `card` does."""
        return list(dict.fromkeys([self._default_card.id, *self.manager.models()]))

    def offered(self) -> dict[str, str]:
        """What the host offers by name, for descriptions of the parameters that take such names."""
        return {"adapters": self.adapters.line()}

    def other(self, model: str | None) -> str | None:
        """`model`, or None if it names the default model, by the setting or by the id of its card."""
        return None if model in (None, self.settings.model, self._default_card.id) else model

    def identify(self, model: str | None) -> ModelCard | None:
        """The card of a model with the digest of its weights as they are now; None if that needs loading.

        Reads files: not for the event loop.

        Raises:
            ToolError: `not_ready`: its files cannot be read.
        """
        model = self.other(model)
        try:
            card = self.manager.identify(model)
        except (OSError, ValueError) as error:
            raise not_loaded(model or self.manager.default_model, error) from error
        return card and _named(card)

    async def load(self, model: str | None) -> ModelCard:
        """The card of a model with the digest of its weights, once it is loaded.

        Raises:
            ToolError: `not_ready` or `out_of_memory`: it cannot be loaded.
        """
        model = self.other(model)
        try:
            return _named((await asyncio.wrap_future(self.manager.acquire(model))).card)
        except Exception as error:
            raise not_loaded(model or self.manager.default_model, error) from error

    def warm_up(self) -> None:
        """Load the default model now. For surfaces, once their first answer is out: loading slows it down."""
        self._model_wanted.set()

    @cached_property
    def _default_card(self) -> ModelCard:
        try:
            return _named(self.manager.card())
        except (FileNotFoundError, ValueError) as error:
            raise ToolError("not_ready", f"{error}.", "Ask the host to run `omnigen2-mcp doctor`.") from error

    async def _load_soon(self) -> None:
        with anyio.move_on_after(WARM_UP_S):
            await self._model_wanted.wait()
        self.manager.acquire()


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
        memory=settings.memory,
        quantize=settings.placement.quantize,
        compile=settings.compile,
        factories=factories(settings, loaded),
        idle_unload_s=settings.idle_unload,
    )
    return App(settings, loaded, open_store(settings, loaded), manager)


def factories(settings: Settings, plugins: Plugins) -> list[BackendFactory]:
    """Every kind of models, loaded in this process or in replicas, as the settings have it."""
    kinds = plugins.backends()
    if settings.replica_range is None:
        return list(kinds.values())
    from server.replicas.factory import with_replicas  # what they need is not installed everywhere

    return with_replicas(settings, kinds)


def open_store(settings: Settings, plugins: Plugins) -> ImageStore:
    """The image store of the settings. Raises ValueError and StoreError as `build_app` does."""
    scheme, is_url, _ = settings.store.partition("://")
    openers = plugins.stores()
    opener = openers.get(scheme if is_url else "file")
    if opener is None:
        known = ", ".join(f"{name}://" for name in openers)
        raise ValueError(
            f"store: {settings.store} is not a folder, and no plugin opens it; known are {known}"
        )
    return opener(settings.store, settings.quota)


def _named(card: ModelCard) -> ModelCard:
    """The card with the id shown to callers and records: a path is reduced to the name of its folder."""
    return card.model_copy(update={"id": without_folders(card.id.rstrip("/"))})


def _fetcher(store: ImageStore) -> "Fetcher":
    from server.fetch import Fetcher  # the HTTP client is slow to import, and most hosts allow no fetching

    return Fetcher(store.limits.bytes)
