"""The public interface of the image store: thread-safe, and safe for processes that share a folder.

`ImageStore` sees everything, and opens, maintains and moves a store; what it does with images and records is
in `storage/view.py`, which also shows a store as one principal sees it.
"""

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Self

from storage import gc, maintenance, transfer
from storage.blobs import BlobStore
from storage.codec import Limits
from storage.lease import Lease
from storage.recovery import Progress
from storage.repository import Repository
from storage.view import MAX_PAGE, Reference, StoreView

__all__ = ["MAX_PAGE", "ImageStore", "Reference"]


class ImageStore(StoreView):
    """A store with all its images and records."""

    def __init__(
        self,
        path: Path | str | None,
        quota_bytes: int | None = None,
        *,
        limits: Limits | None = None,
        blobs: BlobStore | None = None,
        records: BlobStore | None = None,
        lease: Lease | None = None,
    ) -> None:
        """Open the store in the folder `path`, or create one.

        `quota_bytes` limits the total size of images and records, `limits` the size of one image. `blobs`
        and `records` store the bytes, by default in folders below `path`; locks and index are always below
        `path`. If `path` is None, they are in memory and are lost with this object. `lease` is the right to
        write to `blobs` and `records`, if other machines may have it.

        A store without write permission is opened read-only, see `read_only`.

        Raises:
            StoreReadOnly, StoreFull: the folder is not writable and contains no store.
        """
        self.path = Path(path).expanduser().absolute() if path is not None else None
        self.quota_bytes = quota_bytes
        super().__init__(Repository(self.path, quota_bytes, blobs, records, lease), limits or Limits())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def for_principal(self, name: str, *, own: bool, max_bytes: int | None = None) -> StoreView:
        """The store on behalf of a principal; if `own`, only with its own images. See `StoreView`."""
        return StoreView(self._repository, self.limits, name, own, max_bytes)

    def close(self) -> None:
        """Record a clean shutdown and close the index connections. The store can be used again afterwards.

        If a process that wrote ends without it, the next process to open the store scans it for images and
        records that are not in the index.
        """
        self._repository.close()

    # -- maintenance ----------------------------------------------------------------------------------

    def verify(self, progress: Progress | None = None) -> maintenance.Verification:
        """Read and hash every file; quarantine invalid ones, index missing ones, delete nothing."""
        return self._repository.with_index_repair(lambda: maintenance.verify(self._repository, progress))

    def rebuild_index(self, progress: Progress | None = None) -> tuple[Path, ...]:
        """Rebuild the index from blobs and records; returns the new paths of quarantined unreadable files.

        Raises:
            StoreBusy: another process is collecting or rebuilding.
        """
        return maintenance.rebuild_index(self._repository, progress)

    def collect(
        self,
        *,
        dry_run: bool = False,
        grace: timedelta = timedelta(days=1),
        keep_accessed: timedelta = timedelta(days=30),
    ) -> gc.Collected:
        """Delete unused images, and the records that refer to them.

        Kept are images with a label or a pin, those held by a running job (`hold`), those stored within
        `grace` or accessed within `keep_accessed` plus one hour, and every image in a record that made a
        kept image, recursively. Blocks writers in all processes.

        Raises:
            StoreBusy: another process is collecting or rebuilding.
        """
        return self._repository.with_index_repair(
            lambda: gc.collect(self._repository, dry_run=dry_run, grace=grace, keep_accessed=keep_accessed)
        )

    def export(
        self, refs: Iterable[Reference], folder: Path | str, progress: Progress | None = None
    ) -> tuple[Path, ...]:
        """Write images as PNG files with their records embedded; returns the paths of `refs`.

        Ancestors are written to the subfolder `lineage/`, so that the whole history can be imported.

        Raises as `read`, and:
            InvalidArgument: the folder cannot be written.
        """
        digests = [self.get(ref).id for ref in refs]
        return transfer.export(self, digests, Path(folder), progress)

    def import_(self, folder: Path | str, progress: Progress | None = None) -> transfer.Imported:
        """Store every image file below a folder, and the records embedded in exported files.

        Raises:
            InvalidArgument: there is no such folder.
            StoreFull, StoreReadOnly: images and records imported before the error remain stored.
        """
        return transfer.import_folder(self, self._repository, Path(folder), progress)
