"""The core as a plugin: OmniGen2 checkpoints, the places where images may be kept, prompts."""

from collections.abc import Callable
from urllib.parse import unquote

from omnigen2.factory import BackendFactory, Checkpoints
from server.hookspecs import StoreOpener, hookimpl
from server.offers import Prompt
from server.prompts import PROMPTS
from storage import ImageStore

OBJECT_STORES = ("memory", "s3", "gs", "az")


@hookimpl
def register_backends(register: Callable[[str, BackendFactory], None]) -> None:
    """Offer the OmniGen2 checkpoints of this machine."""
    register("checkpoints", Checkpoints())


@hookimpl
def register_stores(register: Callable[[str, StoreOpener], None]) -> None:
    """Offer folders and object stores."""
    register("file", _open_folder)
    for scheme in OBJECT_STORES:
        register(scheme, _open_objects)


@hookimpl
def register_prompts(register: Callable[[Prompt], None]) -> None:
    """Offer prompts for common tasks."""
    for prompt in PROMPTS.values():
        register(prompt)


def _open_folder(url: str, quota_bytes: int | None) -> ImageStore:
    path = unquote(url.removeprefix("file://")) if url.startswith("file://") else url
    return ImageStore(path, quota_bytes)


def _open_objects(url: str, quota_bytes: int | None) -> ImageStore:
    from storage.objects import open_store  # needs fsspec, which folders do not

    return open_store(url, quota_bytes)
