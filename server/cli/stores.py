"""The `--store` option of all commands, with the same default as the server."""

from typing import Annotated

from cyclopts import Parameter

from server.app import open_store
from server.plugins import Plugins
from server.settings import Settings
from storage import ImageStore

Store = Annotated[
    str | None,
    Parameter(name="--store", help="Image store: a folder or a URL. Default: the store of `serve`."),
]


def settings_with(store: str | None) -> Settings:
    """The settings, with the given store if there is one."""
    return Settings() if store is None else Settings(store=store)


def open_typed(store: str | None) -> ImageStore:
    """Open the store of a command. Raises ValueError and StoreError as `server.app.open_store`."""
    return open_store(settings_with(store), Plugins())
