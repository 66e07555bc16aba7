"""The image store: content-addressed images, and the memory of how each was made.

`ImageStore` is the way in; `README.md` beside this file says what it promises.
"""

from storage import codec, errors
from storage.blobs import Blob, BlobStore, LocalBlobs
from storage.codec import Limits
from storage.digest import Digest
from storage.records import Model, Record
from storage.results import Ancestor, Page, StoredImage, Usage
from storage.store import ImageStore, default_store_path

__all__ = [
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
    "StoredImage",
    "Usage",
    "codec",
    "default_store_path",
    "errors",
]
