"""`--store`, as every command has it: which store it works on, by the same settings as the server."""

from typing import Annotated

from cyclopts import Parameter

from server.app import open_store
from server.plugins import Plugins
from server.settings import Settings
from storage import ImageStore

Store = Annotated[
    str | None,
    Parameter(name="--store", help="Where images are kept: a folder or a URL. As `serve` has it if absent."),
]


def settings_with(store: str | None) -> Settings:
    """The settings, with the store that was typed if there is one."""
    return Settings() if store is None else Settings(store=store)


def open_typed(store: str | None) -> ImageStore:
    """The store of a command. Raises ValueError and StoreError as `server.app.open_store`."""
    return open_store(settings_with(store), Plugins())
