"""The image store: content-addressed images, and records of how each was made.

`ImageStore` is the public interface; `README.md` in this folder states its guarantees.
"""

from storage import codec, errors
from storage.blobs import Blob, BlobStore, LocalBlobs
from storage.codec import Limits
from storage.digest import Digest
from storage.paths import default_store_path
from storage.records import LOCAL, Model, Record
from storage.results import Ancestor, Page, StoredImage, Usage
from storage.store import ImageStore
from storage.view import StoreView

__all__ = [
    "LOCAL",
    "Ancestor",
    "Blob",
    "BlobStore",
    "Digest",
    "ImageStore",
    "Limits",
    "LocalBlobs",
    "Model",
    "Page",
    "Record",
    "StoreView",
    "StoredImage",
    "Usage",
    "codec",
    "default_store_path",
    "errors",
]
